"""Files as a full disk, a cut copy, another program or a stranger may leave them."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1, 2**70, -(2**70), 1e400, -0.5, float("nan"), "", "x", "é\x00", "../..", [], [[]],
    [None], {}, {"kind": []}, {"name": {}}, {"step": "x"}, "9" * 300,
)  # fmt: skip
"""What may stand in JSON in another's place."""
TEXTS = (
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b'{"a": 1, "a"',
    b"\n\n\n", b"NaN", "{“a”: 1}".encode(), b'{"kind": "train"}', b'{"kind": {}}', b"{}",
)  # fmt: skip
"""What may be in a file instead."""


def damage(path: Path, draw: random.Random) -> str:
    """Do something to a file or folder; return what."""
    ways = [_replaced, _cut, _mutated, _gone, _folder, _unreadable, _circle]
    if path.suffix in (".json", ".jsonl"):
        ways += [_json] * 8
    if path.suffix == ".safetensors":
        ways += [_safetensors] * 3
    way = draw.choice(ways)
    try:
        told = f"{path.name}: {way.__name__.strip('_')}{way(path, draw) or ''}"
    except (ValueError, IndexError, SafetensorError):  # it is damaged already
        told = ""
    _whole_again(path)
    return told


def _replaced(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice(TEXTS))


def _cut(path: Path, draw: random.Random) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.randrange(len(whole) or 1)])


def _mutated(path: Path, draw: random.Random) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 3, 30))):
        if whole:
            whole[draw.randrange(min(len(whole), 4096))] = draw.randrange(256)
    path.write_bytes(whole)


def _gone(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path, draw: random.Random) -> None:
    """Reading it fails for root, too: the process's own memory has nothing at address 0."""
    path.unlink()
    path.symlink_to("/proc/self/mem")


def _circle(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _json(path: Path, draw: random.Random) -> str:
    lines = path.read_text("utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text("utf-8")]
    at = draw.randrange(len(lines))
    value = json.loads(lines[at])
    places = list(_places(value, lambda new: None))
    change = draw.choice(places)
    told = change(draw)
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return f" {told}"


def _places(value: Any, _: Callable[[Any], None]) -> list[Callable[[random.Random], str]]:
    """Return what could be changed: each place takes another value, goes, or gets a name it does not know."""
    found: list[Callable[[random.Random], str]] = []
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:

        def change(draw: random.Random, key: Any = key) -> str:
            kind = draw.randrange(6)
            if kind == 0:
                del value[key]
                return f"without {key}"
            if kind == 1 and isinstance(value, dict):
                value["wings"] = draw.choice(VALUES)
                return "with wings"
            value[key] = draw.choice(VALUES)
            return f"{key}={value[key]!r:.20}"

        found.append(change)
        found += _places(value[key], lambda new: None)
    return found


def _safetensors(path: Path, draw: random.Random) -> str:
    """Keep it a file of tensors, but others."""
    weights = load_file(path)
    name = draw.choice(sorted(weights))
    way = draw.choice(("without", "nan", "longer", "int8", "renamed"))
    tensor = weights.pop(name)
    if way == "nan":
        weights[name] = tensor * float("nan")
    elif way == "longer":
        weights[name] = tensor.new_zeros((*tensor.shape, 2))
    elif way == "int8":
        weights[name] = tensor.char()
    elif way == "renamed":
        weights["wings"] = tensor
    save_file(weights, path)
    return f" {name} {way}"


def _whole_again(path: Path) -> None:
    """Let a checkpoint's manifest say that it is as it was written: so a stranger would do it."""
    manifest = path.parent / "manifest.json"
    if path != manifest and manifest.is_file() and path.is_file() and not path.is_symlink():
        told = json.loads(manifest.read_text())
        if path.name in told["sha256"]:
            told["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest.write_text(json.dumps(told))


def copied(source: Path, target: Path) -> Path:
    """Copy a file or folder; return the copy."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    os.utime(target)
    return target


def files(path: Path) -> list[Path]:
    """Return the files in a folder, or the file itself, that hold something of their own still."""
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        file for file in found if file.is_file() and not file.is_symlink() and "tfevents" not in file.name
    ]
