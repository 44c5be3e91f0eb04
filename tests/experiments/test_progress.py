"""The progress line of the latest metrics, the display of steps and remaining time, and requests to stop."""

import contextlib
import io
import multiprocessing
import os
import re
import signal
import threading
import time
from types import SimpleNamespace

import pytest

import scrubjay
from scrubjay.experiments import progress
from scrubjay.experiments.progress import ProgressDisplay, StopRequest, describe_row, loss_warnings

ROW = {
    "charts/success": 0.5,
    "charts/episodic_return": 0.25,
    "charts/SPS": 1200.0,
    "time/SPS_env": 9000.0,
    "time/SPS_policy": 4000.0,
    "time/SPS_learner": 2000.0,
    "losses/policy_loss": -0.1,
    "losses/explained_variance": float("nan"),
}


def test_the_main_metrics_are_on_one_line():
    assert describe_row(ROW) == (
        "success 0.50  return 0.25  1,200 steps/s (env/policy/learner alone 9.0k/4.0k/2.0k)"
    )
    assert not describe_row({})


@pytest.mark.parametrize("name", ["policy_loss", "cross_entropy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_reported(name, value):
    row = ROW | {f"losses/{name}": value}
    assert loss_warnings(row) == ["LOST: its losses are not finite"]
    assert describe_row(row).endswith(loss_warnings(row)[0])
    assert loss_warnings(ROW) == []


@pytest.fixture(params=["terminal", "file"])
def record(request, monkeypatch):
    """Return a function that calls a function and returns all it prints, to a terminal or to a file."""
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)  # print every update
    return record_terminal if request.param == "terminal" else record_file


def record_file(show):
    with contextlib.redirect_stdout(io.StringIO()) as file:
        show()
    return file.getvalue()


def record_terminal(show):
    master, slave = pytest.importorskip("pty").openpty()
    chunks = []

    def collect():
        with contextlib.suppress(OSError):  # Linux raises it when the other end is closed
            while chunk := os.read(master, 4096):
                chunks.append(chunk)

    reader = threading.Thread(target=collect)
    reader.start()
    variables = {"TERM": "xterm", "COLUMNS": "150", "NO_COLOR": "1"}
    with (
        os.fdopen(slave, "w") as terminal,
        contextlib.redirect_stdout(terminal),
        pytest.MonkeyPatch.context() as m,
    ):
        for name, value in variables.items():
            m.setenv(name, value)
        show()
    reader.join()
    os.close(master)
    return b"".join(chunks).decode()


def test_without_a_total_only_steps_are_shown(record):
    def show():
        with ProgressDisplay("play", None) as display:
            for step in range(1, 7):
                display.update(step, {})

    text = record(show)
    assert "6 steps" in text
    assert "ETA" not in text
    assert "%" not in text


def test_with_a_total_the_share_and_the_remaining_time_are_shown(record):
    def show():
        with ProgressDisplay("play", 8) as display:
            display.update(0, {})  # the speed is unknown
            for step in range(1, 9):
                display.update(step, {})

    text = record(show)
    assert "ETA" in text
    assert "100%" in text or "8/8" in text


def test_the_remaining_time_counts_only_the_present_part_of_the_work(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)

    def show():
        display = ProgressDisplay("look", None)
        clock.now = 1000.0
        display.update(3, {})
        display.begin(100, 40)
        clock.now += 10.0
        display.update(60, {})

    # 20 steps took 10 s, and 40 steps are left.
    assert record_file(show).splitlines() == ["look  3 steps", "look  60/100  ETA 20 s"]


def test_an_episode_has_no_remaining_time_while_its_length_is_unknown(record, finished_run):
    looks = []
    text = record(lambda: looks.append(scrubjay.look(finished_run.path, progress=True)))
    steps = len(looks[0].trace.steps)
    assert re.search(r"\d steps", text)  # a terminal is drawn ten times a second
    assert {int(total) for total in re.findall(r"\d/([\d,]+)", text)} <= {steps}
    for line in re.split(r"[\r\n]", text):
        assert "ETA" not in line or "steps" not in line


def loop():
    while True:
        pass


def wait_for_itself():
    lock = threading.Lock()
    lock.acquire()
    lock.acquire()


def ignore_every_error():
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(600)


def wait_for_a_process():
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
    process.start()
    process.join()


def stop(act, number, after=lambda: None):
    """Send a signal to a copy of this process and call `act()`; return its exit code and its report.

    The report ends when the copy and all its processes have ended.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            signal.signal(number, signal.SIG_DFL)
            progress.STOP_SECONDS = 0.3
            with StopRequest(lambda place: os.write(writer, place.encode())):
                os.kill(os.getpid(), number)
                act()
            after()
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as report:
        text = report.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), text


@pytest.mark.one_in(4)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    "hang", [lambda: time.sleep(600), loop, wait_for_itself, ignore_every_error, wait_for_a_process]
)
def test_what_hangs_ends_after_the_first_signal_and_its_place_is_named(hang, number):
    code, text = stop(hang, number)
    assert code == 128 + number
    assert re.search(r"\.py, line \d+$", text)
    assert hang is wait_for_a_process or __file__ in text


def test_the_processes_of_what_hangs_end_too():
    def hang():
        if os.fork() == 0:  # as a process of an environment, to which the signal is sent as well
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        time.sleep(600)

    assert stop(hang, signal.SIGTERM)[0] == 128 + signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_what_ends_soon_ends_as_usual(number):
    assert stop(lambda: None, number, after=lambda: time.sleep(0.5)) == (0, "")


def test_ctrl_c_sets_no_limit_of_time():
    assert stop(lambda: time.sleep(0.6), signal.SIGINT) == (0, "")
