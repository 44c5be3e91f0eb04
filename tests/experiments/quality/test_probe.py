"""What every probe's command line does: a report, errors in a line, and what goes on after a stop."""

from dataclasses import dataclass

import pytest

from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.runs.stopping import Interrupted


@dataclass(frozen=True)
class Options:
    """Of a probe."""

    size: int = 1
    """How large."""


@pytest.fixture
def asked(monkeypatch, capsys):
    """Run a probe with `--size 3`, and return its exit code and what it said."""

    def ask(run):
        monkeypatch.setattr("sys.argv", ["probe", "--size", "3"])
        code = run_probe("sizes", Options, "About.", run)
        return code, *capsys.readouterr()

    return ask


def test_a_report_or_lines_are_printed_with_the_command_that_made_them(asked, tmp_path):
    def report(options, command):
        (tmp_path / "report.md").write_text(f"size {options.size} by {command}")
        return tmp_path / "report.md"

    told = "size 3 by python -P -m scrubjay.experiments.quality.sizes --size 3\n"
    assert asked(report) == (0, told, "")
    assert asked(lambda options, command: ["one", "two"]) == (0, "one\ntwo\n", "")


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (Interrupted(15), 143)],
    ids=["key", "signal"],
)
def test_who_stops_it_is_told_that_the_same_command_goes_on(asked, stop, code):
    def stopped(options, command):
        raise stop

    assert asked(stopped) == (code, "\nstopped; the same command goes on\n", "")


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_is_a_line(asked, error):
    def fails(options, command):
        raise error("size=3:\n  too large")

    assert asked(fails) == (2, "", "error: size=3: too large\n")
