"""The score of KAgentBench (Pan et al. 2023, arXiv 2312.04889) for predictions.

The data are not ours to give: https://huggingface.co/datasets/kwaikeg/KAgentBench (CC BY-NC-SA 4.0). The
score is that of the project's own evaluation since January 2024; numbers of the paper and before are of
another one. Of a prediction that cannot be read or is empty we take nothing for it, where that evaluation may
take the one before it; broken JSON is mended by json-repair, by better rules.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scrubjay.experiments.language.forms import Plan, read_answer, read_form
from scrubjay.experiments.language.rouge import rouge_l

WEIGHTS = {"plan": 0.25, "tool": 0.35, "reflection": 0.10, "concluding": 0.20, "profile": 0.10}
"""Of each ability in the overall score."""
_ABILITIES = {
    "plantooluse": ("plan", "tool"),
    "reflextion": ("reflection",),
    "conclusion": ("concluding",),
    "profile": ("profile",),
}
"""What each type of record measures; the names are the data's."""
_SECONDS = 3.0


@dataclass(frozen=True)
class Result:
    """Mean scores, from 0 to 1."""

    scores: dict[str, float]
    """By ability, of those that the records measure."""
    counts: dict[str, int]
    """Queries of each."""

    @property
    def overall(self) -> float | None:
        """The weighted mean; None unless all abilities were measured."""
        if self.scores.keys() != WEIGHTS.keys():
            return None
        return sum(weight * self.scores[name] for name, weight in WEIGHTS.items())


def join(
    records: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return `records` with the predictions of the same id.

    Raises ValueError unless both have the same ids.
    """
    by_id = {prediction.get("id"): prediction for prediction in predictions}
    missing = [record["id"] for record in records if record["id"] not in by_id]
    unknown = by_id.keys() - {record["id"] for record in records}
    for problem, ids in (("have no prediction", missing), ("have no record", list(unknown))):
        if ids:
            raise ValueError(f"{len(ids)} ids {problem}, {ids[0]!r} first; score files of the same queries")
    return [dict(record) | {"model_predict": by_id[record["id"]].get("model_predict")} for record in records]


def score(
    records: Sequence[Mapping[str, Any]], progress: Callable[[int], None] = lambda done: None
) -> Result:
    """Return the mean over queries of each ability.

    Raises ValueError on a record that lacks something, by its id.
    """
    found: dict[str, list[float]] = {}
    for done, record in enumerate(records, 1):
        try:
            scores = score_record(record)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, TypeError | AttributeError):
                what = "holds something of another kind than the benchmark's data do"
            else:
                what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"record {record.get('id')!r} {what}") from error
        for name, value in scores.items():
            found.setdefault(name, []).append(value)
        progress(done)
    if not found:
        raise ValueError("there are no records to score")
    return Result(
        {name: fmean(found[name]) for name in WEIGHTS if name in found},
        {name: len(found[name]) for name in WEIGHTS if name in found},
    )


def score_record(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the scores of one query by ability: over templates the mean, over references the best."""
    kind, predicted = record["type"], record["model_predict"]
    if kind not in _ABILITIES:
        raise ValueError(f"has type {kind!r}; there are {', '.join(_ABILITIES)}")
    references = record["golden_result_list"]
    if kind == "profile":
        return {"profile": answer_score(references, _text(predicted))}
    if not isinstance(predicted, Mapping) or not predicted:
        raise ValueError("has no predictions: model_predict must map prompt templates to replies")
    if kind == "conclusion":
        scores = [
            answer_score(references, read_answer(form, _text(reply))) for form, reply in predicted.items()
        ]
        return {"concluding": fmean(scores)}
    functions = record.get("funcs", [])
    plans = [read_form(form, _text(reply), functions) for form, reply in predicted.items()]
    if kind == "reflextion":
        last = record["memory_last_task"]
        return {"reflection": fmean(reflection_score(references, plan, last) for plan in plans)}
    return {
        "plan": fmean(plan_score(references, plan) for plan in plans),
        "tool": fmean(tool_score(references, plan) for plan in plans),
    }


def plan_score(references: Sequence[Mapping[str, Any]], plan: Plan) -> float:
    """Return the best likeness of the thought to a reference's with the same tool."""
    return _best(
        _same_tool(reference, plan) * rouge_l(reference["thought"], plan.thought)
        for reference in references
        if reference["thought"] != "None"
    )


def tool_score(references: Sequence[Mapping[str, Any]], plan: Plan) -> float:
    """Return the best likeness of the arguments to a reference's with the same tool."""
    return _best(
        _same_tool(reference, plan) * arguments_score(reference["tool_args"], plan.arguments)
        for reference in references
    )


def reflection_score(
    references: Sequence[Mapping[str, Any]], plan: Plan, last_task: Mapping[str, Any] | Sequence[Any]
) -> float:
    """Return the best of 0.3 thought and 0.7 arguments, no reference counting that repeats the last task."""
    last = last_task if isinstance(last_task, Mapping) else (last_task[-1] if last_task else {})
    return _best(
        _same_tool(reference, plan)
        * (
            0.3 * rouge_l(reference["thought"], plan.thought)
            + 0.7 * arguments_score(reference["tool_args"], plan.arguments)
        )
        for reference in references
        if reference["thought"] != "None" and not _repeats(reference, last)
    )


def arguments_score(reference: Mapping[str, Any], given: Mapping[str, Any]) -> float:
    """Return the mean likeness of the reference's arguments to those given: 0 for one that is missing.

    Where neither has any it is 1, where only one has any it is 0.
    """
    if not reference or not given:
        return float(not reference and not given)
    return fmean(
        rouge_l(_text(value), _text(given[name])) if name in given else 0.0
        for name, value in reference.items()
    )


def answer_score(references: Sequence[Any], answer: str) -> float:
    """Return the best likeness of an answer to a reference."""
    texts = [one["golden_result"] if isinstance(one, Mapping) else one for one in references]
    return _best(rouge_l(_text(text), answer) for text in texts)


def _same_tool(reference: Mapping[str, Any], plan: Plan) -> bool:
    return reference["tool_name"] not in (None, "None") and plan.tool == reference["tool_name"]


def _repeats(reference: Mapping[str, Any], last: Mapping[str, Any]) -> bool:
    return all(last.get(name) == reference[name] for name in ("tool_name", "tool_args"))


def _best(scores: Iterator[float]) -> float:
    return max(scores, default=0.0)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
