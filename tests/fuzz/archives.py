"""Mutators of zip archives and of the pickles inside: names, sizes, compression, opcodes."""

from __future__ import annotations

import io
import pickle
import random
import struct
import warnings
import zipfile
from pathlib import Path

from .values import ESCAPE

_NAMES = (
    "../victim/precious.txt",
    "/tmp/canary",
    "data.pkl",
    "archive/data.pkl",
    f"x{ESCAPE}",
    "a" * 60_000,
    "",
)
_PROGRAMS = (
    b"cposix\nsystem\n(X\x0c\x00\x00\x00touch canarytR0",
    b"ctorch\nload\n(X\x05\x00\x00\x00x.pkltR0",
    b"cbuiltins\nexec\n(X\x06\x00\x00\x00import x0",
    b"ctorch._utils\n_rebuild_tensor_v2\n0",
    b"ctorch.storage\n_load_from_bytes\n(C\x04\x80\x04N.tR0",
    b"ccollections\nOrderedDict\n(((lI1\natltR0",
    b"ctorch\nload.__globals__\n0",
    b"cnumpy._core.multiarray\n_reconstruct\n0",
    b"\x8a\xff" + b"\x7f" * 255 + b"0",
    b"]q\x07" + b"h\x07a" * 3000 + b"0",
    b"(" * 5000,
    b"]" * 2000 + b"0" * 2000,
    b"N0" * 20_000,
    b"X\xff\xff\xff\x7f",
    b"\x8d" + struct.pack("<Q", 2**62),
    b"\x96" + struct.pack("<Q", 2**40),
    b"\x95" + struct.pack("<Q", 2**63),
    b"]q\x09" + b"(h\x09h\x09h\x09h\x09lq\x09" * 40 + b"0",
    b"P1\n0",
    b"\x8801\x88Q0",
    b"\x97\x98",
)


def change_pickle(file: Path, draw: random.Random) -> None:
    """Insert opcodes into the pickle of the archive, at its beginning, end, or anywhere."""
    parts = _read(file)
    name = next(name for name in parts if name.endswith("data.pkl"))
    data, program = parts[name], draw.choice(_PROGRAMS)
    place = draw.choice((2, len(data) - 1, draw.randrange(2, len(data))))
    parts[name] = data[:place] + program + data[place:]
    _write(file, parts)


def change_opcode(file: Path, draw: random.Random) -> None:
    """Change single bytes of the pickle, often to another opcode."""
    parts = _read(file)
    name = next(name for name in parts if name.endswith("data.pkl"))
    data = bytearray(parts[name])
    for _ in range(draw.choice((1, 2, 6))):
        data[draw.randrange(2, len(data))] = draw.choice((*b"0123N]}(tRbcQKMJ\x8a\x88\x89\x93\x94h", 255))
    parts[name] = bytes(data)
    _write(file, parts)


def change_parts(file: Path, draw: random.Random) -> None:
    """Delete, add, rename, fill or compress entries of the archive."""
    parts = _read(file)
    name, method = draw.choice(list(parts)), zipfile.ZIP_STORED
    way = draw.randrange(7)
    if way == 0:
        del parts[name]
    elif way == 1:
        parts[draw.choice(_NAMES)] = parts[name]
    elif way == 2:
        parts[draw.choice(_NAMES)] = parts.pop(name)
    elif way == 3:
        parts[name], method = bytes(draw.choice((2**20, 6 * 10**7))), zipfile.ZIP_DEFLATED
    elif way == 4:
        parts |= {f"{name}{number}": b"" for number in range(draw.choice((10, 20_000)))}
    elif way == 5:
        method = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    else:
        parts[name] = parts[name][: draw.randrange(len(parts[name]) + 1)]
    _write(file, parts, method)


def change_directory(file: Path, draw: random.Random) -> None:
    """Change sizes and offsets of the central directory, whose entries then contradict the local headers."""
    data = bytearray(file.read_bytes())
    places = [place for place in range(len(data) - 46) if data[place : place + 4] == b"PK\x01\x02"]
    field, form = draw.choice(
        ((8, "<H"), (10, "<H"), (16, "<I"), (20, "<I"), (24, "<I"), (28, "<H"), (42, "<I"))
    )
    struct.pack_into(form, data, draw.choice(places) + field, draw.choice((0, 1, 9, 2**16 - 1)))
    if draw.random() < 0.3:
        data[draw.choice((-2, -6, -10, -12))] ^= draw.randrange(1, 256)
    file.write_bytes(data)


def repeat_entry(file: Path, draw: random.Random) -> None:
    """Write a second entry of the same name, with other content."""
    with zipfile.ZipFile(file, "a") as archive:
        name = draw.choice(archive.namelist())
        content = draw.choice((b"", pickle.dumps({"x": 1}), draw.randbytes(100)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile warns of a name that stands twice
            archive.writestr(zipfile.ZipInfo(name), content)


def _read(file: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _write(file: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(zipfile.ZipInfo(name) if method == zipfile.ZIP_STORED else name, data)


WAYS = (
    change_pickle,
    change_pickle,
    change_opcode,
    change_opcode,
    change_parts,
    change_parts,
    change_directory,
    repeat_entry,
)
