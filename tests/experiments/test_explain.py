"""The help of a recipe from what the catalogue keeps: the words that the config's own classes have for it."""

import pytest

from scrubjay.experiments import RECIPES
from scrubjay.experiments.catalogue import catalogue
from scrubjay.experiments.explain import explain
from scrubjay.experiments.recipes.methods import METHODS
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.words.arguments import UsageError
from scrubjay.memory import list_memories

ONE_OF_A_KIND = ("autoencode", "ballet-probe", "mqar", "uav-small")
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
        *(f"{recipe} --memory {memory}" for recipe in ONE_OF_A_KIND for memory in list_memories()),
        *(f"{recipe} --method {method}" for recipe in ("uav-three", "spread") for method in METHODS),
        *(f"uav-small --learner {learner}" for learner in catalogue().learners["team"]),
        *MORE,
    ]


def shown(capsys, function, words: list[str]) -> str:
    """Return what is printed before an exit."""
    with pytest.raises(SystemExit) as stop:
        function(words[0], words[1:])
    assert stop.value.code in (0, None)
    return capsys.readouterr().out


@pytest.mark.parametrize("line", cases())
def test_it_says_word_for_word_what_the_classes_say(line, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    words = [*line.split(), "--help"]
    told = shown(capsys, explain, words)
    assert "--seed INT" in told
    assert told == shown(capsys, override, words)


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
def test_it_leaves_complaints_to_the_classes(line, capsys):
    words = line.split()
    explain(words[0], words[1:])
    with pytest.raises(UsageError):
        override(words[0], words[1:])
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "line", ["tmaze --memory stack --memory.parts gru+hcam -h", "mqar --memory stack --memory.dim 32 -h"]
)
def test_it_leaves_a_stack_of_ones_own_to_the_classes(line, capsys):
    words = line.split()
    explain(words[0], words[1:])
    assert capsys.readouterr().out == ""
    assert ".parts.1." in shown(capsys, override, words)


def test_who_does_not_ask_for_help_is_told_nothing(capsys):
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
def test_nobody_waits_for_what_computes(line, modules_after):
    statement = f"from scrubjay.experiments.cli import main\nassert main({line.split()}) == 0"
    assert modules_after(statement).isdisjoint({"torch", "numpy", "gymnasium", "pettingzoo", "ray"})
