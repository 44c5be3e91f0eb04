from __future__ import annotations

import math
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.experiments.export import export_onnx, export_torch
from scrubjay.memory import list_memories, make_config

VECTOR = spaces.Box(-1, 1, (4,), np.float32)


# Law 8, in test_conformance.py, traces and exports the step of every memory; those of one memory of each
# package are written and read as well.
FAMILIES = {type(make_config(name)).__module__.split(".")[2]: name for name in reversed(list_memories())}


def make_policy(memory: str, observation_space: gymnasium.Space = VECTOR, **fields: Any) -> Policy:
    torch.manual_seed(0)
    config = PolicyConfig(memory=make_config(memory, dim=16), **fields)
    return Policy(observation_space, spaces.Discrete(3), config)


@pytest.mark.parametrize(
    "memory",
    [
        pytest.param(name, marks=pytest.mark.slow if name in FAMILIES.values() else pytest.mark.matrix)
        for name in list_memories()
    ],
)
def test_the_exported_program_is_the_policy(memory, tmp_path):
    policy = make_policy(memory)
    assert export_torch(policy, tmp_path / "policy.pt2") <= 1e-5
    program = torch.export.load(tmp_path / "policy.pt2").module()
    observation = torch.rand(7, 4)
    action, value, state = program(observation, policy.initial_state(7), torch.ones(7, dtype=torch.bool))
    expected, expected_state = policy.act(observation)
    assert np.array_equal(action.numpy(), expected)
    assert value.shape == (7,)
    assert all(torch.allclose(state[name], expected_state[name], atol=1e-5) for name in expected_state)


def test_dict_observations_can_be_exported(tmp_path):
    space = spaces.Dict({"card": spaces.Discrete(5), "place": VECTOR})
    assert export_torch(make_policy("gru", space), tmp_path / "policy.pt2") <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    ["torch", pytest.param("onnx", marks=pytest.mark.requires("onnx", "onnxscript"))],
)
def test_statistics_and_a_separate_critic_can_be_exported(form, tmp_path):
    policy = make_policy("gru", separate_critic=True, normalize_observations=True)
    assert policy.normalizer is not None
    policy.normalizer.update(3 + torch.rand(9, 4), SingleProcess())
    export = {"torch": export_torch, "onnx": export_onnx}[form]
    assert export(policy, tmp_path / "policy") <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "form",
    ["torch", pytest.param("onnx", marks=pytest.mark.requires("onnx", "onnxscript"))],
)
def test_bytes_of_pictures_can_be_exported(form, tmp_path):
    space = gymnasium.make("scrubjay.envs:scrubjay/Ballet-v0", dtype="uint8").observation_space
    export = {"torch": export_torch, "onnx": export_onnx}[form]
    assert export(make_policy("gru", space), tmp_path / "policy") <= 1e-4


# A GRU's is made of pictures above.
@pytest.mark.requires("onnx", "onnxscript")
@pytest.mark.parametrize(
    "memory",
    ["none", pytest.param("gru", marks=pytest.mark.matrix), pytest.param("hcam", marks=pytest.mark.slow)],
)
def test_the_onnx_model_is_the_policy(memory, tmp_path):
    assert export_onnx(make_policy(memory), tmp_path / "policy.onnx") <= 1e-4
    assert (tmp_path / "policy.onnx").exists()


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize(("change", "message"), [(1.0, r"1\.0e\+00"), (math.nan, "nan")])
def test_a_wrong_program_is_caught(change, message, tmp_path, monkeypatch):
    policy, other = make_policy("gru"), make_policy("gru")
    with torch.no_grad():
        other.critic.bias.add_(change)
    export_torch(other, tmp_path / "other.pt2")
    wrong = torch.export.load(tmp_path / "other.pt2")
    monkeypatch.setattr(torch.export, "load", lambda path: wrong)
    with pytest.raises(ValueError, match=rf"differs from the policy by {message}"):
        export_torch(policy, tmp_path / "policy.pt2")


def test_onnx_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'scrubjay\[onnx\]'"):
        export_onnx(make_policy("gru"), tmp_path / "policy.onnx")
