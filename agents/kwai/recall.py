"""Memory updates and retrieval of the agent, as in KwaiAgents."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from scrubjay.agents.kwai.runner import Effect, RunFunction
from scrubjay.agents.kwai.turn import AgentMemory, MemoryRecord, Step, Turn
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import is_question, truncate_for_storage
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.record import MAX_TEXT_LENGTH


class MemoryAccess:
    """Access to the agent's memory, with the three record types of KwaiAgents.

    The types are supplied knowledge, conversation, and tasks with their results. Untrusted text from a tool
    or a document is stored with `trust="tool"`. Text that the agent writes after it has read such text has
    the same trust. A recalled record with this trust appears in the prompt as data and taints the question.
    Such a record never becomes part of the profile.
    """

    def __init__(
        self,
        memory: AgentMemory | None,
        namespace: tuple[str, ...],
        k: int,
        prompts: Prompts,
        **provenance: Any,
    ) -> None:
        self._memory, self._namespace, self._k, self._prompts = memory, namespace, k, prompts
        self._provenance = provenance

    def remember_question(self, turn: Turn) -> Generator[Effect, Any, None]:
        """Store the question and the knowledge supplied with it."""
        for passage in turn.knowledge:
            yield from self._add(turn, passage.text, "knowledge", "user" if passage.trusted else "tool")
        yield from self._add(turn, turn.question, "conversation", "user", role="user")

    def remember_step(self, turn: Turn, step: Step) -> Generator[Effect, Any, None]:
        """Store a task and its result, if the result is not empty."""
        if step.sufficient:
            text = f"{step.task_name}\n{step.result}"
            trust = "agent" if step.trusted and not turn.is_tainted else "tool"
            yield from self._add(turn, text, "task", trust, tool=step.tool, urls=list(step.sources))

    def remember_answer(self, turn: Turn, answer: str) -> Generator[Effect, Any, None]:
        """Store the answer."""
        trust = "tool" if turn.is_tainted else "agent"
        yield from self._add(turn, answer, "conversation", trust, role="assistant")

    def recall(self, turn: Turn) -> Generator[Effect, Any, None]:
        """Search the memory for the next step and set `turn.recalled_records` to the results.

        Records that were written for the current question are left out, as are records whose text is in
        `turn.window`. Earlier questions and earlier answers with `trust="agent"` together fill at most a
        third of the results (one such record is always allowed). These answers only repeat other records.
        Earlier questions are similar to the current question but contain no information.
        """
        memory = self._memory
        if memory is None:
            return
        query_lines = [turn.question, *(step.task_name for step in turn.steps[-1:])]
        query = "\n".join(query_lines)[:MAX_TEXT_LENGTH]
        # Search for more records than needed: some are skipped below.
        search_count = 4 * self._k + len(turn.written_ids) + len(turn.window)
        # A memory bank can explain each hit, for the inspection of a turn.
        more: Any = {"explain": True} if isinstance(memory, MemoryBank) else {}
        hits: list[MemoryRecord] = list(
            (
                yield RunFunction(
                    lambda: memory.search(query, k=search_count, namespace=self._namespace, **more)
                )
            )
        )
        visible_texts: set[str] = {message.text for message in turn.window}
        uninformative_count, turn.recalled_records = 0, []
        for hit in hits:
            if len(turn.recalled_records) == self._k:
                break
            if hit.id in turn.written_ids or hit.text in visible_texts:
                continue
            if hit.kind == "conversation" and (hit.trust == "agent" or is_question(hit.text)):
                uninformative_count += 1
                if uninformative_count > max(1, self._k // 3):
                    continue
            visible_texts.add(hit.text)
            turn.recalled_records.append(hit)
        turn.is_tainted = turn.is_tainted or any(hit.trust == "tool" for hit in turn.recalled_records)

    def _add(
        self, turn: Turn, text: str, kind: str, trust: str, **provenance: Any
    ) -> Generator[Effect, Any, None]:
        memory = self._memory
        if memory is not None and text.strip():
            text = truncate_for_storage(text, self._prompts.say)
            # A conversation is a log: repeated messages are stored repeatedly.
            more = {**self._provenance, **provenance, "merge": kind != "conversation"}
            record_id = yield RunFunction(
                lambda: memory.add(text, kind=kind, namespace=self._namespace, trust=trust, **more)
            )
            turn.written_ids.add(record_id)
