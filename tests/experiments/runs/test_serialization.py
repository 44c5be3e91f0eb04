"""Nested data is saved for `torch.load(weights_only=True)` and loaded with its types."""

from __future__ import annotations

import io
import random
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from scrubjay.experiments.runs.checkpoint import from_plain, to_plain

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def through_a_file(value):
    file = io.BytesIO()
    torch.save(to_plain(value), file)
    file.seek(0)
    return from_plain(torch.load(file, weights_only=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (2, 3)])
def test_arrays_keep_dtype_shape_and_numbers(dtype, shape):
    array = np.arange(6).astype(dtype).reshape(2, 3) if shape == (2, 3) else np.ones(shape, dtype)
    for view in (array, array.T, array[..., ::-1] if array.ndim else array):
        back = through_a_file({"x": view})["x"]
        assert type(back) is np.ndarray
        assert back.dtype == view.dtype
        assert np.array_equal(back, view)


@pytest.mark.parametrize(
    "value",
    [
        {"a": [1, (2.5, None)], ("b", 3): True, 7: "text"},
        OrderedDict(x=b"\x00\xff", y=1 + 2j),
        random.Random(3).getstate(),
        np.random.default_rng(3).bit_generator.state,
        [np.float32(0.1), np.int64(-3), np.bool_(True)],
        [float("inf"), 2**127 + 5, -(2**100)],
    ],
)
def test_values_keep_their_types(value):
    back = through_a_file(value)
    assert back == value
    assert repr(back) == repr(value)


def test_generators_are_restored():
    state = np.random.RandomState(5).get_state()
    other = np.random.RandomState(6)
    other.set_state(through_a_file(state))
    assert other.randint(10**9) == np.random.RandomState(5).randint(10**9)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"env": {"rng": np.random.default_rng(0)}}, r"state\['env'\]\['rng'\] is a numpy.random"),
        ([deque([1])], r"state\[0\] is a collections.deque"),
        ({"x": np.array([None])}, "numpy.ndarray"),
        (np.array([1, 2], dtype=">i4"), "numpy.ndarray"),
        ({3.5: 1}, "each must be a string, an integer or a tuple"),
        ({"numpy array": 1}, "each must be a string, an integer or a tuple"),
        (print, "builtin_function_or_method"),
    ],
)
def test_values_of_other_types_are_named(value, message):
    with pytest.raises(TypeError, match=message):
        to_plain(value)
