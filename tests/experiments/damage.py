"""Random damage to files, as by a full disk, an incomplete copy, another program or an attacker."""

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
"""Replacement values for JSON."""
TEXTS = (
    b"", b"{", b"[]", b"null", b"7", b'"x"', b"\xff\xfe\x00", b"[" * 100_000, b"9" * 5000, b'{"a": 1, "a"',
    b"\n\n\n", b"NaN", "{“a”: 1}".encode(), b'{"kind": "train"}', b'{"kind": {}}', b"{}",
)  # fmt: skip
"""Replacement contents for a file."""


def damage(path: Path, draw: random.Random) -> str:
    """Damage a file or folder; return a description."""
    ways = [_replace, _cut, _mutate, _delete, _folder, _unreadable, _circle]
    if path.suffix in (".json", ".jsonl"):
        ways += [_json] * 8
    if path.suffix == ".safetensors":
        ways += [_safetensors] * 3
    way = draw.choice(ways)
    try:
        description = f"{path.name}: {way.__name__.strip('_')}{way(path, draw) or ''}"
    except (ValueError, IndexError, SafetensorError):  # the file is already damaged
        description = ""
    _whole_again(path)
    return description


def _replace(path: Path, draw: random.Random) -> None:
    path.write_bytes(draw.choice(TEXTS))


def _cut(path: Path, draw: random.Random) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: draw.randrange(len(whole) or 1)])


def _mutate(path: Path, draw: random.Random) -> None:
    whole = bytearray(path.read_bytes())
    for _ in range(draw.choice((1, 3, 30))):
        if whole:
            whole[draw.randrange(min(len(whole), 4096))] = draw.randrange(256)
    path.write_bytes(whole)


def _delete(path: Path, draw: random.Random) -> None:
    path.unlink()


def _folder(path: Path, draw: random.Random) -> None:
    path.unlink()
    path.mkdir()


def _unreadable(path: Path, draw: random.Random) -> None:
    """Make reading fail, even for root: /proc/self/mem has no data at address 0."""
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
    description = change(draw)
    lines[at] = json.dumps(value)
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return f" {description}"


def _places(value: Any, _: Callable[[Any], None]) -> list[Callable[[random.Random], str]]:
    """Return possible changes of a JSON value: replace or delete a value, or add an unknown key."""
    changes: list[Callable[[random.Random], str]] = []
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

        changes.append(change)
        changes += _places(value[key], lambda new: None)
    return changes


def _safetensors(path: Path, draw: random.Random) -> str:
    """Change a tensor; the file stays valid safetensors."""
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
    """Update the checksum in a checkpoint's manifest, as an attacker would."""
    manifest = path.parent / "manifest.json"
    if path != manifest and manifest.is_file() and path.is_file() and not path.is_symlink():
        fields = json.loads(manifest.read_text())
        if isinstance(fields["sha256"], dict) and path.name in fields["sha256"]:
            fields["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            manifest.write_text(json.dumps(fields))


def copy(source: Path, target: Path) -> Path:
    """Copy a file or folder; return the copy."""
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    os.utime(target)
    return target


def files(path: Path) -> list[Path]:
    """Return the regular files in a folder, or the file itself."""
    paths = sorted(path.rglob("*")) if path.is_dir() else [path]
    return [
        file for file in paths if file.is_file() and not file.is_symlink() and "tfevents" not in file.name
    ]
