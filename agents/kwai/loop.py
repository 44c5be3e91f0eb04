"""Agent loop of KwaiAgents (Pan et al. 2023, arXiv 2312.04889).

The loop first stores the question. Then it repeats three actions: search the memory, plan exactly one task,
run this task. When no task is left, the loop writes the answer.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import PromptBuilder
from scrubjay.agents.kwai.executor import Executor
from scrubjay.agents.kwai.messages import AnswerStream, extract_text
from scrubjay.agents.kwai.planner import Decision, Planner
from scrubjay.agents.kwai.recall import MemoryAccess
from scrubjay.agents.kwai.runner import AskModel, Effect, Loop, StreamModel, Update
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.address import find_addresses, normalize_address
from scrubjay.agents.language.text import TAINTED


@dataclass(frozen=True)
class LoopParts:
    """Components of the agent loop."""

    model: Runnable[Any, Any]
    """Model that writes the answer."""
    planner: Planner | None
    """Planner of the tasks; None if there are no tools."""
    executor: Executor
    memory: MemoryAccess
    prompt_builder: PromptBuilder
    max_steps: int
    streaming: bool
    """True if the answer is streamed token by token."""


def run_turn(parts: LoopParts, turn: Turn, messages: list[BaseMessage]) -> Loop:
    """Answer one question as a generator of updates and effects.

    The updates add up to the result. A call and its result are always in the same update. The messages of the
    updates so far are therefore a valid history for a model at any time.
    """
    yield {"messages": messages, "answer": "", "steps": [], "events": []}
    yield from parts.memory.remember_question(turn)
    stop_reason = yield from _work(parts, turn)
    if not turn.recalled_records and parts.planner is None:
        yield from parts.memory.recall(turn)
    yield from _conclude(parts, turn, stop_reason)
    yield turn.make_event("chain_end", stop_reason) | {
        "stopped": stop_reason,
        "usage": turn.meter.usage,
        "tainted": turn.is_tainted,
        "knowledge": [passage.text for passage in turn.knowledge],
        "recalled": turn.recalled_records,
    }


def _work(parts: LoopParts, turn: Turn) -> Generator[Update | Effect, Any, str]:
    """Run tasks until none is left or a limit is reached; return the stop reason."""
    if parts.planner is None:
        return "finished"
    unrun_count = 0
    while True:
        yield from parts.memory.recall(turn)
        yield turn.make_event("thinking", turn.question)
        decision = yield from parts.planner.decide(turn)
        if decision.unreadable:
            yield turn.make_event("fail", decision.parse_methods[-1])
            return "unreadable_plan"
        if not decision.calls:
            turn.draft = decision.message
            yield turn.make_event("finish", turn.draft.text if turn.draft else "")
            return "finished"
        ran = yield from _step(parts, turn, decision)
        unrun_count = 0 if ran else unrun_count + 1
        if unrun_count == 2:
            return "no_progress"
        if len(turn.steps) >= parts.max_steps:
            return "steps"
        limit = turn.meter.reached_limit()
        if limit:
            return limit


def _step(parts: LoopParts, turn: Turn, decision: Decision) -> Generator[Update | Effect, Any, bool]:
    """Run one task; return True if its tool was started."""
    call, *postponed_calls = decision.calls
    yield turn.make_event("thought", decision.task_name)
    yield turn.make_event("execute", f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
    address = call.arguments.get("url")
    if isinstance(address, str):
        is_followed_link = any(
            normalize_address(address) in find_addresses(step.result) for step in turn.steps
        )
        yield turn.make_event("click" if is_followed_link else "reading", address)
    step = yield from parts.executor.run(decision, turn)
    turn.is_tainted = turn.is_tainted or not step.trusted
    turn.reflection = None if step.sufficient else parts.prompt_builder.build_reflection(step)
    turn.steps.append(step)
    assert decision.message is not None
    pair = [
        decision.message,
        parts.executor.build_message(call, step),
        *(parts.executor.build_postponed_message(other) for other in postponed_calls),
    ]
    turn.transcript.append(pair)
    action = "observation" if step.status == "success" else "fail"
    yield turn.make_event(action, step.result) | {"messages": pair, "steps": [step]}
    if step.has_run:
        yield from parts.memory.remember_step(turn, step)
    return step.has_run


def _conclude(parts: LoopParts, turn: Turn, stop_reason: str) -> Generator[Update | Effect, Any, None]:
    """Write the answer and store it in the memory.

    The planner's text is the answer if no task was run. Otherwise, or if the planner wrote no text, the
    model writes the answer.
    """
    if turn.draft and turn.draft.text and not turn.steps:
        answer = turn.draft
        yield {"answer": answer.text}
    else:
        answer = yield from _write(parts, turn, None if stop_reason == "finished" else stop_reason)
    if turn.is_tainted:
        # The answer may repeat an injected instruction; the mark taints the next question that contains it.
        metadata = answer.response_metadata | {TAINTED: True}
        answer = answer.model_copy(update={"response_metadata": metadata})
    yield turn.make_event("conclusion", answer.text) | {"messages": [answer]}
    if answer.text != parts.prompt_builder.prompts.say("no_answer"):
        yield from parts.memory.remember_answer(turn, answer.text)


def _write(
    parts: LoopParts, turn: Turn, stop_reason: str | None
) -> Generator[Update | Effect, Any, AIMessage]:
    prompt, say = (
        parts.prompt_builder.build_answer_prompt(turn, stop_reason),
        parts.prompt_builder.prompts.say,
    )
    for _ in range(2):
        reply = yield from _ask(parts, prompt)
        turn.meter.record_usage(prompt, reply)
        text = extract_text(reply)
        if text.strip():
            return AIMessage(
                text,
                usage_metadata=reply.usage_metadata,
                response_metadata=reply.response_metadata,
                id=reply.id,
            )
        prompt = [*prompt, HumanMessage(say("ask_again"))]
    text = say("no_answer")
    yield {"answer": text}
    return AIMessage(text, response_metadata=reply.response_metadata)


def _ask(parts: LoopParts, prompt: list[BaseMessage]) -> Generator[Update | Effect, Any, AIMessage]:
    """Ask the model for the answer; yield its text, whole or in chunks, and return the reply."""
    if not parts.streaming:
        reply: AIMessage = yield AskModel(parts.model, prompt)
        if text := extract_text(reply):
            yield {"answer": text}
        return reply
    answer, next_chunk = AnswerStream(), StreamModel(parts.model, prompt)
    while (chunk := (yield next_chunk)) is not None:
        if text := answer.add(chunk):
            yield {"answer": text}
    return answer.message
