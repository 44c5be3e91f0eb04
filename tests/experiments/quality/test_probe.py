"""Tests of the probes' command line: a report, one-line errors, and the message after a stop."""

from dataclasses import dataclass

import pytest

from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.quality.probe import run_probe


@dataclass(frozen=True)
class Options:
    """Options of a probe."""

    size: int = 1
    """Size of the probe."""


@pytest.fixture
def call_probe(monkeypatch, capsys):
    """Run a probe with `--size 3`, and return its exit code and output."""

    def ask(run):
        monkeypatch.setattr("sys.argv", ["probe", "--size", "3"])
        code = run_probe("sizes", Options, "About.", run)
        return code, *capsys.readouterr()

    return ask


def test_a_report_or_lines_are_printed_with_the_command_that_made_them(call_probe, tmp_path):
    def report(options, command):
        (tmp_path / "report.md").write_text(f"size {options.size} by {command}")
        return tmp_path / "report.md"

    report_text = "size 3 by python -P -m scrubjay.experiments.quality.sizes --size 3\n"
    assert call_probe(report) == (0, report_text, "")
    assert call_probe(lambda options, command: ["one", "two"]) == (0, "one\ntwo\n", "")


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (GracefulInterrupt(15), 143)],
    ids=["key", "signal"],
)
def test_who_stops_it_is_told_that_the_same_command_goes_on(call_probe, stop, code):
    def interrupt(options, command):
        raise stop

    assert call_probe(interrupt) == (code, "\nstopped; run the same command to resume\n", "")


@pytest.mark.parametrize("error", [ValueError, OSError, ImportError])
def test_an_error_is_a_line(call_probe, error):
    def fails(options, command):
        raise error("size=3:\n  too large")

    assert call_probe(fails) == (2, "", "error: size=3: too large\n")
