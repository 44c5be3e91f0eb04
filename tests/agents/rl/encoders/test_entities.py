from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from scrubjay.agents.rl.encoders.observation import EntityEncoder, Pooling, SetEncoder, make_encoder


def space(users: int, agents: int = 3) -> spaces.Dict:
    return spaces.Dict(
        {
            "own": spaces.Box(-np.inf, np.inf, (3,), np.float32),
            "users": spaces.Box(-np.inf, np.inf, (users, 2), np.float32),
            "users_mask": spaces.MultiBinary(users),
            "adjacency": spaces.MultiBinary(agents),
        }
    )


def encoder(users: int = 4, agents: int = 3) -> EntityEncoder:
    torch.manual_seed(0)
    return EntityEncoder(space(users, agents), 8).double()


def make_leaves(users: Tensor, mask: Tensor, agents: int = 3) -> dict[str, Tensor]:
    own = torch.linspace(-1, 1, 3 * len(users), dtype=torch.float64).view(-1, 3)
    return {
        "own": own,
        "users": users,
        "users_mask": mask.double(),
        "adjacency": torch.ones(len(users), agents, dtype=torch.float64),
    }


@settings(max_examples=30, deadline=None)
@given(present=st.integers(0, 5), padding=st.integers(0, 4), seed=st.integers(0, 1000))
def test_neither_order_nor_padding_matters(present: int, padding: int, seed: int) -> None:
    """A permutation of a set, padded with NaN to any size, has the same encoding."""
    generator = torch.Generator().manual_seed(seed)
    total = max(1, present + padding)
    things = torch.randn(1, present, 2, generator=generator, dtype=torch.float64)
    slots = torch.full((1, total, 2), float("nan"), dtype=torch.float64)
    mask = torch.zeros(1, total, dtype=torch.bool)
    where = torch.randperm(total, generator=generator)[:present]
    slots[0, where], mask[0, where] = things[0], True
    tight = make_leaves(things, torch.ones(1, present, dtype=torch.bool)) if present else None
    permuted_output = encoder(total)(make_leaves(slots, mask))
    assert torch.isfinite(permuted_output).all()
    if tight is not None:
        torch.testing.assert_close(encoder(present)(tight), permuted_output)


def test_parameters_depend_on_neither_padding_nor_team() -> None:
    small, large = encoder(2, 2).state_dict(), encoder(9, 7).state_dict()
    assert {key: value.shape for key, value in small.items()} == {
        key: value.shape for key, value in large.items()
    }


def test_things_and_their_number_are_seen() -> None:
    users = torch.randn(1, 4, 2, dtype=torch.float64).expand(4, 4, 2).clone()
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 0, 0]]).bool()
    users[:, 1] = users[:, 0]
    users[1, 2] = users[1, 0]  # one more of the same
    users[2, 1] += 1  # another thing
    users[3, 2] += 1  # a thing that is not there
    observation = make_leaves(users, mask)
    observation["own"] = observation["own"][:1].expand(4, 3)
    base, more, other, absent = encoder()(observation)
    torch.testing.assert_close(base, absent)
    assert (base - more).abs().max() > 1e-3
    assert (base - other).abs().max() > 1e-3


def test_derivatives_are_finite_for_empty_and_poisoned_sets() -> None:
    encode = encoder()
    users = torch.randn(2, 4, 2, dtype=torch.float64)
    users[0] = float("nan")
    users[1, 2] = float("inf")
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    parameters = list(encode.parameters())
    first = torch.autograd.grad(
        encode(make_leaves(users, mask)).square().sum(), parameters, create_graph=True
    )
    second = torch.autograd.grad(torch.stack([part.square().sum() for part in first]).sum(), parameters)
    assert all(torch.isfinite(part).all() for part in (*first, *second))
    assert all(part.abs().max() > 0 for part in first)


def test_second_derivatives_agree_with_differences() -> None:
    encode = encoder()
    users = torch.randn(2, 4, 2, dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[0, 0, 0, 0], [1, 1, 0, 1]]).bool()
    assert torch.autograd.gradgradcheck(lambda users: encode(make_leaves(users, mask)), [users])


def test_adjacency_is_no_feature_and_a_plain_space_is_encoded() -> None:
    observation = make_leaves(torch.randn(2, 4, 2, dtype=torch.float64), torch.ones(2, 4).bool())
    apart = {**observation, "adjacency": torch.zeros(2, 3, dtype=torch.float64)}
    assert torch.equal(encoder()(observation), encoder()(apart))
    plain = EntityEncoder(spaces.Box(-1, 1, (5,), np.float32), 8)
    assert plain({"": torch.zeros(7, 5)}).shape == (7, 8)


