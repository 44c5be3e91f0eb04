"""When the agent writes to its memory and what it looks up: KwaiAgents' memory update and retrieval."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from scrubjay.agents.kwai.effects import Do, Effect
from scrubjay.agents.kwai.events import Step
from scrubjay.agents.kwai.remembering import Remembered, Remembers
from scrubjay.agents.kwai.turn import Turn
from scrubjay.agents.language.prompts import Prompts
from scrubjay.agents.language.text import is_question, storable
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.record import LONGEST_TEXT


class Recall:
    """Keeps KwaiAgents' three kinds apart: supplied knowledge, conversation, tasks with their results.

    What a tool or a supplied document worded, or an answer written after reading it, is kept with
    `trust="tool"`. It is shown as data when it comes up again, taints the question it comes up for, and never
    gets into the profile.
    """

    def __init__(
        self,
        memory: Remembers | None,
        namespace: tuple[str, ...],
        k: int,
        prompts: Prompts,
        **provenance: Any,
    ) -> None:
        self._memory, self._namespace, self._k, self._prompts = memory, namespace, k, prompts
        self._provenance = provenance

    def remember_question(self, turn: Turn) -> Generator[Effect, Any, None]:
        """Keep the question and what was supplied with it."""
        for passage in turn.knowledge:
            yield from self._add(turn, passage.text, "knowledge", "user" if passage.trusted else "tool")
        yield from self._add(turn, turn.question, "conversation", "user", role="user")

    def remember_step(self, turn: Turn, step: Step) -> Generator[Effect, Any, None]:
        """Keep a task and its result, if it found anything."""
        if step.sufficient:
            text = f"{step.task_name}\n{step.result}"
            trust = "agent" if step.trusted and not turn.tainted else "tool"
            yield from self._add(turn, text, "task", trust, tool=step.tool, urls=list(step.sources))

    def remember_answer(self, turn: Turn, answer: str) -> Generator[Effect, Any, None]:
        """Keep the answer."""
        trust = "tool" if turn.tainted else "agent"
        yield from self._add(turn, answer, "conversation", trust, role="assistant")

    def recall(self, turn: Turn) -> Generator[Effect, Any, None]:
        """Look up what may help with the next step; what this question itself wrote is known already.

        Few of the records are the agent's own answers, which came from what it was told or found, or
        questions asked before, which are most like the question and tell nothing.
        """
        memory = self._memory
        if memory is None:
            return
        asked = [turn.question, *(step.task_name for step in turn.steps[-1:])]
        query = "\n".join(asked)[:LONGEST_TEXT]
        # Of what is found, some is in view already, or tells little.
        wanted = 4 * self._k + len(turn.written) + len(turn.window)
        # A bank says why each came, for who looks at the turn.
        more: Any = {"explain": True} if isinstance(memory, MemoryBank) else {}
        hits: list[Remembered] = list(
            (yield Do(lambda: memory.search(query, k=wanted, namespace=self._namespace, **more)))
        )
        shown: set[str] = {message.text for message in turn.window}
        idle, turn.recalled = 0, []
        for hit in hits:
            if len(turn.recalled) == self._k:
                break
            if hit.id in turn.written or hit.text in shown:
                continue
            if hit.kind == "conversation" and (hit.trust == "agent" or is_question(hit.text)):
                idle += 1
                if idle > max(1, self._k // 3):
                    continue
            shown.add(hit.text)
            turn.recalled.append(hit)
        turn.tainted = turn.tainted or any(hit.trust == "tool" for hit in turn.recalled)

    def _add(
        self, turn: Turn, text: str, kind: str, trust: str, **provenance: Any
    ) -> Generator[Effect, Any, None]:
        memory = self._memory
        if memory is not None and text.strip():
            text = storable(text, self._prompts.say)
            # A conversation is a log: what is said twice stays there twice.
            more = {**self._provenance, **provenance, "merge": kind != "conversation"}
            added = yield Do(
                lambda: memory.add(text, kind=kind, namespace=self._namespace, trust=trust, **more)
            )
            turn.written.add(added)
