from __future__ import annotations

import zipfile

import pytest
import torch

from scrubjay.experiments.runs.checkpoint import (
    CheckpointError,
    checkpoint_step,
    latest_checkpoint,
    load_training,
    load_weights,
    save_checkpoint,
)

WEIGHTS = {"a": torch.arange(3.0)}


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
