"""An agent's turn as a trace: what memory brought up and why, what was planned, called and told."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from scrubjay.experiments.looking.trace import Recall, Step, Trace

_PLANS = ("thinking", "conclusion")


def trace_turn(result: Mapping[str, Any]) -> Trace:
    """Return the trace of one answer of `KwaiAgent`: of the last question in its messages.

    The question comes first, and records that memory brought up before the plan that they came up for. A plan
    recalls these records, with what their search gave each of them; a result its call; the answer all
    results, too. The track `text from outside` is 1 from where something was read that a stranger may have
    worded: what is called afterwards unasked must be harmless. What is not is `blocked`, says why, and
    recalls where that text came into view; tokens and seconds are those spent until a step was over.
    """
    question = next(message.text for message in reversed(result["messages"]) if message.type == "human")
    events = result["events"]
    begun = events[0].finish_time.timestamp()
    steps, spent = [Step(0.0, text=question, choice="asked")], [0.0]
    outside = [float(events[0].tainted and not any(one.trust == "tool" for one in events[0].recalled))]
    places: dict[str, int] = {}
    call, results, strange, done = None, [], [], iter(result["steps"])
    if outside[0]:
        strange.append(0)
    seconds = itertools.accumulate((event.finish_time.timestamp() - begun for event in events), max)
    for event, time in zip(events, seconds, strict=True):
        for record in event.recalled:
            if record.id in places:
                continue
            if record.trust == "tool":
                strange.append(len(steps))
            places[record.id] = len(steps)
            outside.append(float(bool(strange)))
            spent.append(spent[-1])
            steps.append(Step(steps[-1].time, text=_told(record), choice="remembered"))
        recalled, choice = [], event.action
        if event.action in _PLANS:
            recalled.append(_of_memory(event.recalled, places))
        if event.action == "conclusion":
            recalled.append(Recall.of("results", results, [1.0] * len(results)))
        if event.action in ("observation", "fail") and call is not None:
            task, here = next(done), len(steps)
            recalled.append(Recall.of("its call", [call], [1.0]))
            if task.blocked:
                choice = "blocked"
                recalled.append(Recall.of("text from outside", strange, [1.0] * len(strange)))
            results.append(here)
            if not task.trusted:
                strange.append(here)
            call = None
        if event.action == "execute":
            call = len(steps)
        kept = tuple(one for one in recalled if one.runs)
        steps.append(Step(time, text=event.text, choice=choice, recalled=kept))
        outside.append(float(event.tainted))
        spent.append(float(event.tokens))
    usage = {name.replace("_", " "): str(n) for name, n in result["usage"].items() if isinstance(n, int)}
    blocked = sum(step.choice == "blocked" for step in steps)
    return Trace(
        kind="agent",
        title=question,
        steps=tuple(steps),
        about={
            "stopped": result["stopped"],
            "seconds": f"{steps[-1].time:.1f}",
            **usage,
            "text from outside": "was read" if result["tainted"] else "none was read",
            "calls blocked": str(blocked),
        },
        unit="seconds",
        rate=1.0,
        tracks={
            "seconds": tuple(step.time for step in steps),
            "tokens": tuple(spent),
            "text from outside": tuple(outside),
        },
    )


def _of_memory(records: Sequence[Any], places: Mapping[str, int]) -> Recall:
    scores = [max(float(getattr(record, "score", 1.0)), 0.0) for record in records]
    return Recall.of("memory", [places[record.id] for record in records], scores)


def _told(record: Any) -> str:
    """Return a record with who worded it, and why it came where that is known."""
    lines = [record.text, f"{record.kind}, worded by {record.trust}; {record.id}"]
    score, why = (getattr(record, name, None) for name in ("score", "explanation"))
    if score is not None:
        lines.append(f"found with a score of {score:.3g}{'' if why is None else f': {why.told}'}")
    return "\n".join(lines)
