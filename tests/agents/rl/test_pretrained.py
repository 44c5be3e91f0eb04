"""Policies in a folder: they act as they did, and nothing else is taken for one."""

from __future__ import annotations

import json
import pickle

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from scrubjay.agents import Origin, Policy, PolicyConfig, Spaces, TeamPolicy, TeamPolicyConfig
from scrubjay.memory import list_memories, make_config

MAZE = "scrubjay.envs:scrubjay/TMaze-v0"
SEEN = spaces.Dict({"picture": spaces.Box(0, 255, (12, 12, 3), np.uint8), "place": spaces.Discrete(5)})
ACTIONS = [
    spaces.Discrete(3, start=1),
    spaces.MultiDiscrete([2, 3]),
    spaces.MultiBinary(3),
    spaces.Box(np.array([-1, 0], np.float32), np.array([1, np.inf], np.float32)),
]


def episode(policy: Policy, seed: int = 0) -> list[np.ndarray]:
    """Return what a policy does and remembers through an episode."""
    env = gymnasium.make(MAZE, corridor_length=6)
    observation, _ = env.reset(seed=seed)
    state, over, told = None, False, []
    while not over:
        action, state = policy.act(observation, state)
        told += [np.asarray(action), *(value.numpy() for value in state.values())]
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    env.close()
    return told


