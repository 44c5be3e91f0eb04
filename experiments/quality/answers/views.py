"""Views of a conversation for a reader: records of a bank, hits of a file search, or all turns that fit.

Each view stores a conversation once and is then queried for every question.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from scrubjay.experiments.lm.conversations import Conversation, Question
from scrubjay.experiments.quality import retrievers
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation
from scrubjay.memory.bank.file.record import Record

Recall = Callable[[str], Sequence[int]]
"""Function from a query to indices of turns, best first."""
ViewName = Literal["bank", "supersedes", "consolidated", "files", "full"]
LABELS: Mapping[ViewName, str] = {
    "bank": "bank",
    "supersedes": "bank with annotated replacements",
    "consolidated": "bank with error-free consolidation",
    "files": "file search (FTS5, BM25)",
    "full": "full context",
}


class View(NamedTuple):
    """Turns shown for a query."""

    places: tuple[int, ...]
    """Indices of the turns, best first."""
    tokens: int
    cut: bool
    """True if the token limit excluded some turns."""


def open_view(name: ViewName, conversation: Conversation, k: int, embeddings: Any = None) -> Recall:
    """Store a conversation and return its recall function.

    The function maps a query to the indices of at most `k` turns, or of all turns for `full`.
    """
    if name == "full":
        newest_first = range(len(conversation.turns))[::-1]
        return lambda text: newest_first
    if name == "files":
        search = retrievers.keyword_index(conversation, embeddings)
        return lambda text: search(Question(text, frozenset(), ""), k)
    if name == "consolidated":
        return _consolidated_bank(conversation, k, embeddings)
    return _bank(conversation, k, embeddings, supersedes=name == "supersedes")


def fit(places: Sequence[int], cost: Callable[[int], int], room: int, contiguous: bool) -> View:
    """Select turns in order, up to a total of `room` tokens.

    With `contiguous`, the selection ends before the first turn that does not fit. Otherwise only the turns
    that do not fit are skipped.
    """
    selected_places, tokens, cut = [], 0, False
    for place in places:
        if tokens + cost(place) > room:
            cut = True
            if contiguous:
                break
            continue
        selected_places.append(place)
        tokens += cost(place)
    return View(tuple(selected_places), tokens, cut)


def _bank(conversation: Conversation, k: int, embeddings: Any, supersedes: bool) -> Recall:
    # The clock is the time of the last turn, so that record ages are those at the time of the questions.
    bank = MemoryBank(":memory:", embeddings, clock=lambda: conversation.turns[-1].observed)
    ids: list[str] = []
    waiting = []
    for turn in conversation.turns:
        replaced_turn = turn.replaces if supersedes else None
        if replaced_turn is not None and replaced_turn >= len(ids):
            ids += bank.write(bank.embed_drafts(waiting))
            waiting = []
        draft = bank.draft(
            turn.text,
            observed=turn.observed,
            merge=False,
            supersedes=None if replaced_turn is None else ids[replaced_turn],
        )
        waiting.append(draft)
    ids += bank.write(bank.embed_drafts(waiting))
    place_of = {id: place for place, id in enumerate(ids)}
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]


def _consolidated_bank(conversation: Conversation, k: int, embeddings: Any) -> Recall:
    """Store a conversation with consolidation and return its recall function.

    Each turn adds a record or updates one of the `k` nearest records. The annotated facts decide between the
    two: a turn updates a record if both state a fact of the same subject and relation.
    """
    now = conversation.turns[0]
    bank = MemoryBank(":memory:", embeddings, clock=lambda: now.observed)
    place_of: dict[str, int] = {}

    def decide(text: str, records: Sequence[Record]) -> list[Change]:
        facts = [conversation.turns[place_of[record.id]].fact for record in records]
        for place, fact in enumerate(facts):
            if fact is not None and now.fact is not None and fact[:2] == now.fact[:2]:
                return [Change("update", place)]
        return [Change("add")]

    consolidation = Consolidation(bank, decide, k)
    for place, turn in enumerate(conversation.turns):
        now = turn
        (step,) = consolidation.add(turn.text, "conversation", observed=turn.observed).steps
        place_of[step.written_id or ""] = place
    return lambda text: [place_of[hit.id] for hit in bank.search(text, k)]
