"""Command-line flags of a stack of memories: configs, errors, and a complete run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from scrubjay.experiments import Run, train
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.recipes import RECIPES
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.memory import make_config
from scrubjay.memory.stack import StackConfig

STACK = ["--memory", "stack", "--memory.parts", "gru+hcam", "--memory.dim", "16"]


def stack_of(recipe: str, *words: str) -> Any:
    return override(recipe, words).memory


@pytest.mark.parametrize("recipe", ["tmaze", "uav-small", "mqar"])
def test_parts_are_chosen_and_set_like_any_memory(recipe):
    hcam = {"dim": 16, **RECIPES[recipe].settings.get("hcam", {}), "chunk_size": 4}
    expected = StackConfig(16, (make_config("gru", dim=16), make_config("hcam", **hcam)), residual=False)
    words = [*STACK, "--memory.parts.1.chunk-size", "4", "--memory.no-residual"]
    assert stack_of(recipe, *words) == expected
    if recipe == "tmaze":
        long = [word.replace("--memory.", "--policy.memory.") for word in words]
        assert stack_of(recipe, *long) == expected


def test_a_stack_by_name_alone_has_the_recipes_width_or_the_one_given():
    width = RECIPES["tmaze"]().memory.dim
    assert stack_of("tmaze", "--memory", "stack") == make_config("stack", dim=width)
    assert stack_of("tmaze", "--memory", "stack", "--memory.dim=24") == make_config("stack", dim=24)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--memory.parts", "gru+hcamm"], "'hcamm'.*did you mean 'hcam'"),
        (["--memory.parts", ""], "unknown memory ''"),
        (["--memory.dim", "7"], "dim=7: .* even and at least 8"),
        (["--memory.dim", "wide"], "--memory.dim 'wide': expected a whole number"),
        (["--memory.parts.1.dim", "8"], r"parts\[1\], a GRUConfig, has dim=8, but the stack has dim=64"),
        (["--memory.parts.0.windowx", "8"], "did you mean '--policy.memory.parts.0.window'"),
        (["--memory.parts.0.window", "1"], "window=1"),
    ],
    ids=" ".join,
)
def test_what_cannot_be_is_said_in_one_line(words, message):
    with pytest.raises(UsageError, match=message):
        override("tmaze", ["--memory", "stack", *words])


@pytest.mark.slow
def test_a_stack_is_trained_stopped_resumed_evaluated_and_exported(here, tmp_path, assert_same):
    words = [*STACK, "--memory.parts.1.chunk-size", "4", "--set", "corridor_length=4", "--device", "cpu"]
    words += ["--total-steps", "192", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "3"]
    config: Any = override("tmaze-demo", words)
    code, out, err = here("train", "tmaze-demo", *words, "--run-dir", "whole")
    assert (code, err) == (0, "")
    whole = Run.load(tmp_path / "whole")
    assert whole.config == config
    stopped_run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, stopped_run.path) as engine:
        engine.update()
        engine.save()
    code, out, err = here("resume", "stopped")
    assert (code, err) == (0, "")
    assert_same(stopped_run, whole)
    code, out, err = here("eval", "stopped", "--episodes", 4)
    assert (code, err) == (0, "")
    assert "4 episodes" in out
    code, out, err = here("export", "stopped", "--out", "policy.pt2")
    assert code == 0, err
    program = torch.export.load(tmp_path / "policy.pt2").module()
    policy = stopped_run.policy
    observation = torch.as_tensor(policy.observation_space.sample())[None].float()
    action, _, state = program(observation, policy.initial_state(1), torch.ones(1, dtype=torch.bool))
    expected, expected_state = policy.act(observation)
    assert action.numpy().tolist() == expected.tolist()
    assert state.keys() == expected_state.keys() == policy.initial_state(1).keys()
    assert "1.contents_0" in state


def test_a_sequence_model_of_a_stack_is_trained(tmp_path):
    words = ["--total-steps", "4096", "--parameters", "20000", "--eval-items", "2", "--eval-longer", "2"]
    config: Any = override("mqar", [*STACK, *words])
    run = train(config, tmp_path / "run")
    assert Run.load(run.path).config == config
    assert run.result.keys() >= {"success"}
