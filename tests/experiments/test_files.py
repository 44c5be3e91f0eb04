"""Reading untrusted JSON files of a run: an invalid file is an error that names it, without delay."""

from __future__ import annotations

import os

import pytest

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.files import parse, read_lines, read_object, read_text, read_untrusted


def test_line_ends_are_normalized(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{\r\n"é": 1}\r'.encode())
    assert read_object(path) == {"é": 1}
    assert read_text(path) == read_untrusted(path) == '{\n"é": 1}\n'


def test_invalid_utf8_is_an_error(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    for read in (read_text, read_untrusted, read_object, read_lines):
        with pytest.raises(ValueError, match=r"a\.json is not valid UTF-8: byte 7"):
            read(path)


def test_a_file_above_the_size_limit_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # sparse file, which takes no disk space
    for read in (read_untrusted, read_object, read_lines):
        with pytest.raises(ValueError, match=r"a\.json has 1,099,511,627,776 bytes"):
            read(path)


def test_reading_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name in ("a.json", "b.json"):
        with pytest.raises(ValueError, match="is not a regular file"):
            read_object(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nan", "{'a': 1}"])
def test_invalid_json_is_an_error(text):
    with pytest.raises(ValueError, match="it is not JSON"):
        parse(text, "it")


def test_is_number_accepts_json_numbers_alone():
    assert all(map(json_reader.is_number, (0, -1.5, float("nan"), float("inf"))))
    assert not any(map(json_reader.is_number, (True, "1", None, 10**400, [1])))
