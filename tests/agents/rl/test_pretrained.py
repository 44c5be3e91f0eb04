"""Policies in a folder act after loading as before, and other content is refused."""

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
    """Return the actions and memory states of a policy in one episode."""
    env = gymnasium.make(MAZE, corridor_length=6)
    observation, _ = env.reset(seed=seed)
    state, over, outputs = None, False, []
    while not over:
        action, state = policy.act(observation, state)
        outputs += [np.asarray(action), *(value.numpy() for value in state.values())]
        observation, _, terminated, truncated, _ = env.step(action)
        over = terminated or truncated
    env.close()
    return outputs


def randomize_weights(policy: Policy) -> Policy:
    """Return the policy with random weights, unlike the initial ones, as after training."""
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return policy.eval()


@pytest.fixture
def folder(tmp_path):
    """Return a folder with a policy of two layers."""
    policy_spaces = Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    config = PolicyConfig(make_config("hcam", dim=8, num_layers=2, chunk_size=2, num_chunks=3))
    config.build(policy_spaces).save_pretrained(tmp_path / "policy")
    return tmp_path / "policy"


@pytest.mark.one_in(3)
@pytest.mark.parametrize("memory", list_memories())
def test_a_loaded_policy_acts_bit_by_bit_as_the_one_that_was_saved(memory, tmp_path):
    with gymnasium.make(MAZE) as env:
        of_maze = Spaces(env.observation_space, env.action_space)
    config = PolicyConfig(make_config(memory, dim=8), reconstruction=True)
    policy = randomize_weights(config.build(of_maze))
    policy.save_pretrained(tmp_path)
    rng_state = torch.get_rng_state()
    loaded_policy = Policy.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), rng_state), "loading draws from the user's generator"
    assert loaded_policy.config == config
    assert not loaded_policy.training
    for before, after in zip(episode(policy), episode(loaded_policy), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("action", ACTIONS, ids=str)
def test_so_does_one_of_other_spaces(action, tmp_path):
    policy = randomize_weights(Policy(SEEN, action, PolicyConfig(make_config("gru", dim=8))))
    policy.save_pretrained(tmp_path)
    loaded_policy = Policy.from_pretrained(tmp_path)
    assert (loaded_policy.observation_space, loaded_policy.action_space) == (SEEN, action)
    SEEN.seed(0)
    observations = [SEEN.sample() for _ in range(5)]
    for observation in observations:
        np.testing.assert_array_equal(policy.act(observation)[0], loaded_policy.act(observation)[0])


@pytest.mark.parametrize("shared", [True, False])
def test_so_does_a_team(shared, tmp_path):
    of_team = Spaces(spaces.Box(-1, 1, (4,)), spaces.Discrete(3), 2)
    config = TeamPolicyConfig(make_config("gru", dim=8), shared=shared)
    team = config.build(of_team)
    team.save_pretrained(tmp_path)
    loaded_policy = TeamPolicy.from_pretrained(tmp_path)
    assert loaded_policy.config == config
    alive = torch.ones(3, 2, dtype=torch.bool)
    steps = [
        one.step(torch.linspace(-1, 1, 24).view(3, 2, 4), alive, one.initial_state(3), deterministic=True)
        for one in (team, loaded_policy)
    ]
    assert torch.equal(steps[0].action, steps[1].action)
    torch.testing.assert_close(steps[0].value, steps[1].value, rtol=0, atol=0)
    with pytest.raises(ValueError, match="is the config of a 'TeamPolicy'; expected a Policy"):
        Policy.from_pretrained(tmp_path)


def test_a_policy_of_other_numbers_keeps_them(tmp_path):
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2)).to(torch.float64)
    policy.save_pretrained(tmp_path)
    loaded_policy = Policy.from_pretrained(tmp_path)
    assert {value.dtype for value in loaded_policy.state_dict().values()} == {torch.float64}


def test_saving_again_replaces_a_policy_and_nothing_else(folder):
    policy = Policy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    policy.save_pretrained(folder)
    assert Policy.from_pretrained(folder).config == policy.config
    (folder / "config.json").write_text('{"kind": "train"}')
    with pytest.raises(ValueError, match="is not the config of a policy"):
        policy.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text()) == {"kind": "train"}


