"""Trace of a language agent: one answer with its recalled records and tool calls."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from scrubjay.experiments.viz.trace import Recall, Step, Trace

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