def shaken(policy: Policy) -> Policy:
    """Return the policy with weights far from those of the beginning, as after training."""
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a policy of two layers."""
    spaces_of = Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    config = PolicyConfig(make_config("hcam", dim=8, num_layers=2, chunk_size=2, num_chunks=3))
    config.build(spaces_of).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.parametrize("memory", list_memories())
def test_a_loaded_policy_acts_bit_by_bit_as_the_one_that_was_saved(memory, tmp_path):
    with gymnasium.make(MAZE) as env:
        of_maze = Spaces(env.observation_space, env.action_space)
    config = PolicyConfig(make_config(memory, dim=8), reconstruction=True)
    policy = shaken(config.build(of_maze))
    policy.save_pretrained(tmp_path)
    drawn = torch.get_rng_state()
    loaded = Policy.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), drawn), "loading draws from the user's generator"
    assert loaded.config == config
    assert not loaded.training
    for before, after in zip(episode(policy), episode(loaded), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_so_does_one_of_other_spaces(action, tmp_path):
    policy = shaken(Policy(SEEN, action, PolicyConfig(make_config("gru", dim=8))))
    policy.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(tmp_path)
    assert (loaded.observation_space, loaded.action_space) == (SEEN, action)
    SEEN.seed(0)
    seen = [SEEN.sample() for _ in range(5)]
    for observation in seen:
        np.testing.assert_array_equal(policy.act(observation)[0], loaded.act(observation)[0])


@pytest.mark.parametrize("shared", [True, False])
def test_so_does_a_team(shared, tmp_path):
    of_team = Spaces(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), 2)
    config = TeamPolicyConfig(make_config("gru", dim=8), shared=shared)
    team = config.build(of_team)
    team.save_pretrained(tmp_path)
    loaded = TeamPolicy.from_pretrained(tmp_path)
    assert loaded.config == config
    alive = torch.ones(3, 2, dtype=torch.bool)
    steps = [
        one.step(torch.linspace(-1, 1, 24).view(3, 2, 4), alive, one.initial_state(3), deterministic=True)
        for one in (team, loaded)
    ]
    assert torch.equal(steps[0].action, steps[1].action)
    assert torch.equal(steps[0].value, steps[1].value)
    with pytest.raises(ValueError, match="is of a 'TeamPolicy', not of a Policy"):
        Policy.from_pretrained(tmp_path)


def test_a_policy_of_other_numbers_keeps_them(tmp_path):
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)).to(torch.float64)
    policy.save_pretrained(tmp_path)
    loaded = Policy.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.float64}


def test_saving_again_replaces_a_policy_and_nothing_else(folder):
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    policy.save_pretrained(folder)
    assert Policy.from_pretrained(folder).config == policy.config
    (folder / "config.json").write_text('{"kind": "train"}')
    with pytest.raises(ValueError, match="something else than a policy"):
        policy.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()) == {"kind": "train"}


def changed(folder, *path, value):
    """Change a field of config.json, or take it away where the value is `...`."""
    fields = inner = json.loads((folder / "config.json").read_text())
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(fields))


def tried(folder) -> tuple[Policy | None, str]:
    """Return the policy in a folder, or why there is none."""
    try:
        return Policy.from_pretrained(folder), ""
    except ValueError as error:
        return None, str(error)


MEMORY = ("policy", "memory")
SHAPE = ("spaces", "observation", "shape")


@pytest.mark.parametrize(
    "value", [-1, 0, 7, 10**9, 10**30, 1.5, "8", None, True, [], float("nan"), ...], ids=repr
)
@pytest.mark.parametrize(
    "path",
    [
        (*MEMORY, "dim"),
        (*MEMORY, "num_layers"),
        (*MEMORY, "chunk_size"),
        (*MEMORY, "num_chunks"),
        (*MEMORY, "name"),
        MEMORY,
        ("policy", "reconstruction"),
        ("policy",),
        SHAPE,
        ("spaces", "observation", "low"),
        ("spaces", "action", "n"),
        ("spaces", "num_agents"),
        ("spaces",),
        ("class",),
        ("library",),
    ],
    ids=".".join,
)
def test_a_strangers_number_is_one_clear_error_or_a_policy_that_acts(path, value, folder):
    changed(folder, *path, value=value)
    policy, refusal = tried(folder)
    if policy is not None:
        policy.act(np.zeros(3, np.float32))
        return
    assert str(folder) in refusal
    assert "\n" not in refusal
    assert len(refusal) < 1500


@pytest.mark.parametrize("name", list_memories())
def test_no_memory_is_built_larger_than_its_weights(name, folder):
    """Every number that can be huge is: no room is taken before it is known how much."""
    of_maze = Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    PolicyConfig(make_config(name, dim=8)).build(of_maze).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())["policy"]["memory"]
    for field in [field for field, value in fields.items() if type(value) is int]:
        changed(folder, *MEMORY, value={**fields, field: 2**40})
        policy, refusal = tried(folder)
        assert str(folder) in refusal if policy is None else policy.memory.state_bytes() < 2**32


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "too deep"),
        ("[]", "not of a policy"),
        ("{}", "not of a policy"),
        ('{"library": "scrubjay"}', "lacks class, policy, spaces"),
        ('{"library": NaN}', "finite"),
        ('{"library": 1e999}', "finite"),
        ("1" * 5000, "digits"),
        (b"\xff", "utf-8"),
    ],
)
def test_what_is_no_config_is_named(text, told, folder):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=told):
        Policy.from_pretrained(folder)


def test_weights_that_are_not_the_configs_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)

    def refused(told, **change):
        save_file({**weights, **change}, file)
        with pytest.raises(ValueError, match=told):
            Policy.from_pretrained(folder)

    refused("critic.weight has shape \\[1, 4\\], expected \\[1, 8\\]", **{"critic.weight": torch.zeros(1, 4)})
    refused("wings is not of this policy", wings=torch.zeros(1))
    refused("NaN or inf in critic.bias", **{"critic.bias": torch.tensor([float("nan")])})
    refused("F32 and F64", **{"critic.bias": torch.zeros(1, dtype=torch.float64)})
    refused("I64", **{name: value.long() for name, value in weights.items()})
    save_file({name: value for name, value in weights.items() if name != "critic.bias"}, file)
    with pytest.raises(ValueError, match=r"critic\.bias is missing"):
        Policy.from_pretrained(folder)


def test_files_that_are_missing_cut_or_pickled_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"lacks config\.json.*snapshot_download"):
        Policy.from_pretrained("somebody/tmaze-hcam")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for damaged in (b"", whole[:50], whole[:-4], b"\xff" * 64, pickle.dumps({"critic.bias": print})):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            Policy.from_pretrained(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"lacks model\.safetensors"):
        Policy.from_pretrained(folder)


def test_what_cannot_be_read_again_is_not_written(tmp_path):
    from dataclasses import dataclass

    from scrubjay.memory.gru import GRUConfig

    @dataclass(frozen=True)
    class OwnConfig(GRUConfig):
        pass

    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), PolicyConfig(OwnConfig(dim=8)))
    with pytest.raises(ValueError, match="not registered"):
        policy.save_pretrained(tmp_path / "own", Origin())
    assert not (tmp_path / "own").exists()
