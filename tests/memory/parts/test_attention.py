"""Attention with biases: the custom backward pass against torch's attention and finite differences."""

import pytest
import torch
from torch.nn import functional

from scrubjay.memory.parts.attention import AttentionInputs, attend

NEVER = float("-inf")


def draw_inputs(num_stored=5, time=4, heads=2, last=6, batch=3, needs_stored=True):
    torch.manual_seed(num_stored + time)
    dim = 4 * heads

    def some(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    mask = torch.where(
        torch.rand(batch, time, num_stored + time) < 0.4, NEVER, some(batch, time, num_stored + time)
    )
    mask[..., num_stored:].diagonal(dim1=1, dim2=2).zero_()
    inputs = AttentionInputs(
        some(batch, time, dim),
        some(batch, time, dim),
        some(batch, time, dim),
        some(batch, num_stored, dim),
        some(batch, num_stored, dim),
        mask,
        some(batch, time, last),
        some(heads, time, last),
    )
    constant = ["mask"] if needs_stored else ["mask", "stored_keys", "stored_values"]
    return inputs._replace(
        **{n: x.requires_grad_() for n, x in inputs._asdict().items() if n not in constant}
    )


def by_torch(inputs):
    """Return the output of torch's attention, one head at a time."""
    query, keys, values, stored_keys, stored_values, mask, bias, head_bias = inputs
    keys, values = torch.cat([stored_keys, keys], dim=1), torch.cat([stored_values, values], dim=1)
    width = query.shape[2] // len(head_bias)
    read = []
    for head, bias_of_head in enumerate(head_bias):
        part = slice(head * width, (head + 1) * width)
        full_mask = mask + functional.pad(bias + bias_of_head, (mask.shape[2] - bias_of_head.shape[1], 0))
        read.append(
            functional.scaled_dot_product_attention(
                query[..., part], keys[..., part], values[..., part], full_mask
            )
        )
    return torch.cat(read, dim=2)


@pytest.mark.parametrize(("num_stored", "time", "last"), [(5, 4, 6), (0, 3, 3), (7, 1, 1), (2, 5, 7)])
@pytest.mark.parametrize("needs_stored", [True, False])
def test_values_and_gradients_are_those_of_torch(num_stored, time, last, needs_stored):
    inputs = draw_inputs(num_stored, time, last=last, needs_stored=needs_stored)
    read, expected = attend(inputs), by_torch(inputs)
    torch.testing.assert_close(read, expected)
    along = torch.randn_like(read)
    leaves = [x for x in inputs if x.requires_grad]
    for actual, expected_gradient in zip(
        torch.autograd.grad(read, leaves, along), torch.autograd.grad(expected, leaves, along), strict=True
    ):
        torch.testing.assert_close(actual, torch.nan_to_num(expected_gradient))


def test_the_gradient_is_that_of_finite_differences_and_has_a_gradient():
    inputs = draw_inputs(batch=1)

    def read(*parts):
        return attend(AttentionInputs._make([*parts[:5], inputs.mask, *parts[5:]]))

    parts = [x for x in inputs if x is not inputs.mask]
    assert torch.autograd.gradcheck(read, parts)
    assert torch.autograd.gradgradcheck(read, parts)


def test_masked_columns_do_not_change_the_output():
    inputs = draw_inputs()
    inputs.mask[:, :, 0] = NEVER
    mask = (inputs.mask == NEVER).all(dim=1)[:, :5]
    with torch.no_grad():
        keys = torch.where(mask[..., None], 1e6, inputs.stored_keys)
        values = torch.where(mask[..., None], 1e6, inputs.stored_values)
        read = attend(inputs._replace(stored_keys=keys, stored_values=values))
        assert torch.equal(read, attend(inputs))
