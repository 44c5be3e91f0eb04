"""Command lines that cannot be parsed are told what to say instead."""

import pytest

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.failures import UsageError
from scrubjay.memory.titans.lmm import TitansConfig

HOW = ": a switch takes no value, --bound-steps is on and --no-bound-steps off"


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
