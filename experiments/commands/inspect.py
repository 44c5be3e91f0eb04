"""`scrubjay inspect`: what the attention of a language model does on a text."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.experiments.reports.attention import InspectOptions, inspect_model
from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.terminal import bad_input


def run(words: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--out PNG]`."""
    options = parse(InspectOptions, words, "scrubjay inspect")
    with bad_input():
        return inspect_model(options)
