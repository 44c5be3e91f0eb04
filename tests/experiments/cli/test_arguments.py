"""Errors of command-line parsing name the fix."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.memory.titans.lmm import TitansConfig

HOW = ": a boolean option takes no value; use --bound-steps or --no-bound-steps"


@dataclass(frozen=True)
class OneRun:
    run: Positional[str]
    clip: float = 0.2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--bound_steps", "false"], f"'false'{HOW}"),
        (["--bound-steps=True"], f"'True'{HOW}"),
        (["--no-bound-steps", "true"], f"'true'{HOW}"),
        (["false"], "'false'"),
        (["--bound-steps", "maybe"], "'maybe'"),
    ],
)
def test_a_switch_with_a_value_is_told_how_it_is_said(words, message):
    with pytest.raises(UsageError) as error_info:
        parse(TitansConfig, words, "scrubjay")
    assert str(error_info.value) == f"unexpected argument {message}"


def test_a_switch_without_a_value_is_taken():
    assert parse(TitansConfig, ["--no-bound-steps"], "scrubjay") == TitansConfig(bound_steps=False)


def test_what_has_no_flag_is_never_named_as_one():
    with pytest.raises(UsageError, match="unknown option '--rum'; --help lists all"):
        parse(OneRun, ["a", "--rum", "3"], "scrubjay")


def test_a_wrong_flag_is_named_beside_one_that_the_command_takes_itself():
    with pytest.raises(UsageError, match="unknown option '--memroy'; did you mean '--memory'"):
        parse(OneRun, ["a", "--memroy", "3"], "scrubjay", extra_flags=["--memory"])


@dataclass(frozen=True)
class TwoParagraphs:
    """Options whose descriptions span lines."""

    clip: float = 0.2
    """First line that ends here
    (and goes on) with
    `three` lines.

    Second paragraph."""


@pytest.mark.parametrize("width", [80, 120])
def test_help_joins_the_lines_of_a_paragraph_and_keeps_paragraphs(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    with pytest.raises(SystemExit):
        parse(TwoParagraphs, ["--help"], "scrubjay")
    words = [" ".join(line.strip("│| ").split()) for line in capsys.readouterr().out.splitlines()]
    start = next(number for number, line in enumerate(words) if "First line" in line)
    text = "\n".join(words[start:])
    sentence = "First line that ends here (and goes on) with `three` lines."
    assert sentence in (" ".join(text.split()) if width == 80 else text)
    assert f"{sentence} Second" not in text
