"""Tests of the text readers: novels of R's package, and errors on damaged files."""

import io
import os
import struct
import tarfile
import zlib

import pytest

from scrubjay.experiments.lm.texts import read_novels, read_text

NOVELS = {
    "The Heron": ["THE HERON", "", "It stood, as herons do.", "Café."],
    "Mud And Patience": ["MUD AND PATIENCE", "", "It was a truth."],
}


def database(novels):
    blocks = []
    for lines in novels.values():
        block = (
            b"X\n"
            + struct.pack(">iiii", 3, 0x40200, 0x30500, 5)
            + b"UTF-8"
            + struct.pack(">ii", 16, len(lines))
        )
        for line in lines:
            block += struct.pack(">ii", 0x40009, len(line.encode())) + line.encode()
        blocks.append(struct.pack(">I", len(block)) + zlib.compress(block))
    return b"".join(blocks)


def package(data):
    inner = io.BytesIO()
    with tarfile.open(fileobj=inner, mode="w:xz") as files:
        info = tarfile.TarInfo("./usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")
        info.size = len(data)
        files.addfile(info, io.BytesIO(data))
    members = {"debian-binary": b"2.0\n", "control.tar.xz": b"odd", "data.tar.xz": inner.getvalue()}
    archive = b"!<arch>\n"
    for name, content in members.items():
        archive += f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode() + content
        archive += b"\n" * (len(content) % 2)
    return archive


@pytest.mark.parametrize(("suffix", "wrap"), [(".rdb", bytes), (".deb", package)])
def test_novels_come_out_as_they_went_in(tmp_path, suffix, wrap):
    path = tmp_path / f"novels{suffix}"
    path.write_bytes(wrap(database(NOVELS)))
    assert read_novels(path) == {title: "\n".join(lines) for title, lines in NOVELS.items()}
    assert read_text(path, "mud and") == "MUD AND PATIENCE\n\nIt was a truth."
    assert read_text(path) == "\n\n\n".join(read_novels(path).values())


@pytest.mark.parametrize("suffix", [".rdb", ".deb"])
def test_a_huge_file_is_not_read(tmp_path, suffix):
    path = tmp_path / f"novels{suffix}"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises(ValueError, match="has more than 67,108,864 bytes"):
        read_novels(path)


def test_a_plain_file_is_read_as_it_is(tmp_path):
    (tmp_path / "text.txt").write_text("Öre.\nTwo.")
    assert read_text(tmp_path / "text.txt") == "Öre.\nTwo."


@pytest.mark.slow
def test_what_cannot_be_read_is_named(tmp_path):
    whole = database(NOVELS)
    for name, content, message in (
        ("cut.rdb", whole[:-9], "damaged"),
        ("no.rdb", struct.pack(">I", 3) + zlib.compress(b"abc"), "XDR"),
        (
            "long.rdb",
            struct.pack(">I", 2**31) + zlib.compress(b"abc"),
            "a block of 2147483648 bytes is longer",
        ),
        ("bomb.rdb", struct.pack(">I", 1000) + zlib.compress(bytes(2**24)), "1001 bytes instead of 1000"),
        ("bomb.deb", package(bytes(2**26 + 1)), "more than 67108864 bytes"),
        ("empty.rdb", b"", "empty"),
        ("no.deb", b"odd", "not a Debian package"),
        ("no.pdf", b"odd", "give a .txt"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=message):
            read_text(tmp_path / name)
    (tmp_path / "novels.rdb").write_bytes(whole)
    with pytest.raises(ValueError, match="The Heron, Mud And Patience"):
        read_text(tmp_path / "novels.rdb", "Emma")
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(ValueError, match="leave the title out"):
        read_text(tmp_path / "a.txt", "Emma")
