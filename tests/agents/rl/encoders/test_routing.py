"""Bi-level routing attention against its definition, region by region and token by token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.nn import functional

from scrubjay.agents import Policy, PolicyConfig
from scrubjay.agents.rl.encoders.observation import ImageEncoder
from scrubjay.agents.rl.encoders.routing import RoutingAttention, RoutingBlock, assign_regions
from scrubjay.memory import make_config
from scrubjay.memory.sketch import sketch

SIZES = [(8, 8, 4, 4), (7, 10, 3, 2), (12, 12, 4, 16), (5, 5, 5, 3), (6, 9, 1, 1)]


def definition(attention: RoutingAttention, tokens: Tensor, regions: int) -> Tensor:
    """Compute equations 3 to 6 of the paper for one feature map."""
    query, key, value = attention.projection(tokens).chunk(3, dim=1)
    height, width = attention.height, attention.width
    inside = torch.from_numpy(assign_regions(height, width, regions))
    mean_queries, mean_keys = (
        torch.stack([part[inside == region].mean(0) for region in range(regions**2)]) for part in (query, key)
    )
    selected_regions = (mean_queries @ mean_keys.T).topk(attention.top_k, dim=1).indices
    read = torch.empty_like(query)
    for token in range(len(tokens)):
        is_selected = torch.isin(inside, selected_regions[inside[token]])
        for part in torch.arange(tokens.shape[1]).chunk(attention.heads):
            scores = key[is_selected][:, part] @ query[token, part] * tokens.shape[1] ** -0.5
            read[token, part] = torch.softmax(scores, dim=0) @ value[is_selected][:, part]
    local = attention.local
    maps = value.T.unflatten(1, (height, width))[None]
    near = functional.conv2d(maps, local.weight, local.bias, padding=2, groups=tokens.shape[1])
    return attention.out(read + near[0].flatten(1).T)


@pytest.mark.parametrize(("height", "width", "regions", "top_k"), SIZES)
@torch.no_grad()
def test_attention_is_its_definition(height: int, width: int, regions: int, top_k: int) -> None:
    torch.manual_seed(0)
    attention = RoutingAttention(16, height, width, regions, top_k)
    tokens = torch.randn(3, height * width, 16)
    expected = torch.stack([definition(attention, one, regions) for one in tokens])
    torch.testing.assert_close(attention(tokens), expected, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_of_all_regions_it_is_attention_to_the_whole_map() -> None:
    torch.manual_seed(0)
    attention = RoutingAttention(16, 7, 9, 3, 9)
    query, key, value = torch.randn(3, 2, 63, 16).unbind(0)
    queries, keys, values = (part.unflatten(2, (2, 8)).transpose(1, 2) for part in (query, key, value))
    expected = functional.scaled_dot_product_attention(queries, keys, values, scale=16**-0.5)
    output = attention.attend(query, key, value)
    torch.testing.assert_close(output, expected.transpose(1, 2).flatten(2), rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_what_a_region_has_not_chosen_counts_nothing() -> None:
    torch.manual_seed(0)
    attention = RoutingAttention(8, 6, 6, 3, 2)
    query, key, value = torch.randn(3, 1, 36, 8).unbind(0)
    region = torch.from_numpy(assign_regions(6, 6, 3))
    scores = attention.region_means(query)[0] @ attention.region_means(key)[0].T
    unread = [region for region in range(9) if region not in scores[4].topk(2).indices]
    hidden = torch.isin(region, torch.tensor(unread))[:, None]
    other = attention.attend(query, key, torch.where(hidden, torch.randn(36, 8), value))
    mine = region == 4
    output = attention.attend(query, key, value)
    assert torch.equal(other[:, mine], output[:, mine])
    assert not torch.equal(other, output)


@pytest.mark.slow
def test_the_gradient_is_that_of_finite_differences() -> None:
    torch.manual_seed(0)
    block = RoutingBlock(8, 4, 5, regions=2, top_k=2).double()
    maps = torch.randn(1, 8, 4, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, maps)
    block(maps).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in block.parameters())


@pytest.mark.parametrize(("height", "width", "regions"), [(8, 8, 4), (7, 10, 3), (99, 5, 5)])
def test_regions_are_as_even_as_can_be(height: int, width: int, regions: int) -> None:
    region = torch.from_numpy(assign_regions(height, width, regions)).unflatten(0, (height, width))
    assert region.unique().tolist() == list(range(regions**2))
    for number in range(regions**2):
        rows, columns = (region == number).nonzero().unbind(1)
        assert len(rows) == len(rows.unique()) * len(columns.unique())
        assert len(rows.unique()) in (height // regions, -(-height // regions))
        assert len(columns.unique()) in (width // regions, -(-width // regions))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((8, 3, 9, 4, 1), r"regions=4: must be from 1 to 3 for a feature map of 3 x 9"),
        ((8, 8, 8, 0, 1), r"regions=0: must be from 1 to 8 for a feature map of 8 x 8"),
        ((8, 8, 8, 2, 5), r"top_k=5: must be from 1 to 4"),
        ((12, 8, 8, 2, 1), r"channels=12: must be a multiple of 8"),
    ],
)
def test_sizes_that_cannot_work_are_named(sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RoutingAttention(*sizes)


@pytest.mark.parametrize("shape", [(4, 8, 3), (20, 24, 3), (3, 40, 36), (99, 99, 3)])
def test_images_of_all_sizes_pass_one_block(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    encoder = ImageEncoder(spaces.Box(0, 255, shape, np.uint8), 16, "routing")
    (block,) = [layer for layer in encoder.convolutions if isinstance(layer, RoutingBlock)]
    assert 4 <= min(block.attention.height, block.attention.width) <= 16
    images = torch.randint(256, (3, *shape), dtype=torch.uint8)
    features = encoder(images)
    assert features.shape == (3, 16)
    torch.testing.assert_close(encoder(images[:1]), features[:1])


def test_an_image_too_small_for_regions_is_named() -> None:
    space = spaces.Box(0, 255, (3, 9, 3), np.uint8)
    with pytest.raises(ValueError, match=r"at least 4 x 4 pixels, one per region; the image has 3 x 9: use"):
        Policy(space, spaces.Discrete(2), PolicyConfig(make_config("gru", dim=8), images="routing"))


def test_a_policy_is_sketched_without_its_numbers() -> None:
    space = spaces.Box(0, 255, (40, 44, 3), np.uint8)
    config = PolicyConfig(make_config("gru", dim=8), images="routing")
    sketched_policy = sketch(lambda: Policy(space, spaces.Discrete(2), config), 10**6)
    policy = Policy(space, spaces.Discrete(2), config)
    assert {n: v.shape for n, v in sketched_policy.state_dict().items()} == {
        n: v.shape for n, v in policy.state_dict().items()
    }
