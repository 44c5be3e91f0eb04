"""What is shown to who answers: a bank's records, what a search of files finds, or all there is room for.

Each takes a conversation in once and is then asked for every question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from scrubjay.experiments.language.conversations import Conversation, Question
from scrubjay.experiments.quality import arms
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.file.record import Record

Recall = Callable[[str], Sequence[int]]
"""Returns places of turns for a text, the best first."""
ViewName = Literal["bank", "supersedes", "consolidated", "files", "full"]
LABELS: Mapping[ViewName, str] = {
    "bank": "bank",
    "supersedes": "bank, told what replaces what",
    "consolidated": "bank, consolidated without error",
    "files": "file search (FTS5, BM25)",
    "full": "full context",
}


class View(NamedTuple):
    """What is shown."""

    places: tuple[int, ...]
    """Of turns, the best first."""
    tokens: int
    cut: bool
    """Whether more would have been shown if there had been room."""


def open_view(name: ViewName, conversation: Conversation, k: int, embeddings: Any = None) -> Recall:
    """Let a contestant take a conversation in; return what it recalls, up to `k` turns, full context all."""
    if name == "full":
        newest_first = range(len(conversation.turns))[::-1]
        return lambda text: newest_first
    if name == "files":
        search = arms.keyword_index(conversation, embeddings)
        return lambda text: search(Question(text, frozenset(), ""), k)
    if name == "consolidated":
        return _consolidated(conversation, k, embeddings)
    return _bank(conversation, k, embeddings, supersedes=name == "supersedes")


def fit(places: Sequence[int], cost: Callable[[int], int], room: int, contiguous: bool) -> View:
    """Return the first places of those for which there is room, by tokens.

    `contiguous` ends with the first that does not fit; else it is left out, and what comes after may fit.
    """
    shown, tokens, cut = [], 0, False
    for place in places:
        if tokens + cost(place) > room:
            cut = True
            if contiguous:
                break
            continue
        shown.append(place)
        tokens += cost(place)
    return View(tuple(shown), tokens, cut)


def _bank(conversation: Conversation, k: int, embeddings: Any, supersedes: bool) -> Recall:
    # The last moment is the present one, so that ages are what they were for who asks.
    bank = MemoryBank(":memory:", embeddings, clock=lambda: conversation.turns[-1].observed)
    ids: list[str] = []
    waiting = []
    for turn in conversation.turns:
        replaced = turn.replaces if supersedes else None
        if replaced is not None and replaced >= len(ids):
            ids += bank.write(bank.embedded(waiting))
            waiting = []
        draft = bank.draft(
            turn.text,
            observed=turn.observed,
            merge=False,
            supersedes=None if replaced is None else ids[replaced],
        )
        waiting.append(draft)
    ids += bank.write(bank.embedded(waiting))
    place_of = {id: place for place, id in enumerate(ids)}
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]


def _consolidated(conversation: Conversation, k: int, embeddings: Any) -> Recall:
    """Let who sees no more than the `k` nearest records, and cannot err, decide what a fact replaces."""
    now = conversation.turns[0]
    bank = MemoryBank(":memory:", embeddings, clock=lambda: now.observed)
    place_of: dict[str, int] = {}

    def decide(text: str, records: Sequence[Record]) -> list[Change]:
        known = [conversation.turns[place_of[record.id]].fact for record in records]
        for place, fact in enumerate(known):
            if fact is not None and now.fact is not None and fact[:2] == now.fact[:2]:
                return [Change("update", place)]
        return [Change("add")]

    consolidation = Consolidation(bank, decide, k)
    for place, turn in enumerate(conversation.turns):
        now = turn
        (step,) = consolidation.add(turn.text, "conversation", observed=turn.observed).steps
        place_of[step.wrote or ""] = place
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]
