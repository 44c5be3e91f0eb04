"""Readers for freely available long texts: plain files, and Jane Austen's novels from a Debian package.

    apt-get download r-cran-janeaustenr

The package holds the six novels as character vectors of R. They are read without R from the .deb, or from the
Rdata.rdb inside the package. Rdata.rdb is a sequence of blocks, one per novel. A block starts with the length
of the decompressed data (4 bytes, big endian). A zlib stream of one vector in R's XDR serialization follows
(R Internals, section 1.8).
"""

from __future__ import annotations

import io
import lzma
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from scrubjay.experiments import files as json_reader

_VECTOR_OF_STRINGS, _STRING = 16, 9
_DATABASE = "data/Rdata.rdb"
_MAX_BYTES = 2**26
"""Maximum size of a file, or of a decompressed database or block; the novels have 4 MB in all."""
_PIECE = 65536


def read_text(path: Path | str, title: str | None = None) -> str:
    """Return the text of a .txt file, or of the novels in a .deb package or an R data file (.rdb).

    `title` selects one novel by the first letters of its title, ignoring case: "northanger" is Northanger
    Abbey. By default all novels are joined. Raises ValueError on another file type or an unknown title.
    """
    path = Path(path)
    if path.suffix in (".deb", ".rdb"):
        texts = read_novels(path)
        if title is None:
            return "\n\n\n".join(texts.values())
        prefix = _letters(title)
        for name, text in texts.items():
            if prefix and _letters(name).startswith(prefix):
                return text
        raise ValueError(f"{path} has no text titled {title!r}; it has {', '.join(texts)}")
    if path.suffix != ".txt":
        raise ValueError(f"{path}: give a .txt file, or r-cran-janeaustenr's .deb or Rdata.rdb")
    if title is not None:
        raise ValueError(f"title={title!r}: {path} is a single text; leave the title out")
    return json_reader.read_text(path)


def read_novels(path: Path | str) -> dict[str, str]:
    """Return the texts of a .deb or .rdb file by title. The title is the first line of a text.

    Raises ValueError if the file is damaged or its R data is not text.
    """
    path = Path(path)
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(
            f"{path} has more than {_MAX_BYTES:,} bytes; give r-cran-janeaustenr's .deb or Rdata.rdb"
        )
    try:
        if path.suffix == ".deb":
            data = _extract_database(data, path)
        texts = [_lines(block) for block in _blocks(data)]
    except (
        struct.error,
        zlib.error,
        lzma.LZMAError,
        tarfile.TarError,
        UnicodeDecodeError,
        EOFError,
    ) as error:
        raise ValueError(f"{path} is damaged, or is not a database of texts: {error}") from error
    if not texts:
        raise ValueError(f"{path} is empty")
    return {lines[0].title(): "\n".join(lines) for lines in texts}


def _letters(title: str) -> str:
    return re.sub(r"[^a-z]", "", title.lower())


def _extract_database(package: bytes, path: Path) -> bytes:
    """Return Rdata.rdb from a Debian package, an `ar` archive that contains a tar archive."""
    if not package.startswith(b"!<arch>\n"):
        raise ValueError(f"{path} is not a Debian package")
    place = 8
    while place + 60 <= len(package):
        name, digits = package[place : place + 16].decode(), package[place + 48 : place + 58].strip()
        if not digits.isdigit():
            raise struct.error(f"part {name.strip()!r} has the size {digits!r}, not a number")
        size = int(digits)
        if name.startswith("data.tar"):
            with tarfile.open(fileobj=io.BytesIO(package[place + 60 : place + 60 + size])) as files:
                for member in files:
                    file = files.extractfile(member) if member.name.endswith(_DATABASE) else None
                    if file is not None:
                        database = file.read(_MAX_BYTES + 1)
                        if len(database) > _MAX_BYTES:
                            raise ValueError(f"{path}: {_DATABASE} has more than {_MAX_BYTES} bytes")
                        return database
        place += 60 + size + size % 2
    raise ValueError(f"{path} holds no {_DATABASE}; get it with: apt-get download r-cran-janeaustenr")


def _blocks(data: bytes) -> Iterator[bytes]:
    place = 0
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        if length > _MAX_BYTES:
            raise zlib.error(f"a block of {length} bytes is longer than {_MAX_BYTES}")
        place += 4
        stream, block = zlib.decompressobj(), bytearray()
        while not stream.eof and len(block) <= length and (piece := data[place : place + _PIECE]):
            block += stream.decompress(piece, length + 1 - len(block))
            place += len(piece) - len(stream.unused_data) - len(stream.unconsumed_tail)
        if len(block) != length or not stream.eof:
            raise zlib.error(f"a block has {len(block)} bytes instead of {length}")
        yield bytes(block)


def _lines(block: bytes) -> list[str]:
    if block[:2] != b"X\n":
        raise struct.error("not in R's XDR format")
    (version,) = struct.unpack_from(">i", block, 2)
    place = 14
    if version >= 3:
        # Version 3 stores its encoding here.
        place += 4 + struct.unpack_from(">i", block, place)[0]
    kind, count = struct.unpack_from(">ii", block, place)
    if kind & 0xFF != _VECTOR_OF_STRINGS or count < 1:
        raise struct.error(
            f"the R data file has an object of R type {kind & 0xFF} with {count} elements; expected lines"
        )
    place += 8
    lines = []
    for _ in range(count):
        kind, length = struct.unpack_from(">ii", block, place)
        if kind & 0xFF != _STRING:
            raise struct.error(f"a line of text has R type {kind & 0xFF}; expected {_STRING}, a string")
        place += 8
        # -1 is R's missing string.
        lines.append(block[place : place + max(length, 0)].decode())
        place += max(length, 0)
    return lines
