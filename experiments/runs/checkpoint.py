"""Atomic checkpoints: written to a temporary folder, synced, then renamed into place.

They contain plain data: nested arrays become tensors for `torch.save`, and nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import re
import shutil
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scrubjay.experiments.files import CHECKPOINTS, INITIAL, read_object
from scrubjay.memory.context.foreign.weights import is_mostly_holes

WEIGHTS = "model.safetensors"
TRAINING = "training.pt"
MANIFEST = "manifest.json"
_SMALL = 2**26  # bytes of a tensor that may be stored as one expanded number, such as initial states
LATEST, BEST = "latest", "best"
"""Names that choose a checkpoint of a run, besides those of its steps."""
_NAME = re.compile(r"step_[0-9]{1,18}")
_BEST_NAME = re.compile(r"best_[0-9]{1,18}")


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or belongs to another run; the message is one line with the reason."""


def save_checkpoint(
    folder: Path, step: int, weights: dict[str, Tensor], training: dict[str, Any], keep: int = 3
) -> Path:
    """Write a checkpoint such as `folder/step_00001000` and return its path.

    Deletes all but the latest `keep` checkpoints. If the process is killed, the new directory is either
    missing or complete. Raises TypeError, and writes nothing, if `training` contains anything but tensors,
    arrays and plain values.
    """
    plain = to_plain(training, "training")

    def write(temporary: Path) -> None:
        _write_weights(temporary, weights)
        torch.save(plain, temporary / TRAINING)

    final = _write_folder(folder, f"step_{step:08d}", step, write)
    # A later checkpoint must be incomplete, or the run would have resumed from it.
    retained_paths = [path for path in _newest_first(folder) if checkpoint_step(path) <= step][:keep]
    for path in _newest_first(folder):
        if path not in retained_paths:
            shutil.rmtree(path)
    return final


def save_best(folder: Path, step: int, weights: dict[str, Tensor]) -> Path:
    """Write the weights of the best checkpoint to `folder/best_00001000`, for example, and return the path.

    The former best checkpoint is deleted after that. If the process is killed, one of the two is complete.
    """
    final = _write_folder(folder, f"best_{step:08d}", step, lambda path: _write_weights(path, weights))
    for path in _list_best(folder):
        if path != final:
            shutil.rmtree(path)
    return final


def delete_best_after(folder: Path, step: int) -> None:
    """Delete a best checkpoint later than `step`, since a run that resumes there trains these steps again."""
    for path in _list_best(folder):
        if checkpoint_step(path) > step:
            shutil.rmtree(path)


def _write_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    save_file({name: value.detach().cpu().clone() for name, value in weights.items()}, folder / WEIGHTS)


def _write_folder(folder: Path, name: str, step: int, write: Callable[[Path], object]) -> Path:
    """Write the folder `name` of a checkpoint and return its path. `write` writes its files.

    A manifest with the digests of the files is added.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / name
    temporary = folder / f".writing_{step:08d}"
    for leftover in folder.glob(".writing_*"):
        shutil.rmtree(leftover)
    temporary.mkdir()
    write(temporary)
    digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
    (temporary / MANIFEST).write_text(json.dumps({"step": step, "sha256": digests}) + "\n")
    for file in temporary.iterdir():
        _sync(file)
    _sync(temporary)
    shutil.rmtree(final, ignore_errors=True)  # only an incomplete one can be in the way
    temporary.rename(final)
    _sync(folder)
    return final


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the latest complete checkpoint; skip those with missing, truncated or altered files."""
    if not folder.is_dir():
        return None
    return next((path for path in _newest_first(folder) if _is_complete(path)), None)


