"""The fuzzer notices a planted fault of every law, and nothing else."""

from __future__ import annotations

import contextlib
import ctypes
import os
import runpy
import signal
import socket
import sys
import time
from pathlib import Path

import pytest

from . import child, laws
from .files import EVIL, VICTIM
from .targets import Target

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the fuzzer reads /proc")


@pytest.fixture
def find_faults(tmp_path, monkeypatch):
    """Yield a function that runs a function as a loader or a command. It returns the laws that break."""
    monkeypatch.setattr(child, "STALL_SECONDS", 3.0)
    monkeypatch.setattr(child, "STOP_SECONDS", 0.3)
    monkeypatch.setattr(child, "_GRACE_SECONDS", 0.2)
    monkeypatch.setattr(laws, "MEMORY_BYTES", 200 << 20)
    folder = tmp_path / "try"
    (folder / "here").mkdir(parents=True)
    laws.set_up_victim(folder / "here")
    (folder / "here" / "evilmod.py").write_text(EVIL)

    def find(act, is_command=False, prepare=lambda: None, **options):
        target = Target("planted", (), act, () if is_command else ("ValueError",), is_content=True)
        outcome = child.run_child(act, folder, prepare, cpu=5.0)
        return {fault.law for fault in laws.judge(target, outcome, folder / "here", **options)}

    child.adopt_orphans()
    yield find
    child.adopt_orphans(False)


def die():
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # another test may have a handler
    os.kill(os.getpid(), signal.SIGUSR1)


def raise_error(kind, text="a message that says what is wrong"):
    raise kind(text)


def write_line(text, code=0):
    print(text, file=sys.stderr)
    return code


def loop():
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                pass


def block():
    os.mkfifo("pipe")
    with open("pipe", "rb") as pipe:
        return pipe.read()


def take_memory():
    data = bytearray(400 << 20)
    data[::4096] = b"x" * len(data[::4096])
    return len(data)


def leave_process():
    if os.fork() == 0:
        os.setsid()
        time.sleep(60)


def start_processes():
    for _ in range(child.MAX_PROCESSES + 4):
        if os.fork() == 0:
            time.sleep(2)
            os._exit(0)
    time.sleep(1)


def import_planted():
    sys.path.insert(0, os.getcwd())
    import evilmod  # pyright: ignore[reportMissingImports]

    return evilmod.__name__


def execute_planted():
    runpy.run_path("evilmod.py")


def connect():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.connect(("192.0.2.1", 9))


def load_library(name):
    Path("libc.so.6").write_bytes(b"the loader looks elsewhere")
    with contextlib.suppress(OSError):
        ctypes.CDLL(name)


LOADERS = {
    "accepts": (lambda: "content", set()),
    "refuses": (lambda: raise_error(ValueError), set()),
    "raises an unforeseen error": (lambda: raise_error(KeyError), {"error"}),
    "repeats a message of Python": (
        lambda: raise_error(ValueError, "'NoneType' object is not iterable"),
        {"message"},
    ),
    "says nothing": (lambda: raise_error(ValueError, ""), {"message"}),
    "ends its process": (lambda: os._exit(7), {"crash"}),
    "dies by a signal": (die, {"signal"}),
    "computes without an end": (loop, {"limit"}),
    "waits for a pipe": (block, {"hang"}),
    "takes memory": (take_memory, {"limit"}),
    "leaves a process": (leave_process, {"limit"}),
    "starts many processes": (start_processes, {"limit"}),
    "overwrites the victim": (lambda: VICTIM.write_text("x") and None, {"written"}),
    "writes elsewhere": (lambda: Path("../../elsewhere").write_text("x") and None, {"written"}),
    "deletes elsewhere": (lambda: Path("../../elsewhere").unlink(missing_ok=True), {"written"}),
    "imports the sample": (import_planted, {"code"}),
    "executes the sample": (execute_planted, {"code"}),
    "loads a library of the sample": (lambda: load_library("./libc.so.6"), {"code"}),
    "loads a library of the system": (lambda: load_library("libc.so.6"), set()),
    "calls a shell": (lambda: os.system("true"), {"code"}),
    "reaches the network": (connect, {"code"}),
}
COMMANDS = {
    "succeeds": (lambda: 0, set()),
    "refuses": (lambda: write_line("scrubjay: file x: expected a number", 2), set()),
    "prints a traceback": (
        lambda: write_line("Traceback (most recent call last):\n  x\nscrubjay: it failed", 1),
        {"message"},
    ),
    "raises": (lambda: raise_error(RuntimeError), {"traceback"}),
    "reports an internal error": (
        lambda: write_line("scrubjay: internal error: KeyError: 1", 1),
        {"traceback"},
    ),
    "fails without a word": (lambda: 2, {"message"}),
    "fails with two lines": (
        lambda: write_line("scrubjay: one reason\nscrubjay: another reason", 2),
        {"message"},
    ),
    "has another exit code": (lambda: 9, {"crash"}),
    "prints control characters": (lambda: write_line("\x1b[2J"), {"terminal"}),
    "reverses the direction": (lambda: write_line("a\u202eb"), {"terminal"}),
}


@pytest.mark.parametrize(
    ("act", "laws_broken"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] in (block, start_processes) else [], id=name)
        for name, case in LOADERS.items()
    ],
)
def test_a_loader_that(act, laws_broken, find_faults):
    assert find_faults(act) == laws_broken


@pytest.mark.parametrize(("act", "laws_broken"), COMMANDS.values(), ids=COMMANDS)
def test_a_command_that(act, laws_broken, find_faults):
    assert find_faults(act, is_command=True) == laws_broken


def test_a_write_through_a_hard_link_is_noticed(find_faults):
    def write() -> None:
        Path("curve.png").write_bytes(b"a picture")

    assert find_faults(write, prepare=lambda: os.link(VICTIM, "curve.png")) == {"written"}


def test_other_content_is_a_fault_only_under_a_checksum(find_faults):
    assert find_faults(lambda: "other", honest="content", under_checksum=True) == {"silent"}
    assert find_faults(lambda: "other", honest="content") == set()
    assert find_faults(lambda: "content", honest="content", under_checksum=True) == set()


def test_equal_causes_have_one_name():
    target = Target("memory show {}", (), lambda path: None)
    faults = [
        laws.Fault("error", laws.normalize(f"no file '{name}' at /a/{name}: {len(name)}"), "")
        for name in ("x", "yy")
    ]
    assert len({laws.name_of(target, fault) for fault in faults}) == 1
