"""Checkpoints that are whole or absent: written aside, synced, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
MANIFEST = "manifest.json"
_NAME = re.compile(r"step_[0-9]{1,18}")


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], training: dict[str, Any], keep: int = 3
) -> Path:
    """Write `folder/step_00001000` and drop all but the newest `keep`; return its path.

    A kill at any moment leaves either no such directory or a whole one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    aside = folder / f".writing_{step:08d}"
    for unfinished in folder.glob(".writing_*"):
        shutil.rmtree(unfinished)
    aside.mkdir()
    save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, aside / WEIGHTS)
    torch.save(training, aside / TRAINING)
    digests = {name: _digest(aside / name) for name in (WEIGHTS, TRAINING)}
    (aside / MANIFEST).write_text(json.dumps({"step": step, "sha256": digests}) + "\n")
    for file in aside.iterdir():
        _sync(file)
    _sync(aside)
    shutil.rmtree(final, ignore_errors=True)  # only a torn one can be in the way
    aside.rename(final)
    _sync(folder)
    # A later one must be torn, or the run would have gone on from it.
    kept = [path for path in _newest_first(folder) if checkpoint_step(path) <= step][:keep]
    for path in _newest_first(folder):
        if path not in kept:
            shutil.rmtree(path)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest whole checkpoint; torn ones (missing, short or altered files) are passed over."""
    if not folder.is_dir():
        return None
    return next((path for path in _newest_first(folder) if _is_whole(path)), None)


def checkpoint_step(path: Path) -> int:
    """Return the environment step a checkpoint was written at."""
    return int(path.name.removeprefix("step_"))


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the policy's weights; safe on a checkpoint from a stranger.

    Raises ValueError if they are none.
    """
    try:
        return load_file(path / WEIGHTS)
    except SafetensorError as error:
        raise ValueError(f"{path / WEIGHTS}: {error}") from error


def load_training(path: Path) -> dict[str, Any]:
    """Return the learner's, sampler's and random generators' state.

    This unpickles, as environments may put anything into their state: resume only runs you trust.
    """
    return torch.load(path / TRAINING, map_location="cpu", weights_only=False)


def _newest_first(folder: Path) -> list[Path]:
    steps = (path for path in folder.glob("step_*") if _NAME.fullmatch(path.name))
    return sorted(steps, key=checkpoint_step, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        digests = json.loads((path / MANIFEST).read_text())["sha256"]
        return all(_digest(path / name) == digests[name] for name in (WEIGHTS, TRAINING))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
