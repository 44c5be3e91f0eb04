"""Mutators of safetensors files: header, shapes, types, offsets, names and numbers."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

from .values import TEXTS, any_value

_TYPES = (
    "BOOL",
    "U8",
    "I8",
    "F8_E4M3",
    "F8_E5M2",
    "F4",
    "F16",
    "BF16",
    "I32",
    "F32",
    "F64",
    "I64",
    "U64",
    "C64",
    "X",
)
_SIZES = (0, 1, 2, 3, 5, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63 - 1)


def change_entry(file: Path, draw: random.Random) -> None:
    """Change type, shape or offsets of a tensor."""
    header, data = _read(file)
    entry = header[draw.choice([name for name in header if name != "__metadata__"])]
    field = draw.choice(("dtype", "shape", "shape", "data_offsets", "data_offsets", "any"))
    if field == "dtype":
        entry["dtype"] = draw.choice(_TYPES)
    elif field == "any":
        entry[draw.choice((*entry, "extra"))] = any_value(draw)
    else:
        values = entry[field]
        way = draw.randrange(4)
        if way == 0 and values:
            values[draw.randrange(len(values))] = draw.choice(_SIZES)
        elif way == 1:
            values.reverse()
        elif way == 2:
            values[:0] = [1] * draw.choice((1, 30, 3000))
        else:
            entry[field] = [draw.choice(_SIZES) for _ in range(draw.choice((0, 1, 2, 4)))]
    _write(file, header, data)


def change_names(file: Path, draw: random.Random) -> None:
    """Rename, delete, copy or add tensors, or write metadata."""
    header, data = _read(file)
    name = draw.choice(list(header))
    way = draw.randrange(6)
    if way == 0:
        header[draw.choice(TEXTS)] = header.pop(name)
    elif way == 1:
        del header[name]
    elif way == 2:
        header |= {f"{name}.{number}": header[name] for number in range(draw.choice((1, 20, 20_000)))}
    elif way == 3:
        header["__metadata__"] = draw.choice(
            ({"format": "pt", "x": "y" * 10**6}, any_value(draw), {"format": draw.choice(TEXTS)}, {"a": 1})
        )
    elif way == 4:
        other = draw.choice(list(header))
        header[name], header[other] = header[other], header[name]
    else:
        entry = {"dtype": "F32", "shape": [0, draw.choice(_SIZES)], "data_offsets": [len(data), len(data)]}
        header |= {f"empty{number}": entry for number in range(draw.choice((1, 5000)))}
    _write(file, header, data)


def change_metadata(file: Path, draw: random.Random) -> None:
    """Replace a value in a JSON text of the metadata, as that of a saved cache."""
    header, data = _read(file)
    metadata = header["__metadata__"]
    name = draw.choice(list(metadata))
    fields = json.loads(metadata[name])
    places = [(fields, key) for key in fields]
    places += [(inner, key) for inner in fields.values() if isinstance(inner, dict) for key in inner]
    place, key = draw.choice(places)
    place[key] = any_value(draw)
    metadata[name] = json.dumps(fields)
    _write(file, header, data)


def change_length(file: Path, draw: random.Random) -> None:
    """Change the length field, pad the header, or add and drop data."""
    header, data = _read(file)
    text = json.dumps(header).encode()
    way = draw.randrange(5)
    if way == 0:
        length = draw.choice((0, 1, len(text) - 1, len(text) + 1, 2**31, 10**8 + 1, 2**63, 2**64 - 1))
        file.write_bytes(struct.pack("<Q", length) + text + data)
    elif way == 1:
        text = b" " * draw.choice((1, 10**6, 30_000_000)) + text
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)
    elif way == 2:
        _write(file, header, data + bytes(draw.choice((1, 4096))))
    elif way == 3:
        _write(file, header, data[: -draw.randint(1, 64)])
    else:
        text = text.replace(b"{", b'{"a": 1, "a": 2, ', 1)
        file.write_bytes(struct.pack("<Q", len(text)) + text + data)


def change_numbers(file: Path, draw: random.Random) -> None:
    """Write special numbers over a part of the data."""
    header, data = _read(file)
    number = draw.choice((float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e-45, 0.0))
    count = draw.choice((1, 16, len(data) // 4))
    place = draw.randrange(max(1, len(data) // 4 - count + 1)) * 4
    values = struct.pack(f"<{count}f", *[number] * count)
    _write(file, header, data[:place] + values + data[place + len(values) :])


def grow(file: Path, draw: random.Random) -> None:
    """Add a large tensor in a sparse part of the file, which takes no space on the disk."""
    header, data = _read(file)
    size = draw.choice((2**28, 2**32, 2**36))
    name = draw.choice((*header, "extra"))
    header[name] = {"dtype": "U8", "shape": [size], "data_offsets": [len(data), len(data) + size]}
    _write(file, header, data)
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size + size)


def _read(file: Path) -> tuple[dict[str, Any], bytes]:
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def _write(file: Path, header: dict[str, Any], data: bytes) -> None:
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + data)


WAYS = (
    change_entry,
    change_entry,
    change_entry,
    change_names,
    change_names,
    change_metadata,
    change_length,
    change_numbers,
    grow,
)