def change_config(folder, *path, value):
    """Change a field of config.json, or delete it if the value is `...`."""
    fields = inner = json.loads((folder / "config.json").read_text())
    for name in path[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (folder / "config.json").write_text(json.dumps(fields))


def try_load(folder) -> tuple[Policy | None, str]:
    """Return the policy in a folder, or the error message of loading it."""
    try:
        return Policy.from_pretrained(folder), ""
    except ValueError as error:
        return None, str(error)


MEMORY = ("policy", "memory")
SHAPE = ("spaces", "observation", "shape")


@pytest.mark.one_in(3)
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
        ("format",),
    ],
    ids=".".join,
)
def test_a_strangers_number_is_one_clear_error_or_a_policy_that_acts(path, value, folder):
    change_config(folder, *path, value=value)
    policy, refusal = try_load(folder)
    if policy is not None:
        policy.act(np.zeros(3, np.float32))
        return
    assert str(folder) in refusal
    assert "\n" not in refusal
    assert len(refusal) < 1500


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", list_memories())
def test_no_memory_is_built_larger_than_its_weights(name, folder):
    """Every integer of the config is huge: sizes are checked before memory is allocated."""
    of_maze = Spaces(spaces.Box(-1, 1, (3,)), spaces.Discrete(2))
    PolicyConfig(make_config(name, dim=8)).build(of_maze).save_pretrained(folder)
    fields = json.loads((folder / "config.json").read_text())["policy"]["memory"]
    for field in [field for field, value in fields.items() if type(value) is int]:
        change_config(folder, *MEMORY, value={**fields, field: 2**40})
        policy, refusal = try_load(folder)
        assert str(folder) in refusal if policy is None else policy.memory.state_bytes() < 2**32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not valid JSON"),
        ("[" * 100_000, "too deeply"),
        ("[]", "not the config of a scrubjay policy"),
        ("{}", "not the config of a scrubjay policy"),
        ('{"library": "scrubjay"}', "has no format number: Scrubjay"),
        ('{"library": "scrubjay", "format": 1}', "has format 1: Scrubjay"),
        ('{"library": "scrubjay", "format": 2}', "has no class, policy, spaces"),
        ('{"library": NaN}', "finite"),
        ('{"library": 1e999}', "finite"),
        ("1" * 5000, "digits"),
        (b"\xff", "is not valid JSON: it is not UTF-8$"),
    ],
)
def test_what_is_no_config_is_named(text, message, folder):
    (folder / "config.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        Policy.from_pretrained(folder)


def test_weights_that_are_not_the_configs_are_named(folder):
    file = folder / "model.safetensors"
    weights = load_file(file)

    def check_error(message, **change):
        save_file({**weights, **change}, file)
        with pytest.raises(ValueError, match=message):
            Policy.from_pretrained(folder)

    check_error(
        "critic.weight has shape \\[1, 4\\], expected \\[1, 8\\]", **{"critic.weight": torch.zeros(1, 4)}
    )
    check_error("wings is not a weight of this policy", wings=torch.zeros(1))
    check_error("NaN or inf in critic.bias", **{"critic.bias": torch.tensor([float("nan")])})
    check_error("F32 and F64", **{"critic.bias": torch.zeros(1, dtype=torch.float64)})
    check_error("I64", **{name: value.long() for name, value in weights.items()})
    save_file({name: value for name, value in weights.items() if name != "critic.bias"}, file)
    with pytest.raises(ValueError, match=r"critic\.bias is missing"):
        Policy.from_pretrained(folder)


def test_files_that_are_missing_cut_or_pickled_are_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"config\.json is missing.*snapshot_download"):
        Policy.from_pretrained("somebody/tmaze-hcam")
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    for content in (b"", whole[:50], whole[:-4], b"\xff" * 64, pickle.dumps({"critic.bias": print})):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors"):
            Policy.from_pretrained(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"model\.safetensors is missing"):
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
