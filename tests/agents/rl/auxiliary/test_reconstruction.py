from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from scrubjay.agents.rl.auxiliary.reconstruction import Reconstruction


def make_zero_decoder(space: spaces.Space) -> Reconstruction:
    """Return decoders whose outputs are all zero."""
    reconstruction = Reconstruction(space, 8)
    for parameter in reconstruction.parameters():
        torch.nn.init.zeros_(parameter)
    return reconstruction


def test_losses_of_a_decoder_that_says_nothing_are_known() -> None:
    features = torch.randn(3, 8)
    index = make_zero_decoder(spaces.Discrete(5, start=1))(features, torch.tensor([1, 5, 3]))
    assert index.item() == pytest.approx(np.log(5))
    indices = make_zero_decoder(spaces.MultiDiscrete([2, 8]))(
        features, torch.tensor([[0, 7], [1, 1], [1, 0]])
    )
    assert indices.item() == pytest.approx((np.log(2) + np.log(8)) / 2)
    bits = make_zero_decoder(spaces.MultiBinary(4))(features, torch.randint(2, (3, 4)))
    assert bits.item() == pytest.approx(np.log(2))
    image_space = spaces.Box(0, 255, (20, 17, 3), np.uint8)
    image = make_zero_decoder(image_space)(features, torch.randint(256, (3, 20, 17, 3), dtype=torch.uint8))
    assert image.item() == pytest.approx(np.log(2))
    vector = torch.randn(3, 2)
    loss = make_zero_decoder(spaces.Box(-np.inf, np.inf, (2,)))(features, vector)
    torch.testing.assert_close(loss, vector.square().mean())


def test_a_dict_costs_the_sum_of_its_leaves() -> None:
    leaves = {"digit": spaces.Discrete(3), "speed": spaces.Box(-np.inf, np.inf, (2,))}
    together = Reconstruction(spaces.Dict(leaves), 8)
    features = torch.randn(4, 8)
    observation = {"digit": torch.tensor([0, 1, 2, 0]), "speed": torch.randn(4, 2)}
    alone = [
        decode(features, observation[key]) for key, decode in zip(leaves, together.decoders, strict=True)
    ]
    torch.testing.assert_close(together(features, observation), sum(alone))


def test_image_pixels_cost_sigmoid_cross_entropy_where_they_are() -> None:
    space = spaces.Box(0, 255, (3, 4, 3), np.uint8)  # so small that a linear layer draws it
    reconstruction = Reconstruction(space, 8)
    features, image = torch.randn(2, 8), torch.randint(256, (2, 3, 4, 3), dtype=torch.uint8)
    logits = reconstruction.decoders[0].get_submodule("linear")(features).view(2, 3, 3, 4).permute(0, 2, 3, 1)
    expected = functional.binary_cross_entropy_with_logits(logits, image / 255)
    torch.testing.assert_close(reconstruction(features, image), expected)


def test_a_decoder_learns_to_draw_an_image() -> None:
    torch.manual_seed(0)
    space = spaces.Box(0, 255, (20, 17, 3), np.uint8)
    reconstruction = Reconstruction(space, 8)
    images = 255 * torch.randint(2, (4, 20, 17, 3), dtype=torch.uint8)
    features = torch.eye(4, 8)
    optimizer = torch.optim.Adam(reconstruction.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = reconstruction(features, images)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_images_of_either_kind_have_a_cross_entropy_whatever_their_scale(dtype):
    top = 255 if dtype == np.uint8 else 1
    space = spaces.Box(0, top, (24, 20, 3), dtype)
    reconstruction = Reconstruction(space, 8)
    decoder = next(m for m in reconstruction.modules() if type(m).__name__ == "_ImageDecoder")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    image = torch.full((1, 24, 20, 3), top, dtype=torch.uint8 if dtype == np.uint8 else torch.float32)
    # Logits of 0 say "one half": log 2 nats a pixel, where a squared error would be 1 or 1/4.
    torch.testing.assert_close(decoder(torch.zeros(1, 8), image), torch.tensor(2.0).log())
