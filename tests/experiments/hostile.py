"""Hostile run directories: malformed, oversized or misleading configs, spaces, metrics and checkpoints."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

CONTROL_CODES = "\x1b[31m\r\u202e\x9b2J"
"""Control characters that turn the terminal red, overwrite its line and reverse the text direction."""
NAME = f"x{CONTROL_CODES}$\\frac{{[bold]"
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 2**24, 10**9, 10**12, 2**62, 2**63, 10**30, -(10**30), 1e300, 1e400, -1e400),
    *(float("nan"), 0.5, "", NAME, "a\nscrubjay: done", "x" * 100_000, [], [[]], {}, {"kind": []}),
    *({"name": "gru", "dim": 10**9}, [10**9] * 3, [1] * 100_000, "os:system"),
)
_ONE = {"space": "Discrete", "n": 1, "start": 0, "dtype": "int64"}
_BOX = {"space": "Box", "shape": [3], "low": 0, "high": 1, "dtype": "float32"}


def _nest_list(count: int) -> list[Any]:
    nest: list[Any] = []
    for _ in range(count):
        nest = [nest]
    return nest


SPACES: tuple[Any, ...] = (
    *(
        {**_BOX, "shape": shape}
        for shape in ([10**9], [2**23], [-3], [1] * 100_000, [2**24] * 100_000, [0], 3)
    ),
    *(
        {**_BOX, "low": low}
        for low in (float("nan"), 5, -(10**400), "1e5", "inf", None, [0.0, 1.0], _nest_list(900))
    ),
    *({**_BOX, "dtype": dtype} for dtype in ("object", "O", CONTROL_CODES, "float31", 7, "uint8", "str")),
    *({**_ONE, "n": count} for count in (10**30, 2**24, 0, -1, 1.0, True, "2", None)),
    *({**_ONE, "start": start} for start in (2**62, 10**400, None)),
    {**_ONE, "n": 300, "dtype": "int8"},
    lambda: {"space": "Dict", "parts": [[f"k{number}", _ONE] for number in range(10**6)]},
    {"space": "Dict", "parts": [[NAME, {**_ONE, "n": 10**9}]]},
    {"space": "Dict", "parts": [[NAME, _ONE]]},
    {"space": "Dict", "parts": [[1, _ONE], ["a", _ONE]]},
    {"space": "Dict", "parts": []},
    {"space": "Tuple", "parts": [{**_BOX, "shape": [2**23]}] * 3},
    {"space": "Tuple", "parts": 3},
    {"space": "MultiDiscrete", "n": [[2, 3], [4]], "start": [0], "dtype": "int64"},
    {"space": "MultiDiscrete", "n": [], "start": [], "dtype": "int64"},
    {"space": "MultiDiscrete", "n": [2, 10**18], "start": [0, 0], "dtype": "int64"},
    lambda: {"space": "MultiDiscrete", "n": [1] * 2**22, "start": [0] * 2**22, "dtype": "int64"},
    {"space": "MultiDiscrete", "n": _nest_list(900), "start": [0], "dtype": "int64"},
    {"space": "MultiBinary", "n": [2**12, 2**12]},
    {"space": "MultiBinary", "n": [1] * 50},
    *({"space": name} for name in ("Text", CONTROL_CODES, ["Box"], None)),
    *(7, None, [], "Box"),
)
"""Descriptions of spaces. Those with millions of entries are functions, to keep the import cheap."""
RAW = (
    b"",
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"\0" * 4096,
    b"9" * 5000,
    b"\x1b[31m",
    b"{}",
)
KWARGS = (
    ("scrubjay/RepeatPrevious-v0", {"num_decks": 10**8}),
    ("scrubjay/Autoencode-v0", {"num_cards": 4 * 10**8}),
    ("scrubjay/TMaze-v0", {NAME: 10**9}),
    ("CartPole-v1", {"max_episode_steps": -5}),
    ("CartPole-v1", {}),
    ("Acrobot-v1", {}),
)


def corrupt_run(path: Path, draw: random.Random) -> str:
    """Change a finished run in one or two hostile ways; return a description of the changes."""
    changes = []
    if draw.random() < 0.6 and (path / "result.json").exists():
        (path / "result.json").unlink()
        _rewrite(path / "config.json", lambda config: config.update(total_steps=2 * config["total_steps"]))
    if draw.random() < 0.2:
        shutil.rmtree(path / "checkpoints")
        changes.append("no checkpoints")
    ways = (_config, _space, _settings, _raw, _metrics, _training, _odd_file)
    way = draw.choices(ways, (6, 5, 2, 2, 2, 3, 2))[0]
    changes.append(f"{way.__name__.strip('_')}: {way(path, draw)}")
    return "; ".join(changes)


def _rewrite(file: Path, change: Any) -> str:
    value = json.loads(file.read_text("utf-8"))
    description = change(value)
    file.write_text(json.dumps(value), "utf-8")
    return str(description)


def _walk_entries(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _walk_entries(value[key])


def _config(path: Path, draw: random.Random) -> str:
    def change(config: dict[str, Any]) -> str:
        place, key = draw.choice(list(_walk_entries(config)))
        place[key] = copy.deepcopy(draw.choice(VALUES))
        return f"{key}={place[key]!r:.40}"

    return _rewrite(path / "config.json", change)


def _space(path: Path, draw: random.Random) -> str:
    if not (path / "environment.json").exists():
        return _config(path, draw)

    def change(facts: dict[str, Any]) -> str:
        name = draw.choice(("observation", "observation", "action", "num_agents", "success_without_memory"))
        sample = draw.choice(SPACES if name in ("observation", "action") else VALUES)
        facts[name] = sample() if callable(sample) else sample
        return f"{name}={facts[name]!r:.80}"

    description = _rewrite(path / "environment.json", change)
    if draw.random() < 0.3:
        description += _rewrite(path / "config.json", lambda config: config["env"].update(id="evilmod:Foo"))
    return description


def _settings(path: Path, draw: random.Random) -> str:
    name, kwargs = draw.choice(KWARGS)

    def change(config: dict[str, Any]) -> str:
        if "env" in config:
            config["env"] |= {"id": name, "kwargs": kwargs}
        return f"{name} {kwargs}"

    return _rewrite(path / "config.json", change)


def _raw(path: Path, draw: random.Random) -> str:
    file = draw.choice(
        [file for file in sorted(path.rglob("*")) if file.is_file() and "tfevents" not in file.name]
    )
    file.write_bytes(draw.choice(RAW))
    _seal(file.parent)
    return file.name


def _metrics(path: Path, draw: random.Random) -> str:
    lines = (path / "metrics.jsonl").read_text().splitlines()
    key = draw.choice((NAME, "a\nb", "x" * 1000, "step", "charts/success", "charts/SPS"))
    value = draw.choice((0.5, 1e308, float("nan"), float("inf"), -1, 10**400, "x", None))
    rows = [json.dumps(json.loads(line) | {key: value}) + "\n" for line in lines]
    (path / "metrics.jsonl").write_text("".join(rows))
    return f"{key:.20}={value!r:.20}"


def _training(path: Path, draw: random.Random) -> str:
    checkpoints = sorted((path / "checkpoints").glob("step_*"))
    if not checkpoints:
        return _config(path, draw)
    checkpoint, way = checkpoints[-1], draw.choice(("shared", "wide", "packed", "header", "random", "value"))
    file = checkpoint / "training.pt"
    training = torch.load(file, weights_only=True)
    if way == "shared":  # a few bytes that describe a tree of 2^60 leaves
        tree: list[Any] = [1]
        for _ in range(60):
            tree = [tree, tree]
        torch.save({**training, "learner": tree}, file)
    elif way == "wide":
        torch.save({**training, "random": {"torch": torch.zeros(1, dtype=torch.uint8).expand(10**11)}}, file)
    elif way == "packed":
        with zipfile.ZipFile(file) as archive:
            parts = {part.filename: archive.read(part) for part in archive.infolist()}
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, data in parts.items():
                archive.writestr(name, data)
    elif way == "header":
        header = json.dumps({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 4]}}).encode()
        (checkpoint / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    elif way == "random":
        training["random"][draw.choice(("torch", "numpy", "python"))] = draw.choice(
            (3, [1], torch.zeros(3), None)
        )
        torch.save(training, file)
    else:
        place, key = draw.choice(list(_walk_entries(training)))
        place[key] = draw.choice((3, "x", [1], -(10**30), None, torch.zeros(2, 2), float("nan")))
        torch.save(training, file)
        way = f"{key}={place[key]!r:.20}"
    _seal(checkpoint)
    return way


def _odd_file(path: Path, draw: random.Random) -> str:
    name = draw.choice(("environment.json", "config.json", "result.json", "metrics.jsonl"))
    way = draw.choice(("pipe", "huge", "folder", "link"))
    file = path / name
    file.unlink(missing_ok=True)
    if way == "pipe":
        os.mkfifo(file)
    elif way == "huge":
        with file.open("wb") as sparse_file:
            sparse_file.truncate(2**40)
    elif way == "folder":
        file.mkdir()
    else:
        file.symlink_to("/dev/zero")
    return f"{name} {way}"


def _seal(checkpoint: Path) -> None:
    """Write a manifest that matches the changed files of a checkpoint."""
    names = ("model.safetensors", "training.pt")
    if all((checkpoint / name).is_file() for name in names):
        digests = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in names}
        (checkpoint / "manifest.json").write_text(json.dumps({"step": 1, "sha256": digests}))
