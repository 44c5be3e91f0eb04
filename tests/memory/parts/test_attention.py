"""Attention under a bias: the gradient by hand against torch's own, and against finite differences."""

import pytest
import torch
from torch.nn import functional

from scrubjay.memory.parts.attention import Asked, attend

NEVER = float("-inf")


def drawn(stored=5, time=4, heads=2, last=6, batch=3, needs_stored=True):
    torch.manual_seed(stored + time)
    dim = 4 * heads

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    hidden = torch.where(
        torch.rand(batch, time, stored + time) < 0.4, NEVER, some(batch, time, stored + time)
    )
    hidden[..., stored:].diagonal(dim1=1, dim2=2).zero_()
    asked = Asked(
        some(batch, time, dim),
        some(batch, time, dim),
        some(batch, time, dim),
        some(batch, stored, dim),
        some(batch, stored, dim),
        hidden,
        some(batch, time, last),
        some(heads, time, last),
    )
    constant = ["hidden"] if needs_stored else ["hidden", "stored_keys", "stored_values"]
    return asked._replace(**{n: x.requires_grad_() for n, x in asked._asdict().items() if n not in constant})


def by_torch(asked):
    """One head at a time, by torch's own attention."""
    query, keys, values, stored_keys, stored_values, hidden, bias, places = asked
    keys, values = torch.cat([stored_keys, keys], dim=1), torch.cat([stored_values, values], dim=1)
    width = query.shape[2] // len(places)
    read = []
    for head, place in enumerate(places):
        part = slice(head * width, (head + 1) * width)
        mask = hidden + functional.pad(bias + place, (hidden.shape[2] - place.shape[1], 0))
        read.append(
            functional.scaled_dot_product_attention(
                query[..., part], keys[..., part], values[..., part], mask
            )
        )
    return torch.cat(read, dim=2)


@pytest.mark.parametrize(("stored", "time", "last"), [(5, 4, 6), (0, 3, 3), (7, 1, 1), (2, 5, 7)])
@pytest.mark.parametrize("needs_stored", [True, False])
def test_values_and_gradients_are_those_of_torch(stored, time, last, needs_stored):
    asked = drawn(stored, time, last=last, needs_stored=needs_stored)
    read, expected = attend(asked), by_torch(asked)
    torch.testing.assert_close(read, expected)
    along = torch.randn_like(read)
    leaves = [x for x in asked if x.requires_grad]
    for found, wanted in zip(
        torch.autograd.grad(read, leaves, along), torch.autograd.grad(expected, leaves, along), strict=True
    ):
        torch.testing.assert_close(found, torch.nan_to_num(wanted))


def test_the_gradient_is_that_of_finite_differences_and_has_a_gradient():
    asked = drawn(batch=1)

    def read(*parts):
        return attend(Asked._make([*parts[:5], asked.hidden, *parts[5:]]))

    parts = [x for x in asked if x is not asked.hidden]
    assert torch.autograd.gradcheck(read, parts)
    assert torch.autograd.gradgradcheck(read, parts)


def test_what_is_not_to_be_seen_counts_nothing():
    asked = drawn()
    asked.hidden[:, :, 0] = NEVER
    hidden = (asked.hidden == NEVER).all(dim=1)[:, :5]
    with torch.no_grad():
        keys = torch.where(hidden[..., None], 1e6, asked.stored_keys)
        values = torch.where(hidden[..., None], 1e6, asked.stored_values)
        read = attend(asked._replace(stored_keys=keys, stored_values=values))
        assert torch.equal(read, attend(asked))
