"""The command of the soak: parts, tables and errors."""

import sys

import pytest

from scrubjay.experiments.bench.soak.__main__ import main
from scrubjay.experiments.bench.soak.tables import _count_searches

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def test_the_searches_of_a_resumed_soak_are_added():
    rows = [{"reader searches": count} for count in (3, 7, 7, 2, 5)]
    assert _count_searches(rows) == 12


@pytest.mark.slow
def test_the_command_writes_the_tables_and_resumes(tmp_path, capsys):
    words = [
        "--parts",
        "bank",
        "segments",
        "--bank.records",
        "400",
        "--bank.kills",
        "1",
        "--bank.batch",
        "20",
    ]
    words += ["--segments.memories", "gru", "--segments.steps", "100", "--out", str(tmp_path)]
    assert main(words) == 0
    text = (tmp_path / "soak.md").read_text()
    assert text in capsys.readouterr().out
    assert "| gru | " in text
    assert "2 kills of the writer" in text
    assert main(words) == 0
    assert main([*words, "--bank.seed", "1"]) == 2
    assert "holds other results" in capsys.readouterr().err