def find_checkpoint(folder: Path, name: str) -> Path | None:
    """Return the complete checkpoint `name`: "latest", "best", or for example "step_1000".

    Return None if there is none. Raises CheckpointError if the name has another form, if the run no longer
    has this step, or if the files of the checkpoint are damaged.
    """
    if name == LATEST:
        return latest_checkpoint(folder)
    if name == BEST:
        paths = _list_best(folder)[:1]
        if not paths:
            return None
    else:
        if _NAME.fullmatch(name) is None:
            raise CheckpointError(f"checkpoint={name!r:.40}: write latest, best, or step_N with a step N")
        steps = _newest_first(folder)
        paths = [path for path in steps if checkpoint_step(path) == int(name.removeprefix("step_"))]
        if not paths:
            own = [f"step_{checkpoint_step(path)}" for path in steps]
            raise CheckpointError(
                f"checkpoint={name!r}: not in {folder}, which has {', '.join(own) or 'no step'}; "
                "only the latest steps and the best one are kept"
            )
    if not _is_complete(paths[0], (WEIGHTS,) if name == BEST else (WEIGHTS, TRAINING)):
        raise CheckpointError(f"{paths[0]} is damaged: its files do not match its {MANIFEST}")
    return paths[0]


def check_sizes(run_dir: Path, limits: Callable[[], Mapping[str, int]]) -> None:
    """Raise CheckpointError if a run has a larger weights or training file than its config implies.

    No file is read. `limits` returns a dict from the name of each such file to its maximum number of bytes;
    it is called only if a file has more than 64 MiB.
    """
    files = [run_dir / INITIAL]
    folder = run_dir / CHECKPOINTS
    files += [path / name for path in _newest_first(folder) for name in (WEIGHTS, TRAINING)]
    files += [path / WEIGHTS for path in _list_best(folder)]
    for file in files:
        try:
            size = file.stat().st_size
        except OSError:
            continue
        if size > _SMALL and size > (limit := limits()[file.name]):
            raise CheckpointError(
                f"{file} has {size:,} bytes: its config implies at most {limit:,}; add --trust if you trust "
                "the run (in Python trust=True)"
            )


def checkpoint_step(path: Path) -> int:
    """Return the environment step at which a checkpoint was written."""
    return int(path.name.partition("_")[2])


def load_weights(path: Path) -> dict[str, Tensor]:
    """Load the weights of a checkpoint, which may be untrusted. Raises CheckpointError if this fails."""
    return read_weights(path / WEIGHTS)


