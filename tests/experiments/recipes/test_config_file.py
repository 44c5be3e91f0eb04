"""`scrubjay train [RECIPE] --config FILE`: YAML and JSON, merged with a recipe, and never trusted blindly."""

from __future__ import annotations

import dataclasses
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.experiments import RECIPES, EnvConfig, Run, with_memory
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.recipes.config_file import read_config
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.kinds import to_json
from scrubjay.experiments.strict_yaml import parse_yaml
from scrubjay.experiments.tasks import environments as names
from scrubjay.memory import list_memories

TINY = {"total_steps": 64, "segment_length": 8, "eval_episodes": 2, "env": {"num_envs": 4}}
TINY_FLAGS = ["--total-steps", "64", "--segment-length", "8", "--eval-episodes", "2", "--env.num-envs", "4"]
EVIL = "import pathlib\npathlib.Path('harm').touch()\n"


@pytest.fixture
def write(tmp_path_factory):
    """Return a function that writes a config file outside the current folder and returns its path."""
    folder = tmp_path_factory.mktemp("configs")

    def write_file(content: Any, name: str = "config.yaml"):
        text = content if isinstance(content, str) else json.dumps({"format": 2, **content})
        (folder / name).write_text(text)
        return folder / name

    return write_file


@pytest.mark.parametrize("name", RECIPES)
def test_the_config_of_every_recipe_survives_both_formats(name, write):
    config = RECIPES[name]()
    text = to_json(config)
    assert read_config(write(text, "config.json")) == config
    assert read_config(write(yaml.safe_dump(json.loads(text)), "config.yml"), name) == config


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory", list_memories())
@pytest.mark.parametrize("recipe", ["repeat-previous", "uav-small", "mqar"])
def test_a_file_that_names_a_memory_is_as_the_flag(recipe, memory, write):
    entry = {"memory": {"name": memory}}
    content = {"recipe": recipe, **(entry if recipe == "mqar" else {"policy": entry})}
    assert read_config(write(content)) == override(recipe, ["--memory", memory])


@pytest.mark.parametrize(
    ("recipe", "content", "flags"),
    [
        ("tmaze", TINY, TINY_FLAGS),
        ("tmaze", {"policy": {"memory": {"window": 5}, "clock": True}}, ["--policy.clock"]),
        ("tmaze", {"learner": {"learning_rate": 0.5}}, ["--learner.learning-rate", "0.5"]),
        ("tmaze", {"env": {"kwargs": {"corridor_length": 7}}}, ["--set", "corridor_length=7"]),
        ("uav-small", {"method": "mappo", "seed": 3}, ["--method", "mappo", "--seed", "3"]),
        ("uav-small", {"learner": {"name": "consensus"}}, ["--learner", "consensus"]),
        ("uav-small", {"policy": {"memory": {"name": "gru"}}}, ["--memory", "gru"]),
        ("mqar", {"suite": {"length": 32}, "batch_rows": 2}, ["--suite.length", "32", "--batch-rows", "2"]),
        ("ppo", {"env": {"id": "CartPole-v1"}}, ["--env", "CartPole-v1"]),
    ],
)
def test_a_part_of_a_config_changes_the_recipe_as_flags_do(recipe, content, flags, write):
    if recipe == "tmaze" and "policy" in content:
        flags = ["--memory", "sink", "--memory.window", "5", *flags]
        content["policy"]["memory"]["name"] = "sink"
    assert read_config(write({"recipe": recipe, **content})) == override(recipe, flags)
    assert read_config(write(content), recipe) == override(recipe, flags)


def test_entries_replace_lists_and_settings_of_the_environment(write):
    assert RECIPES["uav-three"]().env.kwargs == {"preset": "paper", "num_uavs": 3}
    config: Any = read_config(write({"env": {"kwargs": {"num_users": 4}}}), "uav-three")
    assert config.env.kwargs == {"num_users": 4}


