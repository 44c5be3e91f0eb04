"""`scrubjay longcontext`: one measurement a word."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.longcontext.options import (
    AgreementOptions,
    HaystackOptions,
    MeasureOptions,
    PerplexityOptions,
    SpeedOptions,
)
from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.words.arguments import UsageError, choose, parse
from scrubjay.experiments.words.foreign import one_line

MEASUREMENTS: dict[str, tuple[str, type[MeasureOptions]]] = {
    "perplexity": ("of a text, streamed: the curve, time and memory", PerplexityOptions),
    "haystack": ("needles by length and depth, and RULER's tasks", HaystackOptions),
    "speed": ("time per token after contexts of several lengths", SpeedOptions),
    "agreement": ("of every policy with the full cache", AgreementOptions),
}
"""What each measures, and its options; `run_NAME` of the module NAME beside this one measures it."""


def longcontext(words: Sequence[str]) -> int:
    """`scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]`."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, MEASUREMENTS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (what, _) in MEASUREMENTS.items())
        print(
            "usage: scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]\n\n"
            f"{lines}\n\nscrubjay longcontext MEASUREMENT --help lists every option."
        )
        return 0
    name = choose("measurement", words[0], list(MEASUREMENTS))
    options = parse(MEASUREMENTS[name][1], words[1:], f"scrubjay longcontext {name}")
    run = _measure(name)
    from scrubjay.experiments.runs.device import one_thread

    try:
        with one_thread():
            written = run(options, f"scrubjay longcontext {shlex.join(words)}")
    except KeyboardInterrupt as stop:
        print("\nstopped; the same command goes on")
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    print(*map(one_line, written), sep="\n")
    return 0


def _measure(name: str) -> Callable[[Any, str], list[Path]]:
    try:
        return getattr(importlib.import_module(f"{__package__}.{name}"), f"run_{name}")
    except ModuleNotFoundError as error:
        raise UsageError(f"longcontext needs more: pip install 'scrubjay[lm]' ({error})") from error
