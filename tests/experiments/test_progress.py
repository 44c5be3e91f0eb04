"""The progress line of the latest metrics, and the display of steps and remaining time."""

import contextlib
import io
import os
import re
import threading
from types import SimpleNamespace

import pytest

import scrubjay
from scrubjay.experiments import progress
from scrubjay.experiments.progress import ProgressDisplay, describe_row, loss_warnings

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
