"""The help of a recipe, built from the catalogue, equals the help built from the config classes."""

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.catalogue import load_catalogue
from scrubjay.experiments.cli.arguments import UsageError
from scrubjay.experiments.explain import explain
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.recipes.teams import METHODS
from scrubjay.memory import list_memories

ONE_RECIPE_PER_TYPE = ("autoencode", "ballet-probe", "mqar", "uav-small")
MORE = (
    "tmaze --env CartPole-v1",
    "tmaze --learner ppo",
    "tmaze --memory hcam --memory.top-k 3 --learner.gamma 0.5 --no-such 3",
    "tmaze --set corridor-length=7 --set other=true --set name=x",
    "tmaze --seed x",
    "ppo --env.id=CartPole-v1 --set a=0.5",
    "tmaze --policy.memory.dim 16 --memory hcam",
    "mqar --memory stack --seed 3",
    "spread --memory hcam",
    "spread --method gamatr --memory titans",
    "team --env a:b --set n=3",
    "uav-three --method gamatr-no-recurrence --learner gamatr",
    "uav-small --memory lstm --learner metagame --method matrpo",
    "uav-small --method happo --method hatrpo --memory lstm --memory sink --learner clip --learner gamatr",
    "uav-city --learner sequential --gamatr.damping 0.2 --memory.dim 32",
)


def cases() -> list[str]:
    """Return command lines after `scrubjay train`, of all recipes, memories, methods and learners."""
    return [
        *RECIPES,
        *(f"{recipe} --memory {memory}" for recipe in ONE_RECIPE_PER_TYPE for memory in list_memories()),
        *(f"{recipe} --method {method}" for recipe in ("uav-three", "spread") for method in METHODS),
        *(f"uav-small --learner {learner}" for learner in load_catalogue().learners["team"]),
        *MORE,
    ]


def capture_help(capsys, function, arguments: list[str]) -> str:
    """Return the text that `function` prints before it exits."""
    with pytest.raises(SystemExit) as stop:
        function(arguments[0], arguments[1:])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("line", cases())
def test_the_help_equals_that_of_the_classes(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    arguments = [*line.split(), "--help"]
    help_text = capture_help(capsys, explain, arguments)
    assert "--seed INT" in help_text
    assert help_text == capture_help(capsys, override, arguments)


@pytest.mark.parametrize(
    "line",
    [
        "tmazee --help",
        "tmaze --memory gruu --help",
        "tmaze --memory --help",
        "tmaze --learner gamatr --help",
        "uav-small --learner ppo --help",
        "uav-small --method gamatrr --help",
        "tmaze --set corridor --help",
        "tmaze --seed --help",
        "tmaze --memory.dim --help",
        "uav-small --learner.damping --help",
        "tmaze --device tpu --help",
        "tmaze --memory stack --memory.parts gruu --help",
    ],
)
def test_errors_are_left_to_the_classes(line, capsys):
    arguments = line.split()
    explain(arguments[0], arguments[1:])
    with pytest.raises(UsageError):
        override(arguments[0], arguments[1:])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line", ["tmaze --memory stack --memory.parts gru+hcam -h", "mqar --memory stack --memory.dim 32 -h"]
)
def test_the_help_of_a_custom_stack_is_left_to_the_classes(line, capsys):
    arguments = line.split()
    explain(arguments[0], arguments[1:])
    assert capsys.readouterr().out == ""
    assert ".parts.1." in capture_help(capsys, override, arguments)


def test_nothing_is_printed_without_a_help_flag(capsys):
    explain("tmaze", ["--seed", "3"])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line",
    [
        "train tmaze --quiet --help",
        "train mqar --memory titans --help",
        "train uav-small --method happo --learner clip --help",
        "launch tmaze --memory hcam --help",
    ],
)
def test_help_imports_no_computing_package(line, modules_after):
    statement = f"from scrubjay.experiments.commands.main import main\nassert main({line.split()}) == 0"
    assert modules_after(statement).isdisjoint({"torch", "numpy", "gymnasium", "pettingzoo", "ray"})
