"""The score of KAgentBench (Pan et al. 2023, arXiv 2312.04889) for predictions.

The data set cannot be redistributed: https://huggingface.co/datasets/kwaikeg/KAgentBench (CC BY-NC-SA 4.0).
The score is that of KAgentBench's evaluation code since January 2024; the paper uses an earlier version. Two
details differ. An unreadable or empty prediction scores as an empty text; the original code may score the
previous prediction again. Malformed JSON is repaired by the json-repair package, which has better rules than
the original code.

Answers are compared by ROUGE-L (Lin 2004) of words that follow the Penn Treebank rules. A word with letters
of a caseless script, such as Chinese, is split into its letters. Sentences end at a punctuation mark followed
by a space, whereas KAgentBench uses NLTK's model.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from scrubjay.experiments.lm.prompt_formats import StepPlan, parse_plan, read_answer

WEIGHTS = {"plan": 0.25, "tool": 0.35, "reflection": 0.10, "concluding": 0.20, "profile": 0.10}
"""Weight of each ability in the overall score."""
_ABILITIES = {
    "plantooluse": ("plan", "tool"),
    "reflextion": ("reflection",),
    "conclusion": ("concluding",),
    "profile": ("profile",),
}
"""Abilities measured by each record type; the names are those of the data."""
_SECONDS = 3.0


@dataclass(frozen=True)
class Result:
    """Mean scores, from 0 to 1."""

    scores: dict[str, float]
    """Mean score by measured ability."""
    counts: dict[str, int]
    """Number of queries by ability."""

    @property
    def overall(self) -> float | None:
        """Mean of the scores weighted by `WEIGHTS`; None if an ability was not measured."""
        if self.scores.keys() != WEIGHTS.keys():
            return None
        return sum(weight * self.scores[name] for name, weight in WEIGHTS.items())


def join(
    records: Sequence[Mapping[str, Any]], predictions: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return `records` with the prediction of the same id added to each.

    Raises ValueError if `records` and `predictions` have different ids.
    """
    by_id = {prediction.get("id"): prediction for prediction in predictions}
    missing = [record["id"] for record in records if record["id"] not in by_id]
    unknown = by_id.keys() - {record["id"] for record in records}
    for problem, ids in (("have no prediction", missing), ("have no record", list(unknown))):
        if ids:
            raise ValueError(
                f"{len(ids)} ids {problem}, such as {ids[0]!r}; pass records and predictions with equal ids"
            )
    return [dict(record) | {"model_predict": by_id[record["id"]].get("model_predict")} for record in records]


def score(
    records: Sequence[Mapping[str, Any]], progress: Callable[[int], None] = lambda done: None
) -> Result:
    """Return the mean score of each ability, over the queries that measure the ability.

    Raises ValueError, naming the id, on a malformed record.
    """
    scores_by_ability: dict[str, list[float]] = {}
    for done, record in enumerate(records, 1):
        try:
            scores = score_record(record)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            if isinstance(error, TypeError | AttributeError):
                what = "has a field of the wrong type"
            else:
                what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise ValueError(f"record {record.get('id')!r} {what}") from error
        for name, value in scores.items():
            scores_by_ability.setdefault(name, []).append(value)
        progress(done)
    if not scores_by_ability:
        raise ValueError("there are no records to score; pass at least one record")
    return Result(
        {name: fmean(scores_by_ability[name]) for name in WEIGHTS if name in scores_by_ability},
        {name: len(scores_by_ability[name]) for name in WEIGHTS if name in scores_by_ability},
    )


def score_record(record: Mapping[str, Any]) -> dict[str, float]:
    """Return one query's score by ability: the best score over references, averaged over templates."""
    kind, prediction = record["type"], record["model_predict"]
    if kind not in _ABILITIES:
        raise ValueError(f"has unknown type {kind!r}; choose from {', '.join(_ABILITIES)}")
    references = record["golden_result_list"]
    if kind == "profile":
        return {"profile": answer_score(references, _text(prediction))}
    if not isinstance(prediction, Mapping) or not prediction:
        raise ValueError("has no predictions: model_predict must map prompt templates to replies")
    if kind == "conclusion":
        scores = [
            answer_score(references, read_answer(form, _text(reply))) for form, reply in prediction.items()
        ]
        return {"concluding": fmean(scores)}
    functions = record.get("funcs", [])
    plans = [parse_plan(form, _text(reply), functions) for form, reply in prediction.items()]
    if kind == "reflextion":
        last = record["memory_last_task"]
        return {"reflection": fmean(reflection_score(references, plan, last) for plan in plans)}
    return {
        "plan": fmean(plan_score(references, plan) for plan in plans),
        "tool": fmean(tool_score(references, plan) for plan in plans),
    }


