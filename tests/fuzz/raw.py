"""Mutators of any file: bytes, blocks, sizes and lines."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from .values import BYTES

_FORMATS = ("<B", "<H", "<I", "<Q", ">H", ">I", ">Q", "<f", "<d")


def flip_bits(file: Path, draw: random.Random) -> None:
    """Flip a few bits, more often near the beginning."""
    data = bytearray(file.read_bytes())
    for _ in range(draw.choice((1, 1, 2, 8, 64))):
        data[_place(data, draw)] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def write_number(file: Path, draw: random.Random) -> None:
    """Write a number of some size over the bytes at a place."""
    data, form = bytearray(file.read_bytes()), draw.choice(_FORMATS)
    size, place = struct.calcsize(form), _place(data, draw)
    if form[1] in "fd":
        number = struct.pack(form, draw.choice((float("nan"), float("inf"), -1e30, 0.0)))
    else:
        top = 1 << 8 * size
        value = draw.choice((0, 1, top - 1, top // 2, top // 2 - 1, 2**20, 2**30, draw.randrange(top)))
        number = struct.pack(form, value % top)
    place -= place % size if draw.random() < 0.5 else 0
    data[place : place + size] = number
    file.write_bytes(data)


def cut(file: Path, draw: random.Random) -> None:
    """Cut the file at a random place or shortly before its end."""
    data = file.read_bytes()
    file.write_bytes(data[: draw.choice((draw.randrange(len(data)), len(data) - draw.randint(1, 9)))])


def drop_block(file: Path, draw: random.Random) -> None:
    """Delete a block of bytes."""
    data = bytearray(file.read_bytes())
    place = _place(data, draw)
    del data[place : place + draw.choice((1, 7, 64, 512, 4096))]
    file.write_bytes(data)


def repeat_block(file: Path, draw: random.Random) -> None:
    """Repeat a block of bytes up to thousands of times."""
    data = file.read_bytes()
    place, size = _place(data, draw), draw.choice((1, 2, 16, 300, 4096))
    times = min(draw.choice((2, 20, 4000)), 2_000_000 // size)
    file.write_bytes(data[:place] + data[place : place + size] * times + data[place:])


def swap_blocks(file: Path, draw: random.Random) -> None:
    """Exchange two blocks of the same size."""
    data = bytearray(file.read_bytes())
    size, one, two = draw.choice((1, 4, 32, 512)), _place(data, draw), _place(data, draw)
    first, second = bytes(data[one : one + size]), bytes(data[two : two + size])
    data[one : one + size], data[two : two + size] = second, first
    file.write_bytes(data)


def insert(file: Path, draw: random.Random) -> None:
    """Insert special bytes."""
    data = file.read_bytes()
    place = draw.choice((0, len(data), _place(data, draw)))
    file.write_bytes(data[:place] + draw.choice(BYTES) + data[place:])


def replace(file: Path, draw: random.Random) -> None:
    """Replace the whole content by special or random bytes."""
    file.write_bytes(draw.choice((*BYTES, draw.randbytes(300), draw.randbytes(70_000))))


def zero_block(file: Path, draw: random.Random) -> None:
    """Write zeros over a block, as after a power failure."""
    data = bytearray(file.read_bytes())
    size = draw.choice((8, 512, 4096))
    place = draw.randrange(len(data)) // size * size
    data[place : place + size] = bytes(len(data[place : place + size]))
    file.write_bytes(data)


def shuffle_lines(file: Path, draw: random.Random) -> None:
    """Delete, repeat, join or shuffle lines."""
    lines = file.read_bytes().split(b"\n")
    place = draw.randrange(len(lines))
    way = draw.randrange(5)
    if way == 0:
        del lines[place]
    elif way == 1:
        lines[place:place] = lines[place : place + 1] * min(3000, 3_000_000 // (len(lines[place]) + 1))
    elif way == 2:
        draw.shuffle(lines)
    elif way == 3:
        lines[place] = lines[place][::-1]
    file.write_bytes((b"\r" if way == 4 else b"\n").join(lines))


def _place(data: bytes | bytearray, draw: random.Random) -> int:
    """Return a place in the data; half of the places are in the first 400 bytes."""
    return draw.randrange(min(len(data), 400) if draw.random() < 0.5 else len(data))


WAYS = (
    *(flip_bits, flip_bits, write_number, write_number, cut, drop_block, repeat_block, swap_blocks, insert),
    *(replace, zero_block, shuffle_lines),
)
