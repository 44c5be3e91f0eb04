"""Checkpoints are read only where they are complete; nested data in them keeps its types."""

from __future__ import annotations

import io
import random
import zipfile
from collections import OrderedDict, deque

import numpy as np
import pytest
import torch

from scrubjay.experiments.runs.checkpoint import (
    CheckpointError,
    checkpoint_step,
    from_plain,
    latest_checkpoint,
    load_training,
    load_weights,
    save_checkpoint,
    to_plain,
)

WEIGHTS = {"a": torch.arange(3.0)}
DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path, 12, WEIGHTS, {"x": [1, 2.5]})
    assert path == latest_checkpoint(tmp_path)
    assert checkpoint_step(path) == 12
    assert torch.equal(load_weights(path)["a"], WEIGHTS["a"])
    assert load_training(path) == {"x": [1, 2.5]}


def test_only_the_latest_checkpoints_are_kept_by_step(tmp_path):
    for step in (99_999_999, 5, 100_000_000, 300_000_000):
        save_checkpoint(tmp_path, step, WEIGHTS, {}, keep=2)
    retained_steps = sorted(checkpoint_step(path) for path in tmp_path.glob("step_*"))
    assert retained_steps == [100_000_000, 300_000_000]
    assert checkpoint_step(latest_checkpoint(tmp_path) or tmp_path) == 300_000_000


@pytest.mark.parametrize("file", ["model.safetensors", "training.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "short", "altered"])
def test_a_damaged_checkpoint_is_skipped(tmp_path, file, damage):
    older = save_checkpoint(tmp_path, 1, WEIGHTS, {})
    damaged_file = save_checkpoint(tmp_path, 2, WEIGHTS, {}) / file
    content = damaged_file.read_bytes()
    if damage == "missing":
        damaged_file.unlink()
    elif damage == "short":
        damaged_file.write_bytes(content[: len(content) // 2])
    else:
        damaged_file.write_bytes(content[:-9] + bytes(9))
    assert latest_checkpoint(tmp_path) == older
    assert save_checkpoint(tmp_path, 2, WEIGHTS, {}) == latest_checkpoint(tmp_path)


def test_damaged_newer_checkpoints_do_not_remove_the_one_just_saved(tmp_path):
    for step in (500, 600, 700, 800):
        (tmp_path / f"step_{step:08d}").mkdir()
    checkpoint = save_checkpoint(tmp_path, 100, {"w": torch.ones(1)}, {})
    assert latest_checkpoint(tmp_path) == checkpoint
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000100"]


def test_an_unfinished_write_is_invisible_and_cleared_by_the_next(tmp_path):
    (tmp_path / ".writing_00000007").mkdir()
    assert latest_checkpoint(tmp_path) is None
    save_checkpoint(tmp_path, 8, WEIGHTS, {})
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000008"]


def replace_training_state(path, training):
    """Replace the training state of a checkpoint; return the message of the error on loading it."""
    torch.save(training, path / "training.pt")
    with pytest.raises(CheckpointError) as error:
        load_training(path)
    assert "\n" not in str(error.value)
    assert "--trust" not in str(error.value)
    return str(error.value.__cause__)


def test_training_state_that_expands_in_memory_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(2)}, {"a": [1, (2, 3)]})
    assert load_training(path) == {"a": [1, (2, 3)]}
    tree: list = [1]
    for _ in range(60):
        tree = [tree, tree]
    assert "the same dict, list or tuple in two places" in replace_training_state(path, {"a": tree})
    circle: dict = {}
    circle["a"] = circle
    assert "the same dict, list or tuple in two places" in replace_training_state(path, circle)
    wide = torch.zeros(1).expand(10**12)
    assert "a tensor of shape [1000000000000] is larger than the file" in replace_training_state(
        path, {"a": [wide]}
    )


def test_compressed_training_state_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(2)}, {"a": torch.zeros(10**6)})
    with zipfile.ZipFile(path / "training.pt") as archive:
        parts = {part.filename: archive.read(part) for part in archive.infolist()}
    with zipfile.ZipFile(path / "training.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    assert (path / "training.pt").stat().st_size < 10**5
    with pytest.raises(CheckpointError) as error:
        load_training(path)
    assert "is a compressed archive" in str(error.value.__cause__)


def test_damage_inside_the_training_state_is_described_in_our_words(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"w": torch.zeros(2)}, {"é": 1})
    with zipfile.ZipFile(path / "training.pt") as archive:
        parts = {
            part.filename: archive.read(part).replace("é".encode(), b"\xc3(") for part in archive.infolist()
        }
    with zipfile.ZipFile(path / "training.pt", "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, data.replace("é".encode(), b"\xc3("))
    with pytest.raises(CheckpointError, match=r"cannot be read: it is damaged \(UnicodeDecodeError\)$"):
        load_training(path)


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
