"""Rotary positions turn, and only distances count."""

import pytest
import torch

from scrubjay.memory.parts.rotary import across, rotary_frequencies, rotate, turns

WIDTH = 8


def turned(x, time):
    return rotate(x, torch.full(x.shape[:2], time), rotary_frequencies(WIDTH))


@pytest.mark.parametrize(("query_time", "key_time"), [(3, 0), (17, 5), (1_000_003, 1_000_000)])
def test_products_depend_on_the_distance_alone_even_at_a_million_steps(query_time, key_time):
    query, key = torch.randn(2, 1, 1, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    product = (turned(query, query_time) * turned(key, key_time)).sum(-1)
    expected = (turned(query, query_time - key_time) * key).sum(-1)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


def test_turning_keeps_lengths_and_nothing_is_turned_at_time_zero():
    x = torch.randn(2, 3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(turned(x, 12345).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(turned(x, 0), x)


def test_the_first_pair_turns_by_a_radian_a_step_and_the_last_by_almost_none():
    frequencies = rotary_frequencies(WIDTH)
    assert frequencies.tolist() == pytest.approx([10_000 ** (-2 * i / WIDTH) for i in range(WIDTH // 2)])


@pytest.mark.parametrize("rotated", [2, 6, WIDTH])
def test_a_product_with_weights_beside_their_own_turns_heads_at_once(rotated):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*shape, generator=generator).double() for shape in ((3, 5, 10), (2, WIDTH, 10)))
    time = torch.randint(0, 1000, (3, 5), generator=generator)
    frequencies = rotary_frequencies(rotated)
    along, beside = (torch.einsum("btd,hwd->bthw", x, part) for part in (weight, across(weight, rotated)))
    cos, sin = turns(time, frequencies, WIDTH, x.dtype)
    found = along * cos[:, :, None] + beside * sin[:, :, None]
    expected = torch.cat([rotate(along[..., :rotated], time, frequencies), along[..., rotated:]], dim=-1)
    torch.testing.assert_close(found, expected)
