"""An agent's turn as a trace: what memory brought up, what was planned, called and told, and the answer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from scrubjay.experiments.looking.trace import Recall, Step, Trace

_PLANS = ("thinking", "conclusion")


def trace_turn(question: str, result: Mapping[str, Any]) -> Trace:
    """Return the trace of one answer of `KwaiAgent`.

    The question and the records that memory brought up come first. Planning recalls these records, with what
    their search gave each of them; a result its call; the answer all results, too. The track `text from
    outside` is 1 from where something was read that a stranger may have worded: what is called afterwards
    unasked must be harmless, and what is not says here why it was blocked.
    """
    records, events = result["recalled"], result["events"]
    steps = [Step(0.0, text=question, choice="asked")]
    steps += [Step(0.0, text=_told(record), choice="remembered") for record in records]
    scores = [max(float(getattr(record, "score", 1.0)), 0.0) for record in records]
    times = [event.finish_time.timestamp() for event in events]
    outside = [0.0] * len(steps)
    tainted = float(any(record.trust == "tool" for record in records))
    call, results, done = None, [], iter(result["steps"])
    for event, time in zip(events, itertools.accumulate(times, max), strict=True):
        recalled = []
        if event.action in _PLANS:
            recalled.append(Recall.of("memory", range(1, 1 + len(records)), scores))
        if event.action == "conclusion":
            recalled.append(Recall.of("results", results, [1.0] * len(results)))
        if event.action in ("observation", "fail") and call is not None:
            recalled.append(Recall.of("its call", [call], [1.0]))
            results.append(len(steps))
            tainted, call = max(tainted, float(not next(done).trusted)), None
        if event.action == "execute":
            call = len(steps)
        kept = tuple(one for one in recalled if one.runs)
        steps.append(Step(time - times[0], text=event.text, choice=event.action, recalled=kept))
        outside.append(tainted)
    usage = {name.replace("_", " "): str(n) for name, n in result["usage"].items() if isinstance(n, int)}
    return Trace(
        kind="agent",
        title=question,
        steps=tuple(steps),
        about={"stopped": result["stopped"], "seconds": f"{steps[-1].time:.1f}", **usage},
        unit="seconds",
        rate=1.0,
        tracks={"seconds": tuple(step.time for step in steps), "text from outside": tuple(outside)},
    )


def _told(record: Any) -> str:
    """Return a record with who worded it, and why it came where that is known."""
    lines = [record.text, f"{record.kind}, worded by {record.trust}; {record.id}"]
    score = getattr(record, "score", None)
    return "\n".join(lines if score is None else [*lines, f"found with a score of {score:.3g}"])
