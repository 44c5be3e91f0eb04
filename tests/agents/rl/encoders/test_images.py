"""Images with and without color, videos and grids of cells: how an encoder reads their axes and numbers."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation
from torch.nn import functional

from scrubjay.agents.rl.auxiliary import Reconstruction
from scrubjay.agents.rl.encoders.images import ImageLayout, is_grid, is_image
from scrubjay.agents.rl.encoders.observation import (
    CellEncoder,
    ImageEncoder,
    ObservationEncoder,
    VectorEncoder,
)
from scrubjay.agents.rl.policy import Policy, PolicyConfig
from scrubjay.memory import make_config


def box(*shape: int, high: float = 255, dtype: type = np.uint8) -> spaces.Box:
    return spaces.Box(0, high, shape, dtype)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (box(84, 84, 3), (3, 84, 84)),
        (box(3, 84, 84), (3, 84, 84)),
        (box(210, 160), (1, 210, 160)),
        (box(4, 210, 160, 3), (12, 210, 160)),
        (box(4, 3, 210, 160), (12, 210, 160)),
        (box(4, 84, 84, 1), (4, 84, 84)),
        (box(8, 7, 7, 3), (24, 7, 7)),
    ],
)
def test_channels_height_and_width(space, expected):
    layout = ImageLayout.from_space(space)
    assert (layout.channels, layout.height, layout.width) == expected
    images = torch.randint(256, (5, *space.shape))
    assert layout.channels_first(images).shape == (5, *expected)
    assert is_image(space)


def test_the_frames_of_a_video_keep_their_order_and_their_pixels():
    video = torch.randint(256, (2, 4, 21, 16, 3))
    channels = ImageLayout.from_space(box(4, 21, 16, 3)).channels_first(video)
    for frame in range(4):
        expected = video[:, frame].movedim(-1, 1)
        assert torch.equal(channels[:, 3 * frame : 3 * frame + 3], expected)
    other = ImageLayout.from_space(box(4, 3, 21, 16)).channels_first(video.movedim(-1, 2))
    assert torch.equal(other, channels)


def test_a_stack_of_one_grayscale_frame_is_that_frame():
    torch.manual_seed(0)
    one, stack = ObservationEncoder(box(40, 36), 8), ObservationEncoder(box(1, 40, 36), 8)
    stack.load_state_dict(one.state_dict())
    image = torch.randint(256, (3, 40, 36), dtype=torch.uint8)
    assert torch.equal(one(image), stack(image[:, None]))


@pytest.mark.parametrize("shape", [(84, 84, 3), (84, 84), (3, 84, 84)])
def test_stacked_frames_pass_through_convolutions(shape):
    class Camera(gymnasium.Env):
        observation_space, action_space = box(*shape), spaces.Discrete(2)

        def reset(self, *, seed=None, options=None):
            return self.observation_space.sample(), {}

    env = FrameStackObservation(Camera(), 4)
    policy = Policy(env.observation_space, env.action_space, PolicyConfig(make_config("gru", dim=8)))
    (encoder,) = policy.encoder.encoders  # pyright: ignore[reportGeneralTypeIssues]
    assert isinstance(encoder, ImageEncoder)
    assert encoder.layout.channels == 4 * (1 if len(shape) == 2 else 3)
    assert env.action_space.contains(policy.act(env.reset(seed=0)[0])[0])


@pytest.mark.parametrize("shape", [(84, 84, 3, 4), (210, 160, 3, 4), (210, 160, 4, 3), (16, 12, 8, 3)])
def test_a_video_with_its_frames_elsewhere_is_refused(shape):
    with pytest.raises(TypeError, match="move the axis of the frames first"):
        ObservationEncoder(box(*shape), 8)


def test_a_box_of_five_axes_is_refused():
    with pytest.raises(
        TypeError, match=r"with 5 axes; flatten it with gymnasium\.wrappers\.FlattenObservation"
    ):
        ObservationEncoder(box(2, 4, 40, 40, 3), 8)


@pytest.mark.parametrize("space", [box(31, 40), box(40, 40, high=1), box(40, 40, dtype=np.float32)])
def test_other_tables_are_vectors(space):
    (encoder,) = ObservationEncoder(space, 8, "auto").encoders
    assert isinstance(encoder, VectorEncoder)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (box(7, 7, 3), True),
        (box(7, 7, 20), True),
        (box(31, 99, 3), True),
        (box(3, 7, 7, 3), True),
        (box(9, 9, 4, high=10, dtype=np.int64), True),
        (box(32, 32, 3), False),
        (box(84, 84), False),
        (box(10, 10, 4, high=1, dtype=np.bool_), False),
        (box(7, 7, 3, high=1, dtype=np.float32), False),
    ],
)
def test_small_images_of_integers_are_grids(space, expected):
    assert is_grid(space) == expected
    (encoder,) = ObservationEncoder(space, 8, "auto").encoders
    assert (encoder.cells is not None) == expected  # pyright: ignore[reportAttributeAccessIssue]


def test_the_channels_of_a_square_grid_may_outnumber_its_cells():
    for shape in ((7, 7, 20), (20, 7, 7)):
        encoder = ImageEncoder(box(*shape), 8, "cells")
        layout = encoder.layout
        assert (layout.channels, layout.height, layout.width) == (20, 7, 7)


def test_a_cell_is_encoded_by_its_categories():
    torch.manual_seed(0)
    encoder = CellEncoder(box(5, 4, 2), channels=2)
    cells = torch.randint(16, (3, 2, 5, 4), dtype=torch.uint8)
    one_hot = functional.one_hot(cells.long(), 16).movedim(-1, 2).flatten(1, 2).float()
    inputs = torch.cat([one_hot, cells / 255], dim=1)
    weight, bias = encoder.embed.weight.flatten(1), encoder.embed.bias
    assert bias is not None
    expected = functional.silu(torch.einsum("oc,bchw->bohw", weight, inputs) + bias[:, None, None])
    torch.testing.assert_close(encoder(cells), expected)


@pytest.mark.parametrize("low", [-3, 0, 40])
def test_all_values_of_a_cell_differ(low):
    torch.manual_seed(0)
    encoder = CellEncoder(spaces.Box(low, low + 60, (1, 1, 1), np.int16), channels=1)
    features = encoder(torch.arange(low, low + 61, dtype=torch.float32).reshape(-1, 1, 1, 1)).flatten(1)
    assert (torch.cdist(features, features) + torch.eye(61)).min() > 1e-4


def test_cells_must_be_integers():
    with pytest.raises(ValueError, match="images='cells' needs integers; the image has dtype float32"):
        ImageEncoder(box(7, 7, 3, high=1, dtype=np.float32), 8, "cells")


@pytest.mark.parametrize("space", [box(84, 84, 3), box(40, 40), box(9, 9, 3, high=1, dtype=np.float32)])
def test_other_images_have_the_weights_of_the_convolution(space):
    torch.manual_seed(0)
    expected = ObservationEncoder(space, 8, "convolution").state_dict()
    torch.manual_seed(0)
    weights = ObservationEncoder(space, 8, "auto").state_dict()
    assert list(weights) == list(expected)
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.parametrize("space", [box(7, 7, 3), box(2, 9, 11, 3), box(40, 36)])
def test_a_policy_learns_from_them(space):
    torch.manual_seed(0)
    encoder, decoder = ObservationEncoder(space, 8, "auto"), Reconstruction(space, 8)
    images = torch.randint(11, (6, *space.shape), dtype=torch.uint8)
    decoder(encoder(images), images).backward()
    for parameter in (*encoder.parameters(), *decoder.parameters()):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().max() > 0
