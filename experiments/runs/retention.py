"""Scores of a run over time: final, best, and lowest after the task was first solved."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scrubjay.experiments.runs.metrics import WINDOW

_MEASURES = ("success", "episodic_return")
_EVALUATION, _TRAINING = "eval/", "charts/"

FIELDS = (
    "final",
    "best",
    "best_step",
    "lowest_after_solved",
    "solved_step",
    "solved_at",
    "lost",
    "evaluations",
)
"""Fields of result.json that `summarize_scores` adds."""


def rank(row: Mapping[str, float]) -> tuple[bool, float] | None:
    """Return the score of an evaluation in a row of metrics, in a form to compare; None without a score.

    The score is the success rate if the environment reports success, else the return.
    """
    for measure in _MEASURES:
        value = row.get(_EVALUATION + measure)
        if value is not None and math.isfinite(value):
            return measure == "success", value
    return None


def summarize_scores(
    rows: Sequence[Mapping[str, float]],
    result: Mapping[str, Any],
    find_solved_score: Callable[[str], float | None],
) -> dict[str, float]:
    """Return the final and the best score of a run, and whether it solved its task and lost it again.

    The scores are those of the evaluations during training. Without evaluations they are means over the last
    100 training episodes, whose actions are sampled, and the final evaluation can be the best score. A score
    is the success rate if there is one, else the return.

    | field | |
    | --- | --- |
    | `final` | score of the final evaluation, or else of the last evaluation |
    | `best`, `best_step` | best score and its step; the latest of equal scores |
    | `evaluations` | number of evaluations during training; 0 if the scores are those of training episodes |
    | `solved_at` | score at which the task counts as solved; absent if it is unknown |
    | `solved_step` | first step at which the task was solved; absent if it never was |
    | `lowest_after_solved` | lowest score since then, that of the final evaluation included |
    | `lost` | 1 if the task was solved, but is not any more at the end, else 0 |

    A task is lost if the 95 % interval of the final score lies below `solved_at` and below the interval of
    the best score. Without evaluations, the last training episodes must also score below `solved_at`.

    Args:
        rows: Rows of metrics.jsonl.
        result: Summary of the final evaluation; it may be empty.
        find_solved_score: Function from the name of a measure to the score at which the task counts as
            solved, as `RLConfig.find_solved_score`.
    """
    evaluations = [row for row in rows if rank(row) is not None]
    prefix = _EVALUATION if evaluations else _TRAINING
    candidates = evaluations or [row for row in rows if row.get("charts/episodes") == WINDOW]
    measures = [name for name in _MEASURES if all(prefix + name in row for row in candidates)]
    column = prefix + measures[0] if measures else ""
    candidates = [row for row in candidates if column and math.isfinite(row[column])]
    if not candidates:
        return {}
    best = max(reversed(candidates), key=lambda row: row[column])
    final = dict(result) if measures[0] in result else _strip(evaluations[-1]) if evaluations else {}
    summary = {"final": final[measures[0]]} if final else {}
    summary |= {"best": best[column], "best_step": best["step"], "evaluations": len(evaluations)}
    if not evaluations and summary.get("final", -math.inf) > best[column]:
        summary |= {"best": summary["final"], "best_step": rows[-1]["step"]}
    threshold = find_solved_score(measures[0])
    if threshold is None:
        return summary
    summary["solved_at"] = threshold
    first = next((row["step"] for row in candidates if row[column] >= threshold), None)
    if first is None:
        return summary
    scores = [row[column] for row in candidates if row["step"] >= first]
    summary |= {"solved_step": first, "lowest_after_solved": min(summary.get("final", math.inf), *scores)}
    if final:
        high = final.get(f"{measures[0]}_high", summary["final"])
        bound = min(threshold, best.get(f"{column}_low", threshold))
        summary["lost"] = int(high < bound and (bool(evaluations) or scores[-1] < threshold))
    return summary


def describe_scores(result: Mapping[str, Any]) -> list[str]:
    """Return texts on the best score of a run with evaluations, and on a task that was solved and lost."""
    texts = []
    if result.get("evaluations"):
        texts.append(f"best {result['best']:.3f} at step {result['best_step']:,.0f}")
    if result.get("lost"):
        texts.append(f"solved at step {result['solved_step']:,.0f}, lost: final {result['final']:.3f}")
    return texts


def _strip(row: Mapping[str, float]) -> dict[str, float]:
    """Return the summary of the evaluation in a row of metrics."""
    return {name.removeprefix(_EVALUATION): value for name, value in row.items()}
