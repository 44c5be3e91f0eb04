"""The loop of KwaiAgents (Pan et al. 2023, arXiv 2312.04889).

Remember the question once; then before every step recall, plan exactly one task and run it, until nothing
more is needed; then conclude.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import Context
from scrubjay.agents.kwai.drive import Loop
from scrubjay.agents.kwai.effects import AskModel, Effect
from scrubjay.agents.kwai.events import Step
from scrubjay.agents.kwai.executor import Executor
from scrubjay.agents.kwai.planner import Decision, Planner
from scrubjay.agents.kwai.recall import Recall
from scrubjay.agents.kwai.replies import said
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.address import form, named
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.untrusted import TAINTED

Update = dict[str, Any]


@dataclass(frozen=True)
class Parts:
    """What one question goes through."""

    model: Runnable[Any, Any]
    """Writes the answer."""
    planner: Planner | None
    """None where there are no tools, and so nothing to plan."""
    executor: Executor
    recall: Recall
    context: Context
    prompts: Prompts
    max_steps: int


def take_turn(parts: Parts, turn: Turn) -> Loop:
    """Answer one question: a generator of updates and effects.

    The updates add up to the result. The messages of every prefix of them can be sent to a model again: a
    call is never given out before its result.
    """
    yield from parts.recall.remember_question(turn)
    stopped = yield from _work(parts, turn)
    if not turn.recalled and parts.planner is None:
        yield from parts.recall.recall(turn)
    yield from _conclude(parts, turn, stopped)
    yield turn.event("chain_end", stopped) | {
        "stopped": stopped,
        "usage": turn.meter.usage,
        "tainted": turn.tainted,
        "knowledge": [passage.text for passage in turn.knowledge],
        "recalled": turn.recalled,
    }


def _work(parts: Parts, turn: Turn) -> Generator[Update | Effect, Any, str]:
    """Run tasks until nothing more is needed or possible, and return why it ended."""
    if parts.planner is None:
        return "finished"
    blocked = 0
    while True:
        yield from parts.recall.recall(turn)
        yield turn.event("thinking", turn.question)
        decision = yield from parts.planner.decide(turn)
        if decision.unreadable:
            yield turn.event("fail", decision.rungs[-1])
            return "unreadable_plan"
        if not decision.calls:
            turn.draft = decision.message
            yield turn.event("finish", turn.draft.text if turn.draft else "")
            return "finished"
        ran = yield from _step(parts, turn, decision)
        blocked = 0 if ran else blocked + 1
        if blocked == 2:
            return "no_progress"
        if len(turn.steps) >= parts.max_steps:
            return "steps"
        reached = turn.meter.reached()
        if reached:
            return reached


def _step(parts: Parts, turn: Turn, decision: Decision) -> Generator[Update | Effect, Any, bool]:
    """Run one task and return whether its tool was started."""
    call, *waiting = decision.calls
    index = len(turn.steps) + 1
    yield turn.event("thought", decision.task_name)
    yield turn.event("execute", f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
    address = call.arguments.get("url")
    if isinstance(address, str):
        followed = any(form(address) in named(step.result) for step in turn.steps)
        yield turn.event("click" if followed else "reading", address)
    observation = yield from parts.executor.run(call, turn, index)
    step = Step(
        index,
        decision.task_name,
        call.name,
        call.arguments,
        call.id,
        observation.text,
        observation.status,
        decision.rungs,
        observation.trusted,
        observation.sources,
        observation.artifact,
        observation.blocked,
    )
    turn.tainted = turn.tainted or not observation.trusted
    turn.reflection = None if step.sufficient else parts.context.reflection(step)
    turn.steps.append(step)
    assert decision.message is not None
    pair = [
        decision.message,
        parts.executor.message(call, observation),
        *(parts.executor.postponed(other) for other in waiting),
    ]
    turn.transcript.append(pair)
    action = "observation" if step.status == "success" else "fail"
    yield turn.event(action, step.result) | {"messages": pair, "steps": [step]}
    if observation.ran:
        yield from parts.recall.remember_step(turn, step)
    return observation.ran


def _conclude(parts: Parts, turn: Turn, stopped: str) -> Generator[Update | Effect, Any, None]:
    """Write the answer: the planner's own words if no task was run, else from all sources."""
    if turn.draft and turn.draft.text and not turn.steps:
        answer = turn.draft
        yield {"answer": answer.text}
    else:
        answer = yield from _write(parts, turn, None if stopped == "finished" else stopped)
    if turn.tainted:
        # It may pass an order on: the next question, which sees it without what it rests on, must know.
        metadata = answer.response_metadata | {TAINTED: True}
        answer = answer.model_copy(update={"response_metadata": metadata})
    yield turn.event("conclusion", answer.text) | {"messages": [answer]}
    if answer.text != parts.prompts.say("no_answer"):
        yield from parts.recall.remember_answer(turn, answer.text)


def _write(parts: Parts, turn: Turn, stopped: str | None) -> Generator[Update | Effect, Any, AIMessage]:
    prompt = parts.context.to_conclude(turn, stopped)
    for _ in range(2):
        reply: AIMessage = yield AskModel(parts.model, prompt, answers=True)
        turn.meter.spend(prompt, reply)
        text = said(reply)
        if text.strip():
            return AIMessage(
                text,
                usage_metadata=reply.usage_metadata,
                response_metadata=reply.response_metadata,
                id=reply.id,
            )
        prompt = [*prompt, HumanMessage(parts.prompts.say("ask_again"))]
    text = parts.prompts.say("no_answer")
    yield {"answer": text}
    return AIMessage(text, response_metadata=reply.response_metadata)