def test_a_config_of_no_recipe_needs_all_fields(write, tiny):
    content = json.loads(to_json(tiny()))
    assert read_config(write(content)) == tiny()
    del content["seed"]
    with pytest.raises(ValueError, match=r"recipe='tiny' is no recipe, .*; it lacks seed"):
        read_config(write(content))


def test_flags_override_the_file(write):
    file = write({"recipe": "tmaze", "seed": 3, **TINY})
    config: Any = override(
        None, ["--seed", "4", "--memory", "gru", "--set", "corridor_length=9"], read_config(file)
    )
    assert (config.seed, config.total_steps, config.env.num_envs) == (4, 64, 4)
    assert config.memory == with_memory(RECIPES["tmaze"](), "gru").memory
    assert config.env.kwargs == {"corridor_length": 9}


def test_the_example_of_the_documentation_is_as_the_flags(write):
    page = (Path(__file__).parents[3] / "docs" / "guide" / "train.md").read_text()
    (example,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    flags = [
        "--total-steps",
        "4000",
        "--memory",
        "gru",
        "--memory.dim",
        "32",
        "--learner.learning-rate",
        "1e-3",
    ]
    expected = override("tmaze-demo", [*flags, "--set", "corridor_length=10"])
    assert read_config(write(example)) == expected


def test_numbers_and_words_of_yaml_are_those_of_the_core_schema(write):
    text = "format: 2\nrecipe: ppo\nenv:\n  id: x\n  kwargs:\n"
    values = {
        "1e-3": 1e-3, "1E3": 1e3, "-.5": -0.5, "+7": 7, "0": 0, "true": True, "False": False, "'no'": "no",
        '"010"': "010", "word": "word", "1e": "1e", ".inf": float("inf"), "7.": 7.0,
    }  # fmt: skip
    lines = "".join(f"    a{number}: {value}\n" for number, value in enumerate(values))
    config: Any = read_config(write(text + lines))
    read = list(config.env.kwargs.values())
    assert [*map(repr, read)] == [*map(repr, values.values())]
    for word in ("no", "Yes", "on", "010", "0x1F", "1_000", "1:30", "2026-01-01", "<<", "0b1"):
        with pytest.raises(ValueError, match=r"line 6: .* in quotes"):
            read_config(write(f"{text}    a: {word}\n"))


texts = st.text(st.characters(max_codepoint=0xD7FF))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(values)
def test_json_is_yaml_with_the_same_values_and_types(value):
    read = parse_yaml(json.dumps(value), "text")
    assert read == value
    assert repr(read) == repr(value)


LAUGHS = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
ERRORS = {
    "aliases": (LAUGHS, "line 2: aliases are not supported"),
    "twice": ("format: 2\nseed: 1\nseed: 2\n", "line 3: the entry 'seed' occurs twice"),
    "twice below": ("format: 2\nenv: {num_envs: 1, num_envs: 2}", "line 2: the entry 'num_envs' occurs"),
    "tag": ("!!python/object/apply:os.mkdir [harm]", "could not determine a constructor"),
    "tag below": ("format: 2\nrecipe: !!python/name:os.mkdir x", "could not determine a constructor"),
    "documents": ("format: 2\n---\nformat: 2\n", "expected a single document"),
    "name": ("format: 2\n3: 4\n", "line 2: the name 3 is no text"),
    "list": ("[1, 2]", r"holds \[1, 2\]; expected the fields of a config"),
    "nothing": ("", "holds None; expected the fields"),
    "deep": ("[" * 5000, "nested too deeply"),
    "large": ("#" * 2**17 + "\n", "has 131,073 bytes: the limit is 131,072"),
    "number": (f"format: 2\nseed: {'9' * 5000}\n", "limit"),
    "format": ("recipe: tmaze\n", "has no entry format; add format: 2"),
    "old format": ("format: 1\nrecipe: tmaze\n", "reads format 2"),
    "no recipe": ("format: 2\nseed: 3\n", "it names no recipe; add the entry recipe, or call"),
    "recipe": ("format: 2\nrecipe: tmase\n", "recipe='tmase' is no recipe.*did you mean 'tmaze'"),
    "kind": ("format: 2\nrecipe: tmaze\nkind: team\n", "recipe 'tmaze' has the kind 'train'"),
    "field": ("format: 2\nrecipe: tmaze\nsteps: 3\n", "config has no field steps; its fields are"),
    "field below": ("format: 2\nrecipe: tmaze\nlearner: {lr: 3}\n", "config.learner has no field lr"),
    "type": ("format: 2\nrecipe: tmaze\nseed: 1.5\n", "config.seed=1.5: expected int"),
    "value": ("format: 2\nrecipe: tmaze\nseed: -1\n", "seed=-1: must not be negative"),
    "memory": ("format: 2\nrecipe: tmaze\npolicy: {memory: {name: hcamm}}", "'hcamm'.*did you mean 'hcam'"),
    "learner": ("format: 2\nrecipe: tmaze\nlearner: {name: consensus}", "unknown learner 'consensus'"),
    "method": ("format: 2\nrecipe: uav-small\nmethod: mappa\n", "did you mean 'mappo'"),
    "setting": ("format: 2\nrecipe: tmaze\nenv: {kwargs: {a-b: 1}}\n", "'a-b', which is no Python name"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_a_wrong_file_is_refused_in_one_line(name, write, usage_error):
    text, message = ERRORS[name]
    file = write(text)
    error = usage_error("train", "--config", file)
    assert str(file) in error
    with pytest.raises(ValueError, match=message):
        read_config(file)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", '{"format": 2, "seed": 1, "seed": 2}', "the entry 'seed' occurs twice"),
        ("x.json", "format: 2\n", "is not JSON"),
        ("x.json", "[" * 10**5, "nested too deeply"),
        ("x.txt", "format: 2\n", "must end in .json, .yaml, .yml"),
        ("x.yaml", "a: \x00", "is not YAML"),
    ],
)
def test_a_wrong_format_is_named(name, text, message, write, usage_error):
    assert message in usage_error("train", "tmaze", "--config", write(text, name))


def test_a_missing_file_and_a_second_recipe_are_named(write, usage_error, tmp_path):
    assert "No such file" in usage_error("train", "--config", "nowhere.yaml")
    file = write({"recipe": "tmaze"})
    message = usage_error("train", "tmaze-demo", "--config", file)
    assert "recipe='tmaze', but the command names the recipe 'tmaze-demo'" in message
    assert "unknown option '--sed'; did you mean '--seed'?" in usage_error(
        "train", "--config", file, "--sed", 3
    )
    assert "--trust requires --config FILE" in usage_error("train", "tmaze", "--trust")
    assert "unknown recipe '--seed'" in usage_error("train", "--seed", "3")


def test_a_second_name_of_a_learner_is_refused_where_no_recipe_gives_its_settings(write, tiny):
    content = json.loads(to_json(RECIPES["uav-small"]()))
    content |= {"recipe": "own", "learner": {"name": "consensus"}}
    with pytest.raises(ValueError, match=r"learner\.name='consensus': write 'gamatr' and its settings"):
        read_config(write(content))


def test_a_run_is_trained_again_from_its_config(finished_run, here, assert_same, tmp_path):
    code, out, err = here(
        "train", "--config", finished_run.path / "config.json", "--run-dir", "again", "--quiet"
    )
    assert (code, err) == (0, ""), out
    again = Run.load(tmp_path / "again")
    assert again.config == finished_run.config
    assert_same(again, finished_run)


def test_help_shows_the_values_of_the_file(write, here, monkeypatch, tmp_path_factory):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for steps in (1234, 4321):
        file = write({"recipe": "tmaze", "total_steps": steps})
        code, out, _ = here("train", "--config", file, "--help")
        assert code == 0
        assert str(steps) in out


def test_an_extended_run_names_two_totals_so_the_user_chooses(finished_run, write):
    config = finished_run.config.with_total_steps(384, 192)
    file = write(to_json(config), "config.json")
    with pytest.raises(UsageError, match=r"total_steps=384: .* extended from 192 steps; add --total-steps N"):
        override(None, [], read_config(file))
    again = override(None, ["--total-steps", "384"], read_config(file))
    assert again == dataclasses.replace(finished_run.config, total_steps=384)


@pytest.fixture
def evil(tmp_path, write, monkeypatch):
    """Config file that names an environment of a module in the current folder."""
    monkeypatch.setattr(names, "_USER_NAMES", set())
    (tmp_path / "evil.py").write_text(EVIL)
    sys.modules.pop("evil", None)
    return write({"recipe": "ppo", **TINY, "env": {"id": "evil:make", "kwargs": {"size": 3}, "num_envs": 4}})


@pytest.mark.parametrize("flags", [[], ["--seed", 3, "--set", "size=4"], ["--env.kwargs.size", "3"]])
def test_a_file_that_names_an_environment_runs_no_code(flags, evil, here, tmp_path):
    code, out, err = here("train", "--config", evil, *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"environment 'evil:make': {evil} names it and --env does not" in err
    assert "add --trust" in err
    assert not (tmp_path / "harm").exists()
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("flags", [["--trust"], ["--env", "evil:make"]])
def test_a_user_can_allow_the_environment_of_a_file(flags, evil, here, tmp_path):
    """The code then runs. It has no function `make`."""
    code, _, err = here("train", "--config", evil, *flags)
    assert code == 2
    assert "evil" in err
    assert "trust" not in err
    assert (tmp_path / "harm").exists()
    names._USER_NAMES.clear()
    start: Any = read_config(evil)
    assert isinstance(start.env.id, UntrustedName)
    config: Any = override(None, ["--env", "evil:make"], start)
    assert type(config.env.id) is str
    assert config.env.kwargs == {"size": 3}, "the permission keeps the settings of the file"
    other: Any = override(None, ["--env", "CartPole-v1"], start)
    assert other.env.kwargs == {}


def test_a_recipe_needs_no_trust_for_its_own_environment(write, monkeypatch):
    recipe = dataclasses.replace(
        RECIPES["ppo"],
        name="own",
        make=lambda: dataclasses.replace(RECIPES["ppo"](), env=EnvConfig("own:make")),
    )
    monkeypatch.setitem(RECIPES, "own", recipe)
    config: Any = read_config(write({"env": {"num_envs": 4}}), "own")
    assert (type(config.env.id), config.env.num_envs) == (str, 4)
    config = read_config(write({"env": {"kwargs": {"path": "/"}}}), "own")
    assert isinstance(config.env.id, UntrustedName)


@pytest.mark.parametrize(
    "words",
    [
        ("launch", "ppo", "--config", "c.yaml"),
        ("sweep", "ppo", "--config=c.yaml", "--param", "seed=0,1", "--out", "out"),
        ("compare", "--recipes", "tmaze-demo", "--out", "out", "--config", "c.yaml"),
        ("compare", "--recipes", "tmaze-demo", "--out", "out", "--", "--config", "c.yaml"),
    ],
)
def test_other_commands_name_the_way_out(words, usage_error, here):
    assert (
        "unknown option '--config': only scrubjay train reads a config file; write the entries of the "
        "file as flags of train, such as --total-steps 4000"
    ) in usage_error(*words)


def test_an_option_of_train_among_settings_of_runs_is_named(usage_error):
    words = ("compare", "--recipes", "tmaze-demo", "--out", "out", "--", "--quiet")
    assert "option '--quiet' belongs to scrubjay train; the settings of runs do not" in usage_error(*words)


def test_a_large_file_config_is_limited_without_trust(write, usage_error):
    file = write({"recipe": "tmaze-demo", "env": {"num_envs": 10**9}})
    assert "num_envs=1,000,000,000" in usage_error("train", "--config", file)
