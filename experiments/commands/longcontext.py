"""`scrubjay longcontext`: benchmark context policies of a language model on long texts."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.cli.arguments import UsageError, choose, parse
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.lm.options import (
    AgreementOptions,
    HaystackOptions,
    MeasureOptions,
    PerplexityOptions,
    SpeedOptions,
)
from scrubjay.experiments.progress import GracefulInterrupt

MEASUREMENTS: dict[str, tuple[str, type[MeasureOptions]]] = {
    "perplexity": ("perplexity of a streamed text by position, with time and memory", PerplexityOptions),
    "haystack": ("needle retrieval by length and depth, and RULER tasks", HaystackOptions),
    "speed": ("time per token after contexts of several lengths", SpeedOptions),
    "agreement": ("agreement of each policy with the full cache", AgreementOptions),
}
"""Description and options class by measurement; `run_NAME` in `scrubjay.experiments.lm.NAME` runs it."""


def run(arguments: Sequence[str]) -> int:
    """`scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]`."""
    if not arguments or arguments[0] in ("-h", "--help"):
        width = max(map(len, MEASUREMENTS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (what, _) in MEASUREMENTS.items())
        print(
            "usage: scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]\n\n"
            f"{lines}\n\nscrubjay longcontext MEASUREMENT --help lists every option."
        )
        return 0
    name = choose("measurement", arguments[0], list(MEASUREMENTS))
    options = parse(MEASUREMENTS[name][1], arguments[1:], f"scrubjay longcontext {name}")
    measure = _measure(name)
    from scrubjay.experiments.resources import one_thread

    try:
        with one_thread():
            paths = measure(options, f"scrubjay longcontext {shlex.join(arguments)}")
    except KeyboardInterrupt as stop:
        print("\nstopped; run the same command to resume")
        return stop.exit_code if isinstance(stop, GracefulInterrupt) else 130
    except (ValueError, OSError, ImportError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    print(*map(one_line, paths), sep="\n")
    return 0


def _measure(name: str) -> Callable[[Any, str], list[Path]]:
    try:
        return getattr(importlib.import_module(f"scrubjay.experiments.lm.{name}"), f"run_{name}")
    except ModuleNotFoundError as error:
        raise UsageError(
            f"longcontext needs missing packages: pip install 'scrubjay[lm]' ({error})"
        ) from error
