"""Reading untrusted JSON files of a run: an invalid file is an error that names it, without delay."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from scrubjay.experiments import files as json_reader
from scrubjay.experiments.files import (
    lock,
    parse,
    read_lines,
    read_object,
    read_text,
    read_untrusted,
    write_atomically,
)

needs_fork = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="needs fork, which starts a process in no time"
)


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


def test_a_text_of_holes_is_refused_at_its_first_zero(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"A jay")
    os.truncate(path, 2**36)
    for read in (read_text, functools.partial(read_untrusted, max_bytes=2**40, zeros=False)):
        with pytest.raises(ValueError, match=r"a\.txt is not a text: byte 5 is zero"):
            read(path)


def test_a_text_above_the_limit_is_not_read_to_its_end():
    with pytest.raises(ValueError, match="/dev/zero is not a text"):
        read_text(Path("/dev/zero"))
    read_end, write_end = os.pipe()
    os.write(write_end, b"x" * 98 + b"\r\n")
    os.close(write_end)
    with pytest.raises(ValueError, match="has more than 99 bytes, the limit; split it"):
        read_text(Path(f"/dev/fd/{read_end}"), 99)
    os.close(read_end)


def test_lines_that_would_fill_the_memory_are_not_parsed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x": [' + "[]," * 500_000 + "1]}\n")
    with pytest.raises(ValueError, match=r"line 2 of .* has 1,500,021 characters: the limit is 1,048,576"):
        read_lines(path)
    path.write_text("{}\n" * (2**20 + 1))
    with pytest.raises(ValueError, match="has 1,048,577 lines: the limit is 1,048,576"):
        read_lines(path)


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


def _write_many(path, letter):
    for _ in range(100):
        write_atomically(path, letter * 1000)


@needs_fork
def test_processes_that_write_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "a.txt"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(path, letter)) for letter in "ab"]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        with contextlib.suppress(FileNotFoundError):
            assert read_text(path) in ("a" * 1000, "b" * 1000)
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_content_and_no_other_file(tmp_path):
    write_atomically(tmp_path / "a.txt", "old")
    with pytest.raises(UnicodeEncodeError):
        write_atomically(tmp_path / "a.txt", "\ud800")
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_a_leftover_of_a_killed_write_is_deleted_once_it_is_old(tmp_path):
    for name, age in (("old", 7200), ("new", 0)):
        leftover = tmp_path / f".a[1].txt.{name}.writing"
        leftover.write_text("half")
        os.utime(leftover, times=(time.time() - age, time.time() - age))
    write_atomically(tmp_path / "a[1].txt", "text")
    assert {file.name for file in tmp_path.iterdir()} == {"a[1].txt", ".a[1].txt.new.writing"}


@needs_fork
def test_a_forked_process_does_not_hold_the_lock_after_the_death_of_its_parent(tmp_path):
    """An environment in a process of its own may still be in a long step when its trainer is killed."""
    file = lock(tmp_path)
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(sender, b"running")
        time.sleep(600)
    os.read(receiver, 7)
    file.close()  # as the system does when the parent dies
    try:
        lock(tmp_path).close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


@needs_fork
def test_a_fork_does_not_release_the_lock_of_the_parent(tmp_path):
    with lock(tmp_path):
        child = os.fork()
        if child == 0:
            os._exit(0)
        os.waitpid(child, 0)
        with pytest.raises(ValueError, match="is being trained by another process"):
            lock(tmp_path)


@pytest.mark.parametrize("link", [os.link, os.symlink])
@pytest.mark.parametrize("write", ["write", "append", "lock"])
def test_writing_a_link_leaves_the_file_under_its_other_name(write, link, tmp_path):
    other = tmp_path / "other"
    other.write_text("mine\n")
    folder = tmp_path / "run"
    folder.mkdir()
    file = folder / json_reader.LOCK
    link(other, file)
    if write == "write":
        json_reader.write_atomically(file, "new\n")
        assert file.read_text() == "new\n"
    elif write == "append":
        with json_reader.open_to_append(file) as log:
            log.write("new\n")
        assert file.read_text() == "mine\nnew\n"
    elif link is os.symlink:
        with pytest.raises(ValueError, match="is a link or a special file; delete it"):
            json_reader.lock(folder)
    else:
        json_reader.lock(folder).close()
    assert other.read_text() == "mine\n"
    assert write == "lock" or (not file.is_symlink() and file.stat().st_nlink == 1)
    assert [path.name for path in folder.iterdir()] == [json_reader.LOCK]


def test_only_a_regular_file_is_replaced_or_appended_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "endless").symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="pipe is not a regular file"):
        json_reader.write_atomically(tmp_path / "pipe", "")
    with pytest.raises(ValueError, match="pipe is a link or a special file"):
        json_reader.open_to_append(tmp_path / "pipe")
    with pytest.raises(ValueError, match="endless is not a regular file"):
        json_reader.open_to_append(tmp_path / "endless")
    with pytest.raises(IsADirectoryError):
        json_reader.write_atomically(tmp_path / "folder", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["endless", "folder", "pipe"]
