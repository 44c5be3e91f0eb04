"""`scrubjay longcontext`: what context policies keep of a long text, measured in a real language model."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.experiments.words.arguments import UsageError


def run(words: Sequence[str]) -> int:
    """`scrubjay longcontext perplexity|haystack|speed|agreement TEXT [--methods NAME ...] [--out DIR]`."""
    try:
        from scrubjay.experiments.longcontext.commands import longcontext
    except ModuleNotFoundError as error:
        raise UsageError(f"longcontext needs more: pip install 'scrubjay[lm]' ({error})") from error
    return longcontext(words)
