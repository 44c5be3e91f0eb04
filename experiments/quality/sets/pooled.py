"""Several conversations as one."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scrubjay.experiments.language.conversations import Conversation, Question, Turn


def in_one(conversations: Iterable[Conversation]) -> Conversation:
    """Return conversations one after the other as one, with the questions of all."""
    turns: list[Turn] = []
    asked: list[Question] = []
    for conversation in conversations:
        begin = len(turns)
        for turn in conversation.turns:
            turns.append(replace(turn, replaces=None if turn.replaces is None else begin + turn.replaces))
        for question in conversation.questions:
            answers, outdated = (
                frozenset(begin + place for place in places)
                for places in (question.answers, question.outdated)
            )
            asked.append(replace(question, answers=answers, outdated=outdated))
    return Conversation(tuple(turns), tuple(asked))
