"""Concatenation of conversations, so that one bank can store all of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from scrubjay.experiments.lm.conversations import Conversation, Question, Turn


def concatenate(conversations: Iterable[Conversation]) -> Conversation:
    """Concatenate conversations into one, with all their questions."""
    turns: list[Turn] = []
    questions: list[Question] = []
    for conversation in conversations:
        begin = len(turns)
        for turn in conversation.turns:
            turns.append(replace(turn, replaces=None if turn.replaces is None else begin + turn.replaces))
        for question in conversation.questions:
            answers, outdated_answers = (
                frozenset(begin + place for place in places)
                for places in (question.answers, question.outdated_answers)
            )
            questions.append(replace(question, answers=answers, outdated_answers=outdated_answers))
    return Conversation(tuple(turns), tuple(questions))
