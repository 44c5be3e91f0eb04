"""Command lines that cannot be parsed are told what to say instead."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.failures import UsageError
from scrubjay.memory.titans.lmm import TitansConfig

HOW = ": a switch takes no value, --bound-steps is on and --no-bound-steps off"


@dataclass(frozen=True)
class OneRun:
    run: Positional[str]
    clip: float = 0.2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--bound_steps", "false"], f"'false'{HOW}"),
        (["--bound-steps=True"], f"'True'{HOW}"),
        (["--no-bound-steps", "true"], f"'true'{HOW}"),
        (["false"], "'false'"),
        (["--bound-steps", "maybe"], "'maybe'"),
    ],
)
def test_a_switch_with_a_value_is_told_how_it_is_said(words, told):
    with pytest.raises(UsageError) as refused:
        parse(TitansConfig, words, "scrubjay")
    assert str(refused.value) == f"unexpected argument {told}"


def test_a_switch_without_a_value_is_taken():
    assert parse(TitansConfig, ["--no-bound-steps"], "scrubjay") == TitansConfig(bound_steps=False)


def test_what_has_no_flag_is_never_named_as_one():
    with pytest.raises(UsageError, match="unknown option '--rum'; --help lists all"):
        parse(OneRun, ["a", "--rum", "3"], "scrubjay")


def test_a_wrong_flag_is_named_beside_one_that_the_command_takes_itself():
    with pytest.raises(UsageError, match="unknown option '--memroy'; did you mean '--memory'"):
        parse(OneRun, ["a", "--memroy", "3"], "scrubjay", taken=["--memory"])
