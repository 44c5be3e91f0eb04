"""`scrubjay inspect`: what the attention of a language model does on a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import one_line
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
    look: Path | None = None
    """A page (.html) or a trace (.json), too: of each of these tokens what it attends to in these layers."""


def run(words: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--out PNG] [--look PAGE]`."""
    options = parse(InspectOptions, words, "scrubjay inspect")
    from scrubjay.experiments.reports.attention import inspect_model

    with bad_input():
        if options.look is not None:
            from scrubjay.experiments.looking.look import Look, check_format

            check_format(options.look)
        seen = inspect_model(options.model, options.text, options.layers, options.tokens, options.out)
        if options.look is not None:
            from scrubjay.experiments.looking.reading import trace_reading

            title = f"{options.model} reads {options.text.name}"
            Look(trace_reading(*seen, title)).save(options.look)
            print(one_line(f"page: {options.look}"))
    return 0
