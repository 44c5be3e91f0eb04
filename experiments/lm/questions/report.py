"""Tables of `scrubjay longcontext questions`: scores by budget and time of the question, kinds, and costs."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from scrubjay.experiments.lm.options import QuestionsOptions
from scrubjay.experiments.lm.questions.passages import KINDS
from scrubjay.experiments.measurements import markdown, select
from scrubjay.experiments.statistics import bootstrap_interval

Rows = Sequence[dict[str, Any]]


def make_sections(
    options: QuestionsOptions,
    answers: Rows,
    streams: Rows,
    keeps_all: Collection[str],
    refusals: Mapping[tuple[str, float], str],
) -> list[str]:
    """Return the sections of the report.

    Args:
        options: Options of the measurement.
        answers: One row for each answer.
        streams: One row for each perplexity.
        keeps_all: Methods that keep all tokens.
        refusals: Reason for each budget that a policy refuses.
    """
    sections = [_describe(options, answers)]
    for title, is_complete in (("Policies that drop tokens", False), ("Policies that keep all tokens", True)):
        own = [row for row in answers if (row["method"] in keeps_all) == is_complete]
        own_streams = [row for row in streams if (row["method"] in keeps_all) == is_complete]
        if own:
            sections += [f"## {title}", _score_table(own), _kind_table(own), _cost_table(own, own_streams)]
    if refusals:
        lines = [[f"{name}, {_percent(share)}", why] for (name, share), why in refusals.items()]
        sections += ["## Budgets that were refused", markdown(["policy, budget", "reason"], lines, "---")]
    return sections


def _describe(options: QuestionsOptions, answers: Rows) -> str:
    return (
        f"{options.model} in {options.dtype} reads texts of at most {options.length:,} tokens and answers "
        f"greedily. A stream has blocks of {options.block} tokens. Scores are the means over all questions, "
        "in percent of the references found, with 95 % intervals from a bootstrap over the texts. Each cell "
        f"of the first table has at most {_most_answers(answers)} questions. A policy that neither looks at "
        "the question nor compresses a prompt at its end answers alike at all times, and is measured once."
    )


def _most_answers(answers: Rows) -> int:
    counts: dict[tuple[Any, ...], int] = {}
    for row in answers:
        key = row["method"], row["share"], row["time"]
        counts[key] = counts.get(key, 0) + 1
    return max(counts.values(), default=0)


def score_interval(rows: Rows) -> tuple[float, float, float]:
    """Return the mean score of some answers, and its 95 % interval from a bootstrap over the texts."""
    texts: dict[tuple[str, int], list[float]] = {}
    for row in rows:
        texts.setdefault((row["passage"], row["sample"]), []).append(row["score"])
    sums = np.array([sum(scores) for scores in texts.values()])
    counts = np.array([len(scores) for scores in texts.values()])

    def mean(draws: Any) -> float:
        index = draws.astype(int).ravel()
        return float(sums[index].sum() / counts[index].sum())

    return float(sums.sum() / counts.sum()), *bootstrap_interval(np.arange(len(texts)), mean)


def _score_table(rows: Rows) -> str:
    """Return the scores of each method and budget, best first within each budget."""
    times = [time for time in ("known", "later", "streaming") if select(rows, time=time)]
    lines: list[tuple[float, float, list[str]]] = []
    for method, share in _contenders(rows):
        own = select(rows, method=method, share=share)
        cells = [_interval_cell(select(own, time=time)) for time in times]
        lines.append((-share, -fmean(row["score"] for row in own), [f"{method}, {_percent(share)}", *cells]))
    columns = ["policy, budget", *({"known": "question known"}.get(time, time) for time in times)]
    return markdown(columns, [line for *_, line in sorted(lines)])


def _interval_cell(rows: Rows) -> str:
    if not rows:
        return ""
    mean, low, high = (100 * value for value in score_interval(rows))
    return f"{mean:.0f} [{low:.0f}, {high:.0f}]"


def _kind_table(rows: Rows) -> str:
    """Return the score of each kind of question, over all times."""
    lines = []
    for method, share in _contenders(rows):
        own = select(rows, method=method, share=share)
        by_kind = [[row["score"] for row in select(own, kind=kind)] for kind in KINDS]
        lines.append(
            [f"{method}, {_percent(share)}", *(f"{100 * fmean(x):.0f}" if x else "" for x in by_kind)]
        )
    return markdown(["policy, budget", *(kind.replace("_", " ") for kind in KINDS)], lines)


def _cost_table(rows: Rows, streams: Rows) -> str:
    lengths = sorted({row["length"] for row in streams})
    lines = []
    for method, share in _contenders(rows):
        own = select(rows, method=method, share=share)
        perplexities = [select(streams, method=method, share=share, length=length) for length in lengths]
        # A "known" question is part of the prompt, so that these rows have generated tokens only.
        generations = select(own, time="known") or own
        steps = sum(row["steps"] for row in generations)
        lines.append(
            [
                f"{method}, {_percent(share)}",
                f"{max(row['cache_bytes'] for row in own) / 2**20:.1f}",
                f"{1000 * sum(row['cpu'] for row in generations) / steps:.1f}" if steps else "",
                f"{fmean(row['read_cpu'] for row in own):.1f}",
                *(f"{math.exp(matches[0]['nats']):.2f}" if matches else "" for matches in perplexities),
            ]
        )
    columns = [
        "policy, budget",
        "cache, MiB",
        "CPU ms per generated token",
        "CPU s per text",
        *(f"perplexity, {length:,} tokens" for length in lengths),
    ]
    return markdown(columns, lines)


def _contenders(rows: Rows) -> list[tuple[str, float]]:
    return list(dict.fromkeys((row["method"], row["share"]) for row in rows))


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
