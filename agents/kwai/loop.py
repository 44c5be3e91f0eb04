"""Agent loop of KwaiAgents (Pan et al. 2023, arXiv 2312.04889).

The loop first stores the question. Then it repeats three actions: search the memory, plan exactly one task,
run this task. When no task is left, the loop writes the answer.

The memory has the three record types of KwaiAgents: supplied knowledge, conversation, and tasks with their
results. Untrusted text from a tool or a document is stored with `trust="tool"`. Text that the agent writes
after it has read such text has the same trust. A recalled record with this trust appears in the prompt as
data and taints the question. Such a record never becomes part of the profile.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import Runnable

from scrubjay.agents.kwai.context import PromptBuilder, fence_result
from scrubjay.agents.kwai.executor import Executor
from scrubjay.agents.kwai.messages import AnswerStream, extract_text
from scrubjay.agents.kwai.planner import Decision, Planner, build_message
from scrubjay.agents.kwai.runner import AskModel, Effect, Loop, RunFunction, StreamModel, Update
from scrubjay.agents.kwai.turn import AgentMemory, Turn
from scrubjay.agents.language.address import find_addresses, normalize_address
from scrubjay.agents.language.memories import remove_copies, select_records
from scrubjay.agents.language.provenance import is_marked, is_untrusted_record, mark
from scrubjay.agents.language.text import describe_content, truncate_for_storage
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH


@dataclass(frozen=True)
class AgentLoop:
    """Agent loop with its components."""

    model: Runnable[Any, Any]
    """Model that writes the answer."""
    planner: Planner | None
    """Planner of the tasks; None if there are no tools."""
    executor: Executor
    builder: PromptBuilder
    memory: AgentMemory | None
    recall_limit: int
    """Maximum number of recalled records."""
    max_steps: int

    def run(self, turn: Turn, messages: list[BaseMessage]) -> Loop:
        """Answer one question as a generator of updates and effects.

        The updates add up to the result. A call and its result are always in the same update. The messages of
        the updates so far are therefore a valid history for a model at any time.
        """
        yield {"messages": messages, "answer": "", "steps": [], "events": []}
        for passage in turn.knowledge:
            trust = "user" if passage.trusted else "tool"
            yield from self._remember(turn, passage.text, "knowledge", trust)
        question = describe_content(turn.user_message, self.builder.prompts)
        trust = "tool" if is_marked(turn.user_message) else "user"
        yield from self._remember(turn, question, "conversation", trust, role="user")
        stop_reason = yield from self._work(turn)
        if not turn.recalled_records and self.planner is None:
            yield from self._recall(turn)
        yield from self._conclude(turn, stop_reason)
        yield turn.make_event("chain_end", stop_reason) | {
            "stopped": stop_reason,
            "usage": turn.meter.usage,
            "refused": list(dict.fromkeys(step.result for step in turn.steps if step.is_blocked)),
            "dropped_tokens": turn.meter.dropped_tokens,
            "tainted": turn.is_tainted,
            "knowledge": [passage.text for passage in turn.knowledge],
            "recalled": turn.recalled_records,
        }

    def _work(self, turn: Turn) -> Generator[Update | Effect, Any, str]:
        """Run tasks until none is left or a limit is reached; return the stop reason."""
        if self.planner is None:
            return "finished"
        unrun_count = 0
        while True:
            yield from self._recall(turn)
            yield turn.make_event("thinking", turn.question)
            decision = yield from self.planner.decide(turn)
            if decision.unreadable:
                yield turn.make_event("fail", decision.parse_methods[-1])
                return "unreadable_plan"
            is_refused = bool(turn.steps) and turn.steps[-1].is_blocked
            if not decision.calls:
                turn.draft = decision.message
                yield turn.make_event("finish", turn.draft.text if turn.draft else "")
                return "refused" if is_refused else "finished"
            ran = yield from self._step(turn, decision)
            unrun_count = 0 if ran else unrun_count + 1
            if unrun_count == 2:
                return "refused" if is_refused or turn.steps[-1].is_blocked else "no_progress"
            if len(turn.steps) >= self.max_steps:
                return "steps"
            limit = turn.meter.reached_limit()
            if limit:
                return limit

    def _step(self, turn: Turn, decision: Decision) -> Generator[Update | Effect, Any, bool]:
        """Run one task; return True if its tool was started."""
        call, *postponed_calls = decision.calls
        prompts = self.builder.prompts
        yield turn.make_event("thought", decision.task_name)
        yield turn.make_event("execute", f"{call.name}({json.dumps(call.arguments, ensure_ascii=False)})")
        address = call.arguments.get("url")
        if isinstance(address, str):
            is_followed_link = any(
                normalize_address(address) in find_addresses(step.result) for step in turn.steps
            )
            yield turn.make_event("click" if is_followed_link else "reading", address)
        assert decision.message is not None
        call_message = mark(decision.message, turn.is_tainted)
        step = yield from self.executor.run(decision, turn)
        turn.is_tainted = turn.is_tainted or not step.trusted
        turn.reflection = None if step.sufficient else self.builder.build_reflection(step)
        turn.steps.append(step)
        result = ToolMessage(
            fence_result(step, prompts) if step.has_run else step.result,
            tool_call_id=call.id,
            name=call.safe_name,
            status=step.status,
            artifact=step.artifact,
        )
        postponed_results = [
            ToolMessage(prompts.say("postponed"), tool_call_id=other.id, name=other.safe_name, status="error")
            for other in postponed_calls
        ]
        messages = [call_message, result, *postponed_results]
        turn.transcript.append(messages)
        action = "observation" if step.status == "success" else "fail"
        yield turn.make_event(action, step.result) | {"messages": messages, "steps": [step]}
        if step.has_run and step.sufficient:
            text = f"{step.task_name}\n{step.result}"
            trust = "agent" if step.trusted and not turn.is_tainted else "tool"
            yield from self._remember(turn, text, "task", trust, tool=step.tool, urls=list(step.sources))
        return step.has_run

    def _conclude(self, turn: Turn, stop_reason: str) -> Generator[Update | Effect, Any, None]:
        """Write the answer and store it in the memory.

        The planner's text is the answer if no task was run. Otherwise, or if the planner wrote no text, the
        model writes the answer.
        """
        if turn.draft and turn.draft.text and not turn.steps:
            answer = turn.draft
            yield {"answer": answer.text}
        else:
            answer = yield from self._write(turn, None if stop_reason == "finished" else stop_reason)
        # The answer may repeat an injected instruction, so its mark taints the next question after it.
        answer = mark(answer, turn.is_tainted)
        yield turn.make_event("conclusion", answer.text) | {"messages": [answer]}
        if answer.text != self.builder.prompts.say("no_answer"):
            trust = "tool" if turn.is_tainted else "agent"
            shown_texts = [record.text for record in turn.recalled_records]
            text = remove_copies(answer.text, turn.mark_numbers, shown_texts)
            yield from self._remember(turn, text, "conversation", trust, role="assistant")

    def _write(self, turn: Turn, stop_reason: str | None) -> Generator[Update | Effect, Any, AIMessage]:
        prompt, say = self.builder.build_answer_prompt(turn, stop_reason), self.builder.prompts.say
        for _ in range(2):
            reply = yield from self._ask(turn, prompt)
            turn.record_reply(prompt, reply)
            text = extract_text(reply)
            if text.strip():
                return build_message(reply, [], text)
            prompt = [*prompt, HumanMessage(say("ask_again"))]
        text = say("no_answer")
        yield {"answer": text}
        return AIMessage(text, response_metadata=reply.response_metadata)

    def _ask(self, turn: Turn, prompt: list[BaseMessage]) -> Generator[Update | Effect, Any, AIMessage]:
        """Ask the model for the answer; yield its text, whole or in chunks, and return the reply."""
        if not turn.streaming:
            reply: AIMessage = yield AskModel(self.model, prompt)
            if text := extract_text(reply):
                yield {"answer": text}
            return reply
        answer, next_chunk = AnswerStream(), StreamModel(self.model, prompt)
        while (chunk := (yield next_chunk)) is not None:
            if text := answer.add(chunk):
                yield {"answer": text}
        return answer.message

    def _recall(self, turn: Turn) -> Generator[Effect, Any, None]:
        """Search the memory for the next step and set `turn.recalled_records` to the results.

        Records that were written for the current question are left out, as are records whose text is in
        `turn.window`. `select_records` limits earlier questions and answers.
        """
        memory = self.memory
        if memory is None:
            return
        query = "\n".join([turn.question, *(step.task_name for step in turn.steps[-1:])])[:MAX_TEXT_LENGTH]
        # Search for more records than needed: some are skipped below.
        search_count = 4 * self.recall_limit + len(turn.written_ids) + len(turn.window)
        # A memory bank can explain each hit, for the inspection of a turn.
        more: Any = {"explain": True} if isinstance(memory, MemoryBank) else {}
        hits = yield RunFunction(
            lambda: memory.search(query, k=search_count, namespace=turn.namespace, **more)
        )
        visible_texts = {message.text for message in turn.window}
        new_hits = []
        for hit in hits:
            if hit.id not in turn.written_ids and hit.text not in visible_texts:
                visible_texts.add(hit.text)
                new_hits.append(hit)
        turn.recalled_records = select_records(new_hits, self.recall_limit)
        turn.is_tainted = turn.is_tainted or any(map(is_untrusted_record, turn.recalled_records))

    def _remember(
        self, turn: Turn, text: str, kind: str, trust: str, **provenance: Any
    ) -> Generator[Effect, Any, None]:
        memory = self.memory
        if memory is not None and text.strip():
            text = truncate_for_storage(text, self.builder.prompts.say)
            # A conversation is a log: repeated messages are stored repeatedly.
            more = {**turn.provenance, **provenance, "merge": kind != "conversation"}
            record_id = yield RunFunction(
                lambda: memory.add(text, kind=kind, namespace=turn.namespace, trust=trust, **more)
            )
            turn.written_ids.add(record_id)
