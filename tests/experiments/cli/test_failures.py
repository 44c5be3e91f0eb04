"""Error reporting in a real process, with closed, full or ASCII-only output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from scrubjay.experiments.cli.failures import describe
from scrubjay.experiments.files import lock
from scrubjay.experiments.runs.run import Run

LONG = ["--total-steps", "9000000", "--env.num-envs", "4", "--segment-length", "8", "--run-dir", "run"]


@pytest.fixture
def shell(tmp_path):
    def run(line, **variables):
        done = subprocess.run(
            [
                "bash",
                "-c",
                line.replace("scrubjay", f"{sys.executable} -m scrubjay"),
            ],
            cwd=tmp_path,
            env={**os.environ, **variables},
            capture_output=True,
            timeout=600,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run


def test_output_that_cannot_be_written_is_told_in_one_line(shell):
    assert shell("scrubjay --help > /dev/full") == (
        1,
        b"",
        b"scrubjay: standard output: No space left on device\n",
    )
    assert shell("scrubjay --help >&-") == (0, b"", b"")
    assert shell("scrubjay trian 2>&-") == (2, b"", b"")
    assert shell("(sleep 1; exec scrubjay --help) | true; echo ${PIPESTATUS[0]}") == (0, b"141\n", b"")


@pytest.mark.slow
def test_letters_that_an_encoding_lacks_are_escaped_and_json_stays_json(shell):
    few = {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    assert shell("scrubjay memory add bank.db '\u00e9t\u00e9'")[0] == 0
    code, out, err = shell("scrubjay memory search bank.db '\u00e9t\u00e9' --json", **few)
    assert (code, err) == (0, b"")
    assert json.loads(out)["text"] == "\u00e9t\u00e9"
    code, out, err = shell("scrubjay plot $'no\\xffwhere'", **few)
    assert (code, out, err) == (2, b"", b"scrubjay: no run at no\\udcffwhere\n")


def test_a_word_that_is_not_utf_8_is_named():
    with pytest.raises(UnicodeEncodeError) as error:
        "no\udcffwhere".encode()
    assert describe(error.value) == r"'\udcff' is not valid UTF-8; choose another name or text"


@pytest.mark.slow
def test_of_two_trainings_of_one_directory_the_second_is_refused(start, scrubjay, tmp_path):
    """The lock is held until the first process has exited, however it exited."""
    both = [start("train", "tmaze-demo", *LONG) for _ in range(2)]
    while all(process.poll() is None for process in both):
        time.sleep(0.1)
    (second,) = [process for process in both if process.poll() is not None]
    (first,) = [process for process in both if process is not second]
    out, err = second.communicate()
    assert (second.returncode, out) == (2, "")
    assert err.count("\n") == 1
    assert "is being trained by another process" in err or "already holds a run" in err
    while not (tmp_path / "run" / "metrics.jsonl").exists():
        time.sleep(0.1)
    code, _, err = scrubjay("resume", "run")
    assert (code, err.count("\n")) == (2, 1)
    assert "is being trained by another process" in err
    first.kill()
    first.communicate()
    lock(tmp_path / "run").close()
    going_on = start("resume", "run")
    before = len(Run.load(tmp_path / "run").metrics())
    while len(Run.load(tmp_path / "run").metrics()) <= before:
        time.sleep(0.1)
    going_on.send_signal(signal.SIGINT)
    out, err = going_on.communicate()
    assert (going_on.returncode, "resume with: scrubjay resume run" in out, err) == (130, True, "")
