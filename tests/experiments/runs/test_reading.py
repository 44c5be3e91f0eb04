"""Files that a run keeps, read as a stranger's: what is none of them is told by its name, and at once."""

from __future__ import annotations

import os

import pytest

from scrubjay.experiments.runs import reading
from scrubjay.experiments.runs.reading import parse, read_kept, read_lines, read_object, read_text


def test_a_file_is_read_whole_whatever_its_ends_of_lines(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes('{\r\n"é": 1}\r'.encode())
    assert read_object(path) == {"é": 1}
    assert read_text(path) == read_kept(path) == '{\n"é": 1}\n'


def test_what_is_no_text_is_told(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'{"a": "\xff"}')
    for read in (read_text, read_kept, read_object, read_lines):
        with pytest.raises(ValueError, match=r"a\.json is no text in UTF-8: byte 7"):
            read(path)


def test_a_file_beyond_its_size_is_not_read(tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.truncate(2**40)  # holes, that take no room
    for read in (read_kept, read_object, read_lines):
        with pytest.raises(ValueError, match=r"a\.json has 1,099,511,627,776 bytes"):
            read(path)


def test_a_pipe_that_nobody_writes_to_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("/dev/zero")
    for name in ("a.json", "b.json"):
        with pytest.raises(ValueError, match="is no plain file"):
            read_object(tmp_path / name)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "", "nan", "{'a': 1}"])
def test_what_is_no_json_is_told(text):
    with pytest.raises(ValueError, match="it is not JSON"):
        parse(text, "it")


def test_numbers_of_json_are_told_from_others():
    assert all(map(reading.is_number, (0, -1.5, float("nan"), float("inf"))))
    assert not any(map(reading.is_number, (True, "1", None, 10**400, [1])))
