"""Styles of memories: fixed, different, and readable with any color vision."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb

from scrubjay.experiments.viz.style import COLORS, GREY, assign_colors, assign_styles
from scrubjay.memory import list_memories

VISION = {
    "all cones": np.eye(3),
    "no red cones": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "no green cones": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "no blue cones": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
"""Matrices of linear RGB by Machado, Oliveira and Fernandes (2009)."""


def lab(color, matrix):
    """Return the CIELAB coordinates of a color as someone with this vision sees it."""
    rgb = np.array(to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(matrix) @ linear, 0, 1)
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(to_xyz @ seen / [0.9505, 1.0, 1.089])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_colors_differ_for_any_color_vision(vision):
    for one, other in itertools.combinations([*COLORS, GREY], 2):
        distance = np.linalg.norm(lab(one, VISION[vision]) - lab(other, VISION[vision]))
        assert distance > 12, (one, other)


@given(st.sets(st.sampled_from(list_memories()), min_size=1))
def test_a_memory_has_its_own_style_among_any_others(names):
    alone = {name: assign_styles([name])[name] for name in names}
    assert assign_styles(names) == alone
    assert len(set(alone.values())) == len(names)


def test_memories_that_are_often_compared_differ_in_color():
    colors = assign_colors(["none", "gru", "lstm", "gtrxl", "hcam", "titans", "sink", "gated_delta"])
    assert len(set(colors.values())) == 8


def test_sizes_of_one_memory_have_its_color_and_different_lines():
    styles = assign_styles(["hcam, chunk size 8", "hcam, chunk size 16", "gru"])
    assert styles["hcam, chunk size 16"] == assign_styles(["hcam"])["hcam"]
    assert styles["hcam, chunk size 8"].color == styles["hcam, chunk size 16"].color
    assert len(set(styles.values())) == 3


def test_other_labels_get_the_styles_that_are_left():
    styles = assign_styles(["b", "a", "b", "gru"])
    assert len({style.color for style in styles.values()}) == 3
    assert list(styles) == ["gru", "a", "b"]
    many = assign_styles(str(number) for number in range(40))
    assert len(set(many.values())) == 35
