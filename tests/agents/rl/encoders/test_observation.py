from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from scrubjay.agents import PPO, Policy, PolicyConfig, PPOConfig, Sampler
from scrubjay.agents.rl.auxiliary import Reconstruction
from scrubjay.agents.rl.encoders.observation import IndexEncoder, ObservationEncoder
from scrubjay.agents.rl.observations import from_leaves, is_batched, leaf_spaces, to_leaves, to_tensors
from scrubjay.agents.rl.segment import Observation, Segment
from scrubjay.memory import make_config

NESTED = spaces.Dict(
    {
        "camera": spaces.Box(0, 255, (20, 24, 3), np.uint8),
        "body": spaces.Dict(
            {"speed": spaces.Box(-np.inf, np.inf, (2,)), "gear": spaces.Discrete(4, start=-1)}
        ),
        "flags": spaces.Tuple([spaces.MultiBinary(3), spaces.MultiDiscrete([2, 6], start=[0, 5])]),
    }
)
SPACES = {
    "vector": spaces.Box(-np.inf, np.inf, (5,)),
    "matrix": spaces.Box(-1, 1, (5, 2), np.float64),
    "bytes": spaces.Box(0, 255, (16,), np.uint8),
    "scalar": spaces.Box(0, 1, ()),
    "discrete": spaces.Discrete(7, start=2),
    "multi_discrete": spaces.MultiDiscrete([3, 4, 2]),
    "grid_of_choices": spaces.MultiDiscrete(np.array([[3, 4], [2, 2]])),
    "multi_binary": spaces.MultiBinary((2, 3)),
    "image_channels_last": spaces.Box(0, 255, (40, 36, 3), np.uint8),
    "image_channels_first": spaces.Box(0, 255, (4, 84, 84), np.uint8),
    "image_of_floats": spaces.Box(0, 1, (9, 11, 3)),
    "grayscale_image": spaces.Box(0, 255, (40, 36), np.uint8),
    "image_video": spaces.Box(0, 255, (4, 40, 36, 3), np.uint8),
    "image_stack_of_floats": spaces.Box(0, 1, (2, 3, 9, 11)),
    "tiny_image": spaces.Box(0, 10, (3, 3, 3), np.uint8),
    "nested": NESTED,
}


def batch(space: spaces.Space, size: int, seed: int = 0) -> Observation:
    space.seed(seed)
    samples = [to_leaves(to_tensors(space, space.sample(), torch.device("cpu"))) for _ in range(size)]
    return from_leaves({key: torch.stack([sample[key] for sample in samples]) for key in samples[0]})


@pytest.mark.parametrize("name", SPACES)
def test_rows_are_encoded_alone_and_tell_observations_apart(name: str) -> None:
    space = SPACES[name]
    torch.manual_seed(0)
    encoder = ObservationEncoder(space, 16)
    observations = batch(space, 6)
    features = encoder(observations)
    assert features.shape == (6, 16)
    first = from_leaves({key: leaf[:2] for key, leaf in to_leaves(observations).items()})
    torch.testing.assert_close(encoder(first), features[:2])
    rows = torch.cat([leaf.reshape(6, -1).float() for leaf in to_leaves(observations).values()], dim=1)
    assert len(features.detach().round(decimals=4).unique(dim=0)) == len(rows.unique(dim=0))


@pytest.mark.parametrize("name", SPACES)
def test_every_parameter_receives_a_finite_gradient(name: str) -> None:
    space = SPACES[name]
    torch.manual_seed(0)
    encoder, decoder = ObservationEncoder(space, 16), Reconstruction(space, 16)
    observations = batch(space, 200 if "image" not in name else 4)
    decoder(encoder(observations), observations).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0


def test_dict_keys_say_where_a_leaf_comes_from() -> None:
    assert list(leaf_spaces(NESTED)) == ["body/gear", "body/speed", "camera", "flags/0", "flags/1"]


