"""Rotary positions: scores depend on distances alone."""

import pytest
import torch

from scrubjay.memory.parts.rotary import build_sine_weights, compute_cos_sin, rotary_frequencies, rotate

WIDTH = 8


def rotate_at(x, time):
    return rotate(x, torch.full(x.shape[:2], time), rotary_frequencies(WIDTH))


@pytest.mark.parametrize(("query_time", "key_time"), [(3, 0), (17, 5), (1_000_003, 1_000_000)])
def test_products_depend_on_the_distance_alone_even_at_a_million_steps(query_time, key_time):
    query, key = torch.randn(2, 1, 1, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    product = (rotate_at(query, query_time) * rotate_at(key, key_time)).sum(-1)
    expected = (rotate_at(query, query_time - key_time) * key).sum(-1)
    torch.testing.assert_close(product, expected, rtol=1e-5, atol=1e-5)


def test_rotation_keeps_norms_and_is_the_identity_at_time_zero():
    x = torch.randn(2, 3, 2, WIDTH, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotate_at(x, 12345).norm(dim=-1), x.norm(dim=-1))
    assert torch.equal(rotate_at(x, 0), x)


def test_the_first_pair_rotates_by_a_radian_a_step_and_the_last_by_almost_none():
    frequencies = rotary_frequencies(WIDTH)
    assert frequencies.tolist() == pytest.approx([10_000 ** (-2 * i / WIDTH) for i in range(WIDTH // 2)])


@pytest.mark.parametrize("rotary_dim", [2, 6, WIDTH])
def test_products_with_weights_and_sine_weights_rotate_all_heads(rotary_dim):
    generator = torch.Generator().manual_seed(1)
    x, weight = (torch.randn(*shape, generator=generator).double() for shape in ((3, 5, 10), (2, WIDTH, 10)))
    time = torch.randint(0, 1000, (3, 5), generator=generator)
    frequencies = rotary_frequencies(rotary_dim)
    along, beside = (
        torch.einsum("btd,hwd->bthw", x, part) for part in (weight, build_sine_weights(weight, rotary_dim))
    )
    cos, sin = compute_cos_sin(time, frequencies, WIDTH, x.dtype)
    actual = along * cos[:, :, None] + beside * sin[:, :, None]
    expected = torch.cat(
        [rotate(along[..., :rotary_dim], time, frequencies), along[..., rotary_dim:]], dim=-1
    )
    torch.testing.assert_close(actual, expected)
