"""Fuzzer: hostile files of every kind against every command and loader.

    make fuzz
    make fuzz ARGS="--minutes 120 --seed 7"
    make fuzz ARGS="--seed 3 --only banks --try 1234"

A try copies an honest sample, mutates it, and reads it in a forked child with limits. A law is broken by a
traceback, an unforeseen error, a signal, a hang, too much memory, code that runs, a file written elsewhere,
control characters in the output, or a silent change. Ctrl-C stops; the same command continues.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import pkgutil
import shutil
import sys
import time
from pathlib import Path

for _name, _value in (("OMP_NUM_THREADS", "1"), ("TOKENIZERS_PARALLELISM", "false"), ("MPLBACKEND", "Agg")):
    os.environ.setdefault(_name, _value)
os.environ |= {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "100", "RAY_ADDRESS": "local"}

from . import plan as plans
from .child import adopt_orphans, run_child
from .findings import add_finding, format_table, load_progress, save_progress
from .samples import MAKERS, make_samples
from .targets import TARGETS

_MODULES = (
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto", "torch.export"),
    *("transformers.models.auto.tokenization_auto", "transformers.generation", "trafilatura", "gguf"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "PIL.GifImagePlugin", "PIL.PngImagePlugin"),
    *("pyarrow.parquet", "pandas", "http.client", "langgraph.checkpoint.base", "llguidance", "xml.etree"),
    *("scrubjay.agents.langchain", "scrubjay.agents.kwai", "torch.utils.tensorboard", "lxml.html"),
)


def main() -> int:
    """Run the fuzzer; return 1 if it found a fault."""
    options = _parse()
    folder = options.out
    folder.mkdir(parents=True, exist_ok=True)
    kinds = tuple(options.only or MAKERS)
    try:
        progress = load_progress(folder, options.seed)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.report:
        print(format_table(progress))
        return 0
    adopt_orphans()
    print("importing the libraries", flush=True)
    import_all()
    samples, work = folder / "samples", folder / "work"
    print("making the samples that are missing", flush=True)
    making = run_child(lambda: make_samples(samples, kinds), folder / "making", cpu=600)
    if "value" not in making.result:
        print(making.err, making.result, file=sys.stderr)
        return 2
    honest = plans.HonestResults(samples, work)
    if options.number is not None:
        return _repeat(options, kinds, samples, work, honest)
    try:
        _fuzz(options, kinds, folder, honest)
    except KeyboardInterrupt:
        print("\nstopped; the same command continues")
    progress = load_progress(folder, options.seed)
    print(f"\n{format_table(progress)}\n\nfindings: {folder / 'findings'}")
    return 1 if progress.findings else 0


def import_all() -> None:
    """Import what the targets need, so that a forked child starts at once."""
    import scrubjay

    for package in ("memory", "agents", "envs", "experiments"):
        path = importlib.import_module(f"scrubjay.{package}").__path__
        for module in pkgutil.walk_packages(path, f"{scrubjay.__name__}.{package}."):
            if not {"rllib", "bench", "quality", "launch"}.intersection(module.name.split(".")[2:-1]):
                _import(module.name)
    for name in _MODULES:
        _import(name)
    gc.collect()
    gc.freeze()


def _import(name: str) -> None:
    with contextlib.suppress(ImportError):  # an extra that is not installed
        importlib.import_module(name)


def _fuzz(
    options: argparse.Namespace, kinds: tuple[str, ...], folder: Path, honest: plans.HonestResults
) -> None:
    progress = load_progress(folder, options.seed)
    samples, work = folder / "samples", folder / "work"
    begin = last_time = time.monotonic()
    last_line = 0.0
    while time.monotonic() - begin < 60 * options.minutes:
        kind = min(kinds, key=lambda kind: progress.tries.get(kind, 0))
        number = progress.tries.get(kind, 0)
        plan = plans.make_plan(options.seed, kind, number, samples)
        value = honest.of(plan)
        outcome, faults = plans.run_plan(plan, samples, work, value)
        for fault in faults:
            if add_finding(folder, progress, plan, number, fault, outcome, work / "here"):
                name = TARGETS[plan.target].name
                print(f"\n{fault.law}: {name}: {fault.signature!r} ({kind} {number})", flush=True)
        now = time.monotonic()
        progress.tries[kind] = number + 1
        value = outcome.result.get("value", "none")
        is_command = not TARGETS[plan.target].errors
        progress.acceptances[kind] = progress.acceptances.get(kind, 0) + (
            value == 0 if is_command else value != "none"
        )
        progress.seconds, last_time = progress.seconds + now - last_time, now
        save_progress(folder, progress)
        if now - last_line > (1 if sys.stdout.isatty() else 60):
            last_line = now
            left = int(60 * options.minutes - (now - begin))
            tries = f"{sum(progress.tries.values()):,} tries, {len(progress.findings)} findings"
            line = f"{tries}, {left // 60}:{left % 60:02} left"
            print(
                f"\r{line} " if sys.stdout.isatty() else line,
                end="" if sys.stdout.isatty() else "\n",
                flush=True,
            )
    shutil.rmtree(work, ignore_errors=True)


def _repeat(
    options: argparse.Namespace,
    kinds: tuple[str, ...],
    samples: Path,
    work: Path,
    honest: plans.HonestResults,
) -> int:
    """Run one try alone, with as few of its mutations as possible, and print everything about it."""
    plan = plans.make_plan(options.seed, kinds[0], options.number, samples)
    value = honest.of(plan)
    outcome, faults = plans.run_plan(plan, samples, work, value)
    if faults and len(plan.steps) > 1:
        plan = plans.minimize(plan, faults[0], samples, work, value)
        outcome, faults = plans.run_plan(plan, samples, work, value)
    print(f"{TARGETS[plan.target].name} of {plan.sample} as {plan.name!r}", *plan.steps, sep="\n  ")
    print(outcome.out[-2000:], outcome.err[-4000:], outcome.result, outcome.stops, outcome.events, sep="\n")
    print(f"{outcome.cpu:.1f} s of CPU, {outcome.memory >> 20} MiB, {outcome.processes} processes")
    print(*(faults or ["no fault"]), f"files: {work}", sep="\n")
    return 1 if faults else 0


def _parse() -> argparse.Namespace:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    parser = argparse.ArgumentParser(
        prog="make fuzz", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10, help="duration (default: 10)")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the tries")
    parser.add_argument("--only", nargs="+", choices=list(MAKERS), help="kinds of input (default: all)")
    parser.add_argument(
        "--try", type=int, dest="number", metavar="N", help="run try N of the kind of --only alone"
    )
    parser.add_argument("--out", type=Path, help="folder for samples, progress and findings")
    parser.add_argument("--report", action="store_true", help="print the tables of the run in --out")
    options = parser.parse_args()
    if options.number is not None and len(options.only or ()) != 1:
        parser.error("--try needs one kind: add --only KIND")
    options.out = (options.out or cache / "scrubjay" / "fuzz" / str(options.seed)).absolute()
    return options


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # frozen objects of libraries would report leaks