def test_both_image_layouts_see_the_same() -> None:
    torch.manual_seed(0)
    last = ObservationEncoder(spaces.Box(0, 255, (32, 48, 3), np.uint8), 16)
    first = ObservationEncoder(spaces.Box(0, 255, (3, 32, 48), np.uint8), 16)
    first.load_state_dict(last.state_dict())
    images = torch.randint(256, (2, 32, 48, 3), dtype=torch.uint8)
    torch.testing.assert_close(first(images.movedim(-1, 1).contiguous()), last(images))


def test_images_of_bytes_and_of_floats_mean_the_same() -> None:
    torch.manual_seed(0)
    of_bytes = ObservationEncoder(spaces.Box(0, 255, (16, 16, 3), np.uint8), 16)
    of_floats = ObservationEncoder(spaces.Box(0, 1, (16, 16, 3)), 16)
    of_floats.load_state_dict(of_bytes.state_dict())
    images = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    torch.testing.assert_close(of_floats(images / 255), of_bytes(images))


def test_a_policy_acts_and_learns_the_same_from_bytes_and_from_floats() -> None:
    def sample_and_learn(dtype: str) -> tuple[Segment, dict[str, float]]:
        envs = gymnasium.make_vec(
            "scrubjay.envs:scrubjay/Ballet-v0",
            num_envs=2,
            autoreset_mode="SameStep",
            num_dancers=1,
            delay=1,
            dtype=dtype,
        )
        torch.manual_seed(0)
        config = PolicyConfig(memory=make_config("gru", dim=16), reconstruction=True)
        policy = Policy(envs.single_observation_space, envs.single_action_space, config)
        segment = Sampler(envs, policy, 24, seed=0).collect()
        learner = PPO(policy, PPOConfig(epochs=1, num_minibatches=1, reconstruction_coefficient=1.0))
        return segment, learner.update(segment)

    (floats, learned_of_floats), (of_bytes, learned_of_bytes) = (
        sample_and_learn("float32"),
        sample_and_learn("uint8"),
    )
    byte_observations: Any = of_bytes.observations
    assert byte_observations["image"].dtype == torch.uint8
    for name in ("actions", "log_probs", "values"):
        assert torch.equal(getattr(floats, name), getattr(of_bytes, name))
    assert learned_of_floats == learned_of_bytes


@pytest.mark.parametrize("name", SPACES)
def test_a_single_observation_is_told_from_a_batch(name: str) -> None:
    space = SPACES[name]
    assert not is_batched(space, to_tensors(space, space.sample(), torch.device("cpu")))
    assert is_batched(space, batch(space, 2))


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match=r"\(4,\).*expected \(5,\)"):
        is_batched(SPACES["vector"], torch.zeros(4))


@pytest.mark.parametrize("space", [spaces.Text(3), spaces.Dict({"a": spaces.Sequence(spaces.Discrete(2))})])
def test_unsupported_spaces_are_named(space: spaces.Space) -> None:
    with pytest.raises(TypeError, match=r"(Text|Sequence).*is not supported; use Box"):
        ObservationEncoder(space, 16)


def test_an_empty_dict_is_refused() -> None:
    with pytest.raises(TypeError, match="empty"):
        ObservationEncoder(spaces.Dict({}), 16)


@pytest.mark.parametrize("sizes", [[2, 3, 4], [300, 2]], ids=["few", "many"])
def test_choices_are_the_sum_of_their_embeddings_however_it_is_made(sizes):
    encode = IndexEncoder(spaces.MultiDiscrete(sizes), 8).double()
    values = torch.stack([torch.randint(size, (5,)) for size in sizes], dim=1)
    parts = encode.embedding.weight.split(sizes)
    expected = torch.stack([part[column] for part, column in zip(parts, values.T, strict=True)]).sum(dim=0)
    torch.testing.assert_close(encode(values), expected)
    probe = torch.randn(5, 8, dtype=torch.double)
    (gradient,) = torch.autograd.grad((encode(values) * probe).sum(), encode.embedding.weight)
    (expected_gradient,) = torch.autograd.grad((expected * probe).sum(), encode.embedding.weight)
    torch.testing.assert_close(gradient, expected_gradient)
