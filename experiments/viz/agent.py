"""Traces of a language agent: one answer with its recalled records and tool calls, or a memory bank."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory import MemoryBank

_PLAN_ACTIONS = ("thinking", "conclusion")


def trace_turn(result: Mapping[str, Any]) -> Trace:
    """Return the trace of one result of `KwaiAgent`, for the last question in its messages.

    The first step is the question. Records from memory come before the plan that uses them. The recalls of a
    step link to earlier steps. A plan links to the records that it uses, weighted by search score. A tool
    result links to its call. The answer links to its records and to all tool results. The track
    `untrusted text` is 1 after the agent has read untrusted text. From then on, a tool with side effects
    needs approval. A call without approval is `blocked`: its step holds the reason and links to the steps
    with untrusted text. The tracks `tokens` and `seconds` are totals up to the end of each step.
    """
    question = next(message.text for message in reversed(result["messages"]) if message.type == "human")
    events = result["events"]
    start_time = events[0].finish_time.timestamp()
    steps, token_counts = [Step(0.0, text=question, choice="question")], [0.0]
    from_memory = any(one.trust == "tool" for one in events[0].recalled_records)
    is_untrusted = [float(events[0].is_tainted and not from_memory)]
    places: dict[str, int] = {}
    call, results, untrusted_steps, finished_tasks = None, [], [], iter(result["steps"])
    if is_untrusted[0]:
        untrusted_steps.append(0)
    seconds = itertools.accumulate((event.finish_time.timestamp() - start_time for event in events), max)
    for event, time in zip(events, seconds, strict=True):
        for record in event.recalled_records:
            if record.id in places:
                continue
            if record.trust == "tool":
                untrusted_steps.append(len(steps))
            places[record.id] = len(steps)
            is_untrusted.append(float(bool(untrusted_steps)))
            token_counts.append(token_counts[-1])
            steps.append(Step(steps[-1].time, text=_format_record(record), choice="memory"))
        step_recalls, choice = [], event.action
        if event.action in _PLAN_ACTIONS:
            records = event.recalled_records
            scores = [max(float(getattr(record, "score", 1.0)), 0.0) for record in records]
            used = [places[record.id] for record in records]
            step_recalls.append(Recall.from_weights("memory", used, scores))
        if event.action == "conclusion":
            step_recalls.append(Recall.from_weights("results", results, [1.0] * len(results)))
        if event.action in ("observation", "fail") and call is not None:
            task, here = next(finished_tasks), len(steps)
            step_recalls.append(Recall.from_weights("tool call", [call], [1.0]))
            if task.is_blocked:
                choice = "blocked"
                step_recalls.append(
                    Recall.from_weights("untrusted text", untrusted_steps, [1.0] * len(untrusted_steps))
                )
            results.append(here)
            if not task.trusted:
                untrusted_steps.append(here)
            call = None
        if event.action == "execute":
            call = len(steps)
        recalls = tuple(one for one in step_recalls if one.runs)
        steps.append(Step(time, text=event.text, choice=choice, recalls=recalls))
        is_untrusted.append(float(event.is_tainted))
        token_counts.append(float(event.tokens))
    usage = {name.replace("_", " "): str(n) for name, n in result["usage"].items() if isinstance(n, int)}
    num_blocked = sum(step.choice == "blocked" for step in steps)
    return Trace(
        kind="agent",
        title=question,
        steps=tuple(steps),
        about={
            "stopped": result["stopped"],
            "seconds": f"{steps[-1].time:.1f}",
            **usage,
            "untrusted text": "yes" if result["tainted"] else "no",
            "blocked calls": str(num_blocked),
        },
        unit="seconds",
        rate=1.0,
        tracks={
            "seconds": tuple(step.time for step in steps),
            "tokens": tuple(token_counts),
            "untrusted text": tuple(is_untrusted),
        },
    )


def _format_record(record: Any) -> str:
    """Format a record with its kind, source, id, and its score and explanation if known."""
    lines = [record.text, f"{record.kind}, source: {record.trust}; {record.id}"]
    score, why = (getattr(record, name, None) for name in ("score", "explanation"))
    if score is not None:
        lines.append(f"score {score:.3g}{'' if why is None else f': {why.summary}'}")
    return "\n".join(lines)


def trace_bank(
    bank: MemoryBank, title: str, most: int = 2_000, query: str | None = None, k: int = 10
) -> Trace:
    """Return the trace of the latest `most` records of a bank in writing order.

    Each record is one step, which recalls the record that it supersedes. A `query` adds a last step. This
    step recalls the `k` best matches of the query, weighted by score, and its text explains each score.
    Raises ValueError if the bank is empty, or `most` or `k` is below 1.
    """
    if most < 1:
        raise ValueError(f"most={most}: must be at least 1")
    # An export has conversation by conversation, but the numbers of records are in writing order.
    with bank.store.reading() as connection:
        numbers = connection.execute("SELECT id FROM records ORDER BY number DESC LIMIT ?", (most,))
        order = {id: -place for place, (id,) in enumerate(numbers)}
    rows = sorted((row for row in bank.export() if row["id"] in order), key=lambda row: order[row["id"]])
    if not rows:
        raise ValueError(f"{title} has no records; add one with `scrubjay memory add`")
    count, places = len(bank), {row["id"]: place for place, row in enumerate(rows)}
    replaced_by = {row["supersedes"]: place for place, row in enumerate(rows) if row["supersedes"]}
    steps, time = [], float(rows[0]["created"])
    for row in rows:
        time = max(time, float(row["created"]))  # the clock may have been set back
        place = places.get(row["supersedes"])
        recalls = () if place is None else (Recall.from_weights("superseded record", [place], [1.0]),)
        namespace = f" of {'/'.join(row['namespace'])}" if row["namespace"] else ""
        choice = f"{row['kind']}{namespace}, source: {row['trust']}; {row['id']}"
        text = _format_row(row, replaced_by)
        steps.append(Step(time - float(rows[0]["created"]), None, text, choice, {}, recalls))
    importance: list[float | None] = [float(row["importance"]) for row in rows]
    wordings: list[float | None] = [1.0 + len(row["sayings"]) for row in rows]
    if query is not None:
        steps.append(_build_query_step(bank, query, k, places, steps[-1].time))
        importance, wordings = [*importance, None], [*wordings, None]
    summary = f"{count:,}" if count == len(rows) else f"latest {len(rows):,} of {count:,}"
    return Trace(
        kind="agent",
        title=title,
        steps=tuple(steps),
        about={"records": summary, "since": _format_time(rows[0]["created"])},
        unit="seconds",
        tracks={"importance": tuple(importance), "wordings": tuple(wordings)},
    )


def _build_query_step(bank: MemoryBank, query: str, k: int, places: Mapping[str, int], time: float) -> Step:
    """Return the step of a query; the text of the step explains the score of each result."""
    hits = bank.search(query, k, explain=True)
    lines = [query] if hits else [query, "no results"]
    for hit in hits:
        place = places.get(hit.id)
        where = "an older record, not shown" if place is None else f"step {place}"
        why = "" if hit.explanation is None else f": {hit.explanation.summary}"
        lines.append(f"{where}, score {hit.score:.3g}{why}")
    matches = [(places[hit.id], max(hit.score, 0.0)) for hit in hits if hit.id in places]
    recalls = (Recall.from_weights("query", *zip(*matches, strict=True)),) if matches else ()
    return Step(time, None, "\n".join(lines), "query", {}, recalls)


def _format_row(row: Mapping[str, Any], replaced_by: Mapping[str, int]) -> str:
    """Return the text of a record with all its wordings and its period of validity."""
    lines = [row["text"], *(f"other wording: {saying['text']}" for saying in row["sayings"])]
    lines.append(f"observed {_format_time(row['observed'])}")
    if row["valid_from"] is not None:
        lines.append(f"valid from {_format_time(row['valid_from'])}")
    if row["valid_to"] is not None:
        after = replaced_by.get(row["id"])
        lines.append(
            f"valid until {_format_time(row['valid_to'])}{'' if after is None else f': see step {after}'}"
        )
    return "\n".join(lines)


def _format_time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M}"