def plan_score(references: Sequence[Mapping[str, Any]], plan: StepPlan) -> float:
    """Return the best ROUGE-L between the plan's thought and a reference with the same tool, or 0."""
    return _best(
        _same_tool(reference, plan) * rouge_l(reference["thought"], plan.thought)
        for reference in references
        if reference["thought"] != "None"
    )


def tool_score(references: Sequence[Mapping[str, Any]], plan: StepPlan) -> float:
    """Return the plan's best `arguments_score` over references with the same tool; 0 if there is none."""
    return _best(
        _same_tool(reference, plan) * arguments_score(reference["tool_args"], plan.arguments)
        for reference in references
    )


def reflection_score(
    references: Sequence[Mapping[str, Any]], plan: StepPlan, last_task: Mapping[str, Any] | Sequence[Any]
) -> float:
    """Return the plan's best score over references with the same tool, or 0.

    A score is 0.3 times the ROUGE-L of the thoughts plus 0.7 times `arguments_score`. References
    with the tool and the arguments of the last task are left out.
    """
    last = last_task if isinstance(last_task, Mapping) else (last_task[-1] if last_task else {})
    return _best(
        _same_tool(reference, plan)
        * (
            0.3 * rouge_l(reference["thought"], plan.thought)
            + 0.7 * arguments_score(reference["tool_args"], plan.arguments)
        )
        for reference in references
        if reference["thought"] != "None"
        and any(last.get(name) != reference[name] for name in ("tool_name", "tool_args"))
    )


def arguments_score(reference: Mapping[str, Any], arguments: Mapping[str, Any]) -> float:
    """Return the mean ROUGE-L over the arguments of `reference`.

    An argument that is missing in `arguments` has ROUGE-L 0. The result is 1 if both dicts are empty, and 0
    if only one dict is empty.
    """
    if not reference or not arguments:
        return float(not reference and not arguments)
    return fmean(
        rouge_l(_text(value), _text(arguments[name])) if name in arguments else 0.0
        for name, value in reference.items()
    )


def answer_score(references: Sequence[Any], answer: str) -> float:
    """Return the best ROUGE-L between an answer and one of the references."""
    texts = [one["golden_result"] if isinstance(one, Mapping) else one for one in references]
    return _best(rouge_l(_text(text), answer) for text in texts)


def _same_tool(reference: Mapping[str, Any], plan: StepPlan) -> bool:
    return reference["tool_name"] not in (None, "None") and plan.tool == reference["tool_name"]


def _best(scores: Iterator[float]) -> float:
    return max(scores, default=0.0)


def _text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_TOKEN_PATTERNS = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\.{3}|--", r" \g<0> "),
        (r'[;@#$%&?!()\[\]{}<>"]', r" \g<0> "),
        (r"[,:](?!\d)", r" \g<0> "),
        (r"(?<=[^.\s])\.(?=[\s\])}>\"']*$)", r" . "),
        (r"(?<=[^'\s])'(?=\s|$)", r" '"),
        (r"(?i)n't\b", r" \g<0>"),
        (r"(?i)(?<=\w)'(?:s|m|d|ll|re|ve)\b", r" \g<0>"),
        (r"(?i)\b(can)(not)\b", r"\1 \2"),
    )
)


def tokens(text: str) -> list[str]:
    """Split `text` into words, and Chinese into characters."""
    words: list[str] = []
    for sentence in _SENTENCE.split(text):
        for pattern, replacement in _TOKEN_PATTERNS:
            sentence = pattern.sub(replacement, sentence)
        for word in sentence.split():
            caseless = any(unicodedata.category(letter) == "Lo" for letter in word)
            words += list(word) if caseless else [word]
    return words


def rouge_l(left: str, right: str) -> float:
    """Return the F1 of the longest common subsequence of words, from 0 to 1; 0 if a text has no words."""
    first, second = tokens(left), tokens(right)
    return 2 * common_length(first, second) / (len(first) + len(second)) if first and second else 0.0


def common_length(left: Sequence[Hashable], right: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence of two sequences.

    Source: Hyyrö 2004, a bit-parallel algorithm.
    """
    places: dict[Hashable, int] = {}
    for place, item in enumerate(left):
        places[item] = places.get(item, 0) | 1 << place
    everything = (1 << len(left)) - 1
    row = everything
    for item in right:
        matches = row & places.get(item, 0)
        row = ((row + matches) | (row - matches)) & everything
    return len(left) - row.bit_count()