def test_bad_spaces_are_named() -> None:
    with pytest.raises(ValueError, match=r"'users'.*one bit"):
        EntityEncoder(spaces.Dict({**space(4).spaces, "users_mask": spaces.MultiBinary(3)}), 8)
    with pytest.raises(TypeError, match="nothing to encode"):
        EntityEncoder(spaces.Dict({"adjacency": spaces.MultiBinary(3)}), 8)


KINDS = {
    "numbers": spaces.Box(-1, 1, (6, 3), np.float32),
    "indices": spaces.MultiDiscrete(np.array([[3, 4, 5]] * 6)),
    "indices from three": spaces.MultiDiscrete(np.array([[3, 4, 5]] * 6), start=np.array([[3, 0, -1]] * 6)),
}


@pytest.mark.parametrize("pooling", ["attention", "sum"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000))
def test_a_set_is_read_in_any_order_and_whatever_lies_in_empty_slots(
    kind: str, pooling: Pooling, seed: int
) -> None:
    torch.manual_seed(0)
    space = KINDS[kind]
    encode = SetEncoder(space, 8, pooling).double()  # pyright: ignore[reportArgumentType]
    space.seed(seed)
    generator = torch.Generator().manual_seed(seed)
    elements = torch.as_tensor(space.sample())[None]
    present = torch.rand(1, 6, generator=generator) < 0.5
    order = torch.randperm(6, generator=generator)
    elsewhere = torch.where(present[..., None], elements, 10**6)
    torch.testing.assert_close(encode(elements, present), encode(elsewhere[:, order], present[:, order]))
    assert encode(elements, present).shape == (1, encode.width)


def test_a_sum_is_of_what_each_element_alone_gives() -> None:
    encode = SetEncoder(KINDS["indices"], 8, "sum")  # pyright: ignore[reportArgumentType]
    elements = torch.as_tensor(KINDS["indices"].sample())[None].expand(6, -1, -1)
    alone = encode(elements, torch.eye(6).bool())
    assert torch.equal(encode(elements, torch.zeros(6, 6).bool()), torch.zeros(6, 8))
    torch.testing.assert_close(alone.sum(dim=0), encode(elements[:1], torch.ones(1, 6).bool())[0])


def test_that_two_indices_came_together_can_be_told_from_a_sum() -> None:
    """Counting the elements whose two indices are alike, among some that are not, needs a second layer."""
    torch.manual_seed(0)
    encode = SetEncoder(spaces.MultiDiscrete(np.array([[4, 4]] * 5)), 32, "sum")
    count = torch.nn.Linear(encode.width, 1)
    optimizer = torch.optim.Adam([*encode.parameters(), *count.parameters()], lr=1e-2)
    present = torch.ones(256, 5).bool()
    error = torch.tensor(torch.inf)
    for _ in range(300):
        pairs = torch.randint(4, (256, 5, 2))
        alike = (pairs[..., 0] == pairs[..., 1]).sum(dim=1).float()
        error = (count(encode(pairs, present))[:, 0] - alike).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
    assert error < 0.05, "the best that sees each index alone errs by the variance, 0.94"


def test_a_space_with_a_set_is_encoded_as_one_and_another_is_not() -> None:
    flat = spaces.Dict({"dancers": KINDS["indices"], "told": spaces.Discrete(3)})
    space_with_set = spaces.Dict({**flat.spaces, "dancers_mask": spaces.MultiBinary(6)})
    assert isinstance(make_encoder(space_with_set, 8, "sum"), EntityEncoder)
    assert not isinstance(make_encoder(flat, 8), EntityEncoder)


def test_integer_elements_are_scaled_by_the_bounds_of_all_elements() -> None:
    low, high = np.array([[0, -4], [-2, 0], [0, 0]]), np.array([[1, 0], [2, 4], [6, 1]])
    different = SetEncoder(spaces.Box(low, high, dtype=np.int64), 8, "sum")
    equal = SetEncoder(
        spaces.Box(np.tile([-2, -4], (3, 1)), np.tile([6, 4], (3, 1)), dtype=np.int64), 8, "sum"
    )
    equal.load_state_dict(different.state_dict())
    elements, present = torch.tensor([[[1, -4], [2, 4], [6, 0]]]), torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(different(elements, present), equal(elements, present), rtol=0, atol=0)
