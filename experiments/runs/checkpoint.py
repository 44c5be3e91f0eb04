"""Checkpoints that are whole or absent: written aside, synced, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from scrubjay.experiments.runs.plain import from_plain, to_plain
from scrubjay.experiments.runs.reading import read_object

WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
MANIFEST = "manifest.json"
_SMALL = 2**26  # bytes of a tensor that may be one number told often, as rows of newborns are
_NAME = re.compile(r"step_[0-9]{1,18}")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or is of another run; the message is one line that says why."""


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], training: dict[str, Any], keep: int = 3
) -> Path:
    """Write `folder/step_00001000` and drop all but the newest `keep`; return its path.

    A kill at any moment leaves either no such directory or a whole one. Raises TypeError, and writes nothing,
    if `training` is not of tensors, arrays and plain values.
    """
    plain = to_plain(training, "training")
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / f"step_{step:08d}"
    aside = folder / f".writing_{step:08d}"
    for unfinished in folder.glob(".writing_*"):
        shutil.rmtree(unfinished)
    aside.mkdir()
    save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, aside / WEIGHTS)
    torch.save(plain, aside / TRAINING)
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
    """Return the policy's weights; safe on a stranger's. Raises CheckpointError if they are none."""
    return read_weights(path / WEIGHTS)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Return the weights in a file; safe on a stranger's. Raises CheckpointError if there are none."""
    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def write_weights(file: Path, weights: dict[str, Tensor]) -> None:
    """Write weights so that a kill leaves the old file or the new one, never half."""
    aside = file.with_name(f".{file.name}.writing")
    aside.unlink(missing_ok=True)
    save_file(weights, aside)
    _sync(aside)
    aside.rename(file)


def load_training(path: Path, trust: bool = False) -> dict[str, Any]:
    """Return the learner's, sampler's and random generators' state.

    Raises CheckpointError if it is not of plain data: that of older versions was pickled, and is read, by
    which its code runs, only with `trust`.
    """
    file = path / TRAINING
    try:
        _check_stored(file)
        return from_plain(_within(file, torch.load(file, map_location="cpu", weights_only=True)))
    except Exception as error:
        if not trust:
            raise CheckpointError(
                f"{file} is not of plain data: older versions pickled it, and unpickling runs whatever code "
                "is there; add --trust if you trust the run (in Python trust=True)"
            ) from error
    return torch.load(file, map_location="cpu", weights_only=False)


def _check_stored(file: Path) -> None:
    """Raise ValueError if a file unpacks to more than it is: torch packs nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError("its parts are packed")


def _within(file: Path, value: Any) -> Any:
    """Return a value. Raises ValueError if a tensor in it is larger than the file can tell."""
    most, waiting = max(file.stat().st_size, _SMALL), [value]
    seen: set[int] = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor) and part.nbytes > most:
            raise ValueError(f"a tensor of shape {list(part.shape)} is larger than the file")
        if isinstance(part, (dict, list, tuple)) and id(part) not in seen:
            seen.add(id(part))
            waiting += part.values() if isinstance(part, dict) else part
    return value


def _newest_first(folder: Path) -> list[Path]:
    steps = (path for path in folder.glob("step_*") if _NAME.fullmatch(path.name))
    return sorted(steps, key=checkpoint_step, reverse=True)


def _is_whole(path: Path) -> bool:
    try:
        digests = read_object(path / MANIFEST)["sha256"]
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