def read_weights(file: Path) -> dict[str, Tensor]:
    """Load the weights in a file, which may be untrusted. Raises CheckpointError if this fails."""
    try:
        return load_file(file)
    except (SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{file}: {error}") from error


def load_training(path: Path) -> dict[str, Any]:
    """Load the state of learner, samplers and random generators, which may be untrusted.

    Nothing is unpickled. Raises CheckpointError if the file is damaged or is not plain data.
    """
    file = path / TRAINING
    try:
        _check_uncompressed(file)
        return from_plain(_check_tensor_sizes(file, torch.load(file, map_location="cpu", weights_only=True)))
    except Exception as error:
        is_pickle = _read_first_byte(file) == pickle.PROTO  # instead of torch's archive
        if is_pickle or isinstance(error, pickle.UnpicklingError):
            raise CheckpointError(
                f"{file} is not plain data and is refused, since loading it could execute any code"
            ) from error
        is_damage = isinstance(
            error, UnicodeError | TypeError | AttributeError | LookupError | RecursionError
        )
        reason = f"it is damaged ({type(error).__name__})" if is_damage else " ".join(str(error).split())
        raise CheckpointError(f"{file} cannot be read: {reason}") from error


def _read_first_byte(file: Path) -> bytes:
    if not file.exists():
        return b""
    with file.open("rb") as content:
        return content.read(1)


def _check_uncompressed(file: Path) -> None:
    """Raise ValueError if the archive is compressed; torch writes uncompressed archives."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise ValueError(f"{file} is a compressed archive: expected an uncompressed archive")


def _check_tensor_sizes(file: Path, value: Any) -> Any:
    """Return `value`, which was read from `file`. Raises ValueError if a tensor in it is larger than `file`.

    Tensors of at most 64 MiB are always allowed.
    """
    most, waiting = max(file.stat().st_size, _SMALL), [value]
    visited_ids: set[int] = set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor) and part.nbytes > most:
            raise ValueError(
                f"{file} is invalid: a tensor of shape {list(part.shape)} is larger than the file"
            )
        if isinstance(part, (dict, list, tuple)) and id(part) not in visited_ids:
            visited_ids.add(id(part))
            waiting += part.values() if isinstance(part, dict) else part
    return value


def _newest_first(folder: Path, pattern: re.Pattern[str] = _NAME) -> list[Path]:
    paths = (path for path in folder.glob("*_*") if pattern.fullmatch(path.name))
    return sorted(paths, key=checkpoint_step, reverse=True)


def _list_best(folder: Path) -> list[Path]:
    """Return the best checkpoint, and after it those that a kill left over."""
    return _newest_first(folder, _BEST_NAME)


def _is_complete(path: Path, names: tuple[str, ...] = (WEIGHTS, TRAINING)) -> bool:
    try:
        if any(is_mostly_holes((path / name).stat()) for name in names):
            return False  # hashing would take minutes
        digests = read_object(path / MANIFEST)["sha256"]
        return all(_digest(path / name) == digests[name] for name in names)
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


_ARRAY, _SCALAR = "numpy array", "numpy scalar"
_VALUES = (bool, bytes, complex, float, int, str, type(None))
_DTYPES = frozenset(
    {"bool", "float16", "float32", "float64"}
    | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
)


def to_plain(value: Any, where: str = "state") -> Any:
    """Return nested data with arrays converted to tensors.

    Raises TypeError, naming the position, on anything but tensors, numeric arrays, plain values, and dicts,
    lists and tuples of these.
    """
    kind = type(value)
    if kind in _VALUES or kind in (Tensor, nn.Parameter):
        return value
    if kind in (dict, OrderedDict):
        if _ARRAY in value or _SCALAR in value or not all(map(_is_key, value)):
            raise TypeError(
                f"{where} has the keys {list(value)!r:.100}: each must be a string, an integer or a tuple, "
                f"and neither {_ARRAY!r} nor {_SCALAR!r}"
            )
        return kind((key, to_plain(item, f"{where}[{key!r}]")) for key, item in value.items())
    if kind in (list, tuple):
        return kind(to_plain(item, f"{where}[{index}]") for index, item in enumerate(value))
    if (kind is np.ndarray or isinstance(value, np.generic)) and _is_plain_array(value):
        return {_ARRAY if kind is np.ndarray else _SCALAR: torch.from_numpy(np.array(value, order="C"))}
    raise TypeError(f"{where} is a {kind.__module__}.{kind.__qualname__}; expected an array or plain value")


def from_plain(value: Any) -> Any:
    """Restore data that `to_plain` converted. Raises ValueError if a container occurs in two places.

    `to_plain` never writes shared containers. With shared containers a small file could need more memory than
    the machine has.
    """
    return _from_plain(value, set())


def _from_plain(value: Any, visited_ids: set[int]) -> Any:
    if isinstance(value, (dict, list, tuple)) and value:
        if id(value) in visited_ids:
            raise ValueError(
                "the data refers to the same dict, list or tuple in two places; put a copy in one of them"
            )
        visited_ids.add(id(value))
    if isinstance(value, dict):
        if value.keys() == {_ARRAY}:
            return value[_ARRAY].numpy()
        if value.keys() == {_SCALAR}:
            return value[_SCALAR].numpy()[()]
        return type(value)((key, _from_plain(item, visited_ids)) for key, item in value.items())
    if type(value) in (list, tuple):
        return type(value)(_from_plain(item, visited_ids) for item in value)
    return value


def _is_key(key: Any) -> bool:
    return all(map(_is_key, key)) if type(key) is tuple else type(key) in (bool, int, str)


def _is_plain_array(value: Any) -> bool:
    # The dtype name does not include the byte order, and tensors support only the native one.
    return value.dtype.name in _DTYPES and value.dtype.isnative
