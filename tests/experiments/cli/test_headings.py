"""Headings in help texts are nouns, on any terminal."""

import io
import re

import pytest

from scrubjay.experiments.cli.headings import Headings, heading, rename_groups
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.main import main

NOUNS = {
    "arguments", "environment", "learner", "memory", "options", "policy", "settings of the environment",
    "suite",
}  # fmt: skip

ALL = [[command] for command in COMMANDS if command not in ("memory", "longcontext")]
ALL += [["memory", action] for action in ("add", "search", "show", "page", "forget", "import", "export")]
ALL += [["memory", action] for action in ("decisions", "undo", "bench", "facts")]
ALL += [["longcontext", name] for name in ("perplexity", "haystack", "speed", "agreement", "questions")]
ALL += [
    ["train", recipe] for recipe in ("tmaze", "ppo", "ballet-probe", "mqar", "needle", "uav-small", "team")
]
ALL += [["train", "tmaze", "--memory", memory] for memory in ("hcam", "titans_mac", "xlstm")]


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_headings_are_nouns(words, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr("sys.argv", ["scrubjay"])
    assert main([*words, "--help"]) == 0
    text = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    boxes = re.findall(r"^╭─ (.*?) ─*╮$", text, re.MULTILINE)
    rulers = re.findall(r"^ (\S.*?) *\n -+ *$", text, re.MULTILINE)
    assert {*boxes, *rulers} <= NOUNS
    assert len({len(line) for line in text.splitlines() if line.startswith(("╭", "╰"))}) <= 1


def test_a_heading_is_the_last_part_of_a_prefix():
    assert heading("policy.memory") == "memory"
    assert heading("policy.second_memory") == "second memory"


def test_colors_and_widths_are_kept():
    label = "\x1b[37m╭\x1b[0m\x1b[37m─\x1b[0m \x1b[37mpolicy\x1b[0m\x1b[37m options\x1b[0m "
    label += "\x1b[37m─────────╮\x1b[0m"
    text = rename_groups(label)
    assert re.sub(r"\x1b\[[\d;]*m", "", text) == "╭─ policy ─────────────────╮"
    assert text.startswith("\x1b[37m╭")
    assert rename_groups("  --env.id  env options ") == "  --env.id  env options "


def test_a_stream_is_otherwise_unchanged():
    stream = io.StringIO()
    headings = Headings(stream)
    headings.write(" env options  \n ------------\n")
    assert stream.getvalue().splitlines()[0].rstrip() == " environment"
    assert headings.isatty() is False
