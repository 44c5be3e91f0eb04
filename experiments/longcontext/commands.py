"""`scrubjay longcontext`: one measurement a word."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from scrubjay.experiments.longcontext.agreement import AgreementOptions, run_agreement
from scrubjay.experiments.longcontext.haystack import HaystackOptions, run_haystack
from scrubjay.experiments.longcontext.perplexity import PerplexityOptions, run_perplexity
from scrubjay.experiments.longcontext.speed import SpeedOptions, run_speed
from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.stopping import Interrupted
from scrubjay.experiments.words.arguments import UsageError, choose, parse
from scrubjay.experiments.words.foreign import one_line

MEASUREMENTS: dict[str, tuple[str, type, Callable[[Any, str], list[Path]]]] = {
    "perplexity": ("of a text, streamed: the curve, time and memory", PerplexityOptions, run_perplexity),
    "haystack": ("needles by length and depth, and RULER's tasks", HaystackOptions, run_haystack),
    "speed": ("time per token after contexts of several lengths", SpeedOptions, run_speed),
    "agreement": ("of every policy with the full cache", AgreementOptions, run_agreement),
}


def longcontext(words: Sequence[str]) -> int:
    """`scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]`."""
    if not words or words[0] in ("-h", "--help"):
        width = max(map(len, MEASUREMENTS))
        lines = "\n".join(f"  {name:<{width}}  {what}" for name, (what, *_) in MEASUREMENTS.items())
        print(
            "usage: scrubjay longcontext MEASUREMENT TEXT [--methods NAME ...] [--budget N] [--out DIR]\n\n"
            f"{lines}\n\nscrubjay longcontext MEASUREMENT --help lists every option."
        )
        return 0
    name = choose("measurement", words[0], list(MEASUREMENTS))
    _, kind, run = MEASUREMENTS[name]
    options = parse(kind, words[1:], f"scrubjay longcontext {name}")
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
