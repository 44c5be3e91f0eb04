"""Retrieval from a long text under context policies: a needle by length and depth, and RULER tasks.

scrubjay longcontext haystack novels.deb --lengths 1024 2048 --depths 0 50 --methods full sinks infiniretri
scrubjay longcontext haystack novels.deb --tasks single_1 multikey_1 variable_tracking --lengths 4096
"""

from __future__ import annotations

import dataclasses
import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, get_type_hints

from scrubjay.experiments.lm.needles import Example, Needles, fit, split_sentences, token_counter
from scrubjay.experiments.lm.options import INFINIRETRI, NEEDLE, HaystackOptions
from scrubjay.experiments.lm.reading import Answer, answer, answer_with_infiniretri
from scrubjay.experiments.lm.ruler import make_example
from scrubjay.experiments.measurements import Records, markdown, select, write_table
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.memory.context.infiniretri import InfiniRetri

_ONE_NEEDLE = Needles(new_tokens=24)


@dataclass(frozen=True)
class Cell:
    """One example in the grid of tasks, lengths, depths and samples."""

    task: str
    """Task name."""
    length: int
    """Maximum number of tokens of text, question and answer together."""
    depth: float | None
    """Depth of the needle in percent; None for random depths."""
    sample: int
    """Index among the examples of the same task, length and depth."""


AnswerFunction = Callable[[str, Example], Answer]
"""Function from a method name and an example to an answer."""


def run_haystack(options: HaystackOptions, command: str) -> list[Path]:
    """Run the measurements that the output directory lacks, write table and plot, and return their paths.

    Raises ValueError on invalid options. Each answer is saved at once, so Ctrl-C loses none.
    """
    from scrubjay.experiments.lm.plots import plot_haystack

    model, tokenizer = options.start()
    sentences = split_sentences(options.read())
    kinds = get_type_hints(Cell) | get_type_hints(Answer) | {"method": str}
    records = Records(options.out / "answers.jsonl", kinds)

    @functools.cache
    def reader() -> InfiniRetri:
        # Half of the budget for selected sentences, half for new text.
        return InfiniRetri(model, tokenizer, chunk_tokens=options.budget // 2)

    def ask(method: str, example: Example) -> Answer:
        if method == INFINIRETRI:
            return answer_with_infiniretri(
                model, tokenizer, reader(), example, options.block, options.out, options.quiet
            )
        return answer(model, tokenizer, options.policy(method), example, options.block)

    fill(records, options, sentences, token_counter(tokenizer), ask)
    rows = [row for row in records.rows if _matches(row, options)]
    sections = [_describe_setup(options), _scores(rows, options), _costs(rows, options)]
    table = write_table(options.out, command, *sections)
    return [table, plot_haystack(rows, options.methods, options.out / "map.png")]


def cells(options: HaystackOptions) -> list[Cell]:
    """Return the cells of the grid of tasks, lengths, depths and samples, shortest texts first."""
    return [
        Cell(task, length, depth, sample)
        for length in sorted(options.lengths)
        for task in options.tasks
        for depth in (options.depths if task == NEEDLE else (None,))
        for sample in range(options.samples)
    ]


def make_cell(cell: Cell, sentences: Sequence[str], count: Callable[[Example], int], seed: int) -> Example:
    """Return the example of one grid cell. It depends only on the seed and the cell."""
    own = f"{seed} {cell}"
    if cell.task != NEEDLE:
        return make_example(cell.task, cell.length, count, sentences, own)
    return fit(
        lambda size: _ONE_NEEDLE.build(size, random.Random(own), sentences, cell.depth), cell.length, count
    )


def fill(
    records: Records,
    options: HaystackOptions,
    sentences: Sequence[str],
    count: Callable[[Example], int],
    ask: AnswerFunction,
) -> None:
    """Let each method answer the examples that it has not answered yet; append one record per answer."""
    missing = [
        (cell, methods)
        for cell in cells(options)
        if (methods := [m for m in options.methods if not records.find(**dataclasses.asdict(cell), method=m)])
    ]
    total = sum(cell.length * len(methods) for cell, methods in missing)
    with ProgressDisplay("haystack, tokens", total, 0, not options.quiet) as display:
        done = 0
        for cell, methods in missing:
            example = make_cell(cell, sentences, count, options.seed)
            for method in methods:
                response = ask(method, example)
                records.append({**dataclasses.asdict(cell), "method": method, **dataclasses.asdict(response)})
                done += cell.length
                display.update(done, {})


def _matches(row: dict[str, Any], options: HaystackOptions) -> bool:
    return (
        row["task"] in options.tasks
        and row["length"] in options.lengths
        and (row["depth"] is None or row["depth"] in options.depths)
        and row["sample"] < options.samples
        and row["method"] in options.methods
    )


def _describe_setup(options: HaystackOptions) -> str:
    whole = [m for m in options.methods if m != INFINIRETRI and options.policy(m).query_aware]
    but = f", but in one pass under {', '.join(whole)}" if whole else ""
    return (
        f"{options.model} reads in blocks of {options.block} tokens{but}, under a budget of "
        f"{options.budget} keys (full "
        f"has none; {INFINIRETRI} reads chunks of half as many), and answers greedily. Scores: mean "
        "fraction of the references found, in percent."
    )


def _scores(rows: Sequence[dict[str, Any]], options: HaystackOptions) -> str:
    lines = []
    for task in options.tasks:
        for method in options.methods:
            own = select(rows, task=task, method=method)
            means = [
                fmean(row["score"] for row in select(own, length=length))
                for length in sorted(options.lengths)
            ]
            lines.append([f"{task}, {method}", len(own), *(f"{100 * mean:.0f}" for mean in means)])
    return markdown(["task, method", "answers", *(f"{n:,}" for n in sorted(options.lengths))], lines)


def _costs(rows: Sequence[dict[str, Any]], options: HaystackOptions) -> str:
    lines = []
    for length in sorted(options.lengths):
        for method in options.methods:
            own = select(rows, length=length, method=method)
            lines.append(
                [
                    f"{length:,}, {method}",
                    f"{fmean(row['cpu'] for row in own):.1f}",
                    f"{fmean(row['wall'] for row in own):.1f}",
                    f"{1000 * fmean(row['cpu'] / row['tokens'] for row in own):.2f}",
                    f"{max(row['cache_bytes'] for row in own) / 2**20:.1f}",
                    f"{max(row['resident'] for row in own) / 2**20:,.0f}",
                ]
            )
    columns = ["length, method", "CPU s per answer", "wall s", "CPU ms/token", "cache, MiB", "process, MiB"]
    return markdown(columns, lines)
