"""`scrubjay inspect`: what the attention of a language model does on a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.terminal import bad_input


@dataclass(frozen=True)
class InspectOptions:
    """Show a model's attention sinks, its retrieval heads and attention maps on a text."""

    model: Positional[str]
    """"smollm2", a folder of transformers, or a GGUF file."""
    text: Path
    """A text file in a language of the model."""
    layers: tuple[int, ...] = ()
    """Layers to draw the maps of; default: the first, those of the strongest sink and of retrieval, the
    last."""
    tokens: int = 128
    """Tokens from the text's beginning that the maps show."""
    out: Path = Path("inspect.png")
    """The picture."""


def run(words: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--out PNG]`."""
    options = parse(InspectOptions, words, "scrubjay inspect")
    from scrubjay.experiments.reports.attention import inspect_model

    with bad_input():
        inspect_model(options.model, options.text, options.layers, options.tokens, options.out)
    return 0
