"""Stores in other processes: replies find their requests, and a process that ends is named."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from scrubjay.memory.context.elsewhere.stores import (
    StoreProcess,
    TableStore,
    answer,
    read_message,
    write_message,
)
from scrubjay.memory.context.policies.dense import Scoring

SCORING = Scoring(0.5)


def make_columns(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 1, 2, count, 4, generator=generator)
    return keys, values, torch.ones(1, count, dtype=torch.bool)


@pytest.fixture
def store():
    with StoreProcess() as store:
        yield store


def has_ended(pid):
    """Return True if no process has this id, or if it is a zombie that its new parent has not reaped."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_process_answers_as_a_table_in_this_process(store):
    here, query = TableStore(), torch.randn(1, 4, 3, 4)
    for one in (here, store):
        one.append(1, make_columns(5))
        one.append(1, make_columns(4, seed=1))
        one.truncate(1, 8)
        one.copy(1, 2)
        one.reorder(2, torch.tensor([0, 0]))
    for name, rows in ((1, 1), (2, 2)):
        assert store.nbytes(name) == here.nbytes(name) > 0
        for ours, expected in zip(store.read(name, 2, 8), here.read(name, 2, 8), strict=True):
            assert len(ours) == rows
            torch.testing.assert_close(ours, expected, atol=0, rtol=0)
    for cap in (None, 3.0):
        parts = (one.begin_attention(1, query, Scoring(0.5, cap))() for one in (store, here))
        for ours, expected in zip(*parts, strict=True):
            torch.testing.assert_close(ours, expected)
    store.forget(1)
    here.forget(1)
    assert store.nbytes(1) == here.nbytes(1) == 0


def test_replies_find_their_requests_in_any_order(store):
    queries = torch.randn(3, 1, 4, 1, 4)
    store.append(1, make_columns(5))
    expected = [store.begin_attention(1, query, SCORING)()[0] for query in queries]
    waits = [store.begin_attention(1, query, SCORING) for query in queries]
    assert store.nbytes(1)
    for wait, output in reversed(list(zip(waits, expected, strict=True))):
        torch.testing.assert_close(wait()[0], output, atol=0, rtol=0)


def test_a_reply_that_nobody_awaits_is_dropped(store):
    store.append(1, make_columns(5))
    wait = store.begin_attention(1, torch.randn(1, 4, 1, 4), SCORING)
    for _ in range(100):
        store.nbytes(1)
    assert len(store._replies) <= 1
    with pytest.raises(RuntimeError, match="was not awaited in time"):
        wait()


def test_threads_share_a_process(store):
    outputs, queries = {}, torch.randn(4, 1, 4, 1, 4)
    store.append(1, make_columns(5))
    expected = [store.begin_attention(1, query, SCORING)()[0] for query in queries]

    def run(number):
        waits = [store.begin_attention(1, queries[number], SCORING) for _ in range(10)]
        outputs[number] = [wait()[0] for wait in waits]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, output in enumerate(expected):
        torch.testing.assert_close(outputs[number], [output] * 10, atol=0, rtol=0)


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_process_that_ended_is_named(when, store):
    store.append(1, make_columns(5))
    query = torch.randn(1, 4, 1, 4)
    if when == "between":
        os.kill(store._process.pid, signal.SIGSTOP)  # it cannot answer any more
        wait = store.begin_attention(1, query, SCORING)
    store._process.kill()
    with pytest.raises(RuntimeError, match=r"the process of a store has ended \(exit code -9\)"):
        wait() if when == "between" else store.begin_attention(1, query, SCORING)()
    with pytest.raises(RuntimeError, match=r"has ended \(closed\).*begin with a new store and a new cache"):
        store.nbytes(1)


def test_an_error_in_a_process_is_raised_here(store):
    with pytest.raises(RuntimeError, match="the store failed: KeyError: 5"):
        store.read(5, 0, 1)
    assert store.nbytes(5) == 0


def test_an_exception_in_the_middle_of_a_message_ends_the_process(store, monkeypatch):
    def interrupt(pipe, message):
        raise KeyboardInterrupt

    monkeypatch.setattr("scrubjay.memory.context.elsewhere.stores.write_message", interrupt)
    with pytest.raises(KeyboardInterrupt):
        store.nbytes(1)
    assert store._process.poll() is not None


PARENT = """
import signal
import sys
import torch
from scrubjay.memory.context.elsewhere import StoreProcess
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
stores = [StoreProcess(), StoreProcess()]
print(*(store._process.pid for store in stores), stores[0].nbytes(1), flush=True)
if sys.argv[1] == "raise":
    raise ValueError("an error of the user")
sys.stdin.read()
"""


@pytest.mark.parametrize("how", ["raise", "SIGINT", "SIGKILL"])
def test_no_process_is_left_when_the_parent_ends(how):
    command = [sys.executable, "-c", PARENT, how]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stderr is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()[:2]]
        assert len(pids) == 2, parent.stderr.read()
        if how != "raise":
            parent.send_signal(getattr(signal, how))
        # A store that lived on would hold this pipe open, so `read` would not return.
        errors = parent.stderr.read()
        assert parent.wait() != 0
    assert {"raise": "an error of the user", "SIGINT": "KeyboardInterrupt", "SIGKILL": ""}[how] in errors
    while not all(map(has_ended, pids)):
        time.sleep(0.01)


def test_gradients_are_refused(store):
    keys, values, valid = make_columns(5)
    with pytest.raises(ValueError, match="no gradients flow through a store in another process"):
        store.append(1, (keys.requires_grad_(), values, valid))
    with pytest.raises(ValueError, match=r"torch\.no_grad"):
        store.begin_attention(1, torch.randn(1, 4, 1, 4, requires_grad=True), SCORING)
    with torch.no_grad():
        store.append(1, (keys, values, valid))


def test_a_store_needs_a_thread():
    with pytest.raises(ValueError, match="num_threads=0"):
        StoreProcess(num_threads=0)


def test_messages_have_their_size_and_an_end(tmp_path):
    path = tmp_path / "pipe"
    with path.open("wb") as pipe:
        size = write_message(pipe, {"call": torch.tensor([7, 1])})
    assert size == path.stat().st_size
    with path.open("rb") as pipe:
        message, read_size = read_message(pipe)
        assert read_size == size
        assert message is not None
        assert answer(TableStore(), message)["numbers"].tolist() == [0]
        assert read_message(pipe) == (None, 0)
    path.write_bytes(b"\xff" * 8)
    with path.open("rb") as pipe, pytest.raises(ValueError, match="something else writes to the pipe"):
        read_message(pipe)
