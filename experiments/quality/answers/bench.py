"""Take every text of some files in once, ask all of its questions, and keep each answer as it comes."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from scrubjay.agents.embeddings import EmbeddingsName, make_embeddings
from scrubjay.agents.language.text import estimate_tokens
from scrubjay.experiments.language.conversations import Conversation, Question
from scrubjay.experiments.quality.answers.readers import (
    JUDGED,
    PROMPT,
    Look,
    Reply,
    by_facts,
    by_model,
    judge,
    record,
    written,
)
from scrubjay.experiments.quality.answers.scores import SCORERS, score, substring
from scrubjay.experiments.quality.answers.views import Recall, View, ViewName, fit, open_view
from scrubjay.experiments.quality.kept import KeptEmbeddings
from scrubjay.experiments.quality.sets.guess import Form, read_any
from scrubjay.experiments.runs.records import Records, settle
from scrubjay.experiments.runs.stopping import StopRequest
from scrubjay.experiments.words.failures import UsageError

Number = float | None
ROW: dict[str, Any] = {
    "text": str,
    "name": str,
    "question": int,
    "ability": str,
    "arm": str,
    "reader": str,
    "answer": str | None,
    "tokens": int,
    "cut": bool,
    "recall": Number,
    "held": Number,
    "stale": Number,
    **dict.fromkeys((*SCORERS, "judged"), Number),
}
"""Of each kept line: which question of which text was answered, by whom, and how well."""
_SILENT_SECONDS = 3.0
_AROUND = 16  # tokens that a template writes around a prompt


@dataclass(frozen=True)
class Settings:
    """What answers depend on, beside the texts."""

    k: int = 10
    """Turns recalled."""
    embeddings: EmbeddingsName | None = None
    window: int = 8192
    """Tokens shown at most, where the model does not see fewer."""
    model: str | None = None
    max_tokens: int = 64
    """Of a model's answer."""
    judge: str | None = None
    """Model that says whether an answer is right."""

    def check(self) -> None:
        """Raise UsageError on sizes that cannot be."""
        for name in ("k", "window", "max_tokens"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.judge is not None and self.model is None:
            raise UsageError(f"judge={self.judge!r}: there are no answers to judge; give --model, too")


@dataclass(frozen=True)
class Text:
    """A conversation, with a name that no other has, and how many of its questions are asked."""

    conversation: Conversation
    asked: int

    @cached_property
    def digest(self) -> str:
        """The same for the same turns and questions."""
        told = hashlib.blake2b(digest_size=8)
        for turn in self.conversation.turns:
            told.update(f"{turn}\0".encode("utf-8", "replace"))
        for question in self.conversation.questions:
            # Sets of places have no order of their own.
            places = sorted(question.answers), sorted(question.outdated)
            told.update(f"{question.text}\0{question.references}\0{places}\0".encode("utf-8", "replace"))
        return told.hexdigest()

    @property
    def knows_facts(self) -> bool:
        """Whether questions can be answered from the facts of its turns."""
        return any(question.hops for question in self.conversation.questions)


def read_texts(files: Sequence[Path], form: Form | None, questions: int | None) -> list[Text]:
    """Return the texts of files, each once, with the first of its questions.

    Raises UsageError on what is no set, and where nothing is asked.
    """
    found: dict[str, Text] = {}
    for conversation in (one for path in files for one in read_any(path, form)):
        if conversation.turns and conversation.questions:
            text = Text(conversation, len(conversation.questions[:questions]))
            found.setdefault(text.digest, text)
    if not found:
        raise UsageError(f"there are no questions about anything in {', '.join(map(str, files))}")
    return list(found.values())


class Bench:
    """Answers what is not answered yet; `model` and `judging` are chat models of langchain, or None.

    Raises ValueError on an `out` that holds what was answered with other settings.
    """

    def __init__(self, settings: Settings, out: Path, model: Any = None, judging: Any = None) -> None:
        settings.check()
        self.settings, self._model, self._judge = settings, model, judging
        told = dataclasses.asdict(settings) | {
            "prompt": PROMPT,
            "judged": None if judging is None else JUDGED,
        }
        if settings.model is None:
            told |= {"prompt": None, "max_tokens": None}
        settle(out, told)
        self.records = Records(out / "answers.jsonl", ROW)
        self._count = _counter(model)
        self.window = min(settings.window, _seen(model, settings))
        self._out = out

    def run(self, texts: Sequence[Text], arms: Sequence[ViewName]) -> int:
        """Answer; return 0, or 128 and the number of the signal that stopped it between two questions."""
        todo = list(self._todo(texts, arms))
        missing, done, said = sum(len(left) for _, _, left in todo), 0, time.monotonic()
        with StopRequest() as stop:
            for text, arm, left in todo:
                recall = open_view(arm, text.conversation, self.settings.k, self._embeddings)
                for number, reader in left:
                    self.records.append(self._row(text, arm, reader, number, recall))
                    done += 1
                    if stop.signal_number is not None:
                        print(
                            f"stopped after {done:,} of {missing:,}; the same command goes on",
                            file=sys.stderr,
                        )
                        return 128 + stop.signal_number
                    if time.monotonic() - said > _SILENT_SECONDS:
                        said = time.monotonic()
                        print(f"answered {done:,} of {missing:,}", file=sys.stderr, flush=True)
        return 0

    def rows(self, texts: Iterable[Text], arms: Iterable[ViewName]) -> list[dict[str, Any]]:
        """Return what was answered of these texts by these arms."""
        asked, wanted = {text.digest: text.asked for text in texts}, set(arms)
        return [
            row
            for row in self.records.rows
            if row["arm"] in wanted and row["question"] < asked.get(row["text"], 0)
        ]

    def _readers(self, text: Text, arm: ViewName) -> list[str]:
        if self.settings.model is not None:
            return [self.settings.model]
        if not text.knows_facts:
            return [""]
        return ["newest"] if arm == "full" else ["first", "newest"]  # of all, the newest is the first

    def _todo(
        self, texts: Sequence[Text], arms: Sequence[ViewName]
    ) -> Iterator[tuple[Text, ViewName, list[tuple[int, str]]]]:
        """Yield which questions are left for which readers, once for each text and arm."""
        keys = ("text", "arm", "question", "reader")
        done = {tuple(row[name] for name in keys) for row in self.records.rows}
        for text in texts:
            replaced = any(turn.replaces is not None for turn in text.conversation.turns)
            for arm in dict.fromkeys(arms):
                needed = {"supersedes": replaced, "consolidated": replaced and text.knows_facts}
                if not needed.get(arm, True):
                    continue
                asked = itertools.product(range(text.asked), self._readers(text, arm))
                left = [one for one in asked if (text.digest, arm, *one) not in done]
                if left:
                    yield text, arm, left

    def _row(self, text: Text, arm: ViewName, reader: str, number: int, recall: Recall) -> dict[str, Any]:
        conversation = text.conversation
        question = conversation.questions[number]
        look = self._look(conversation, arm, question, recall)
        view = look(question.text)
        reply: Reply | None = None
        if self._model is not None:
            reply = by_model(self._model, reader, conversation, question, look)
        elif reader and question.hops:
            reply = by_facts(conversation, question, look, newest=reader == "newest")
        scores: dict[str, Number] = dict.fromkeys((*SCORERS, "judged"))
        if reply is not None and question.references:
            scores |= score(question.references, reply.answer)
            if self._judge is not None:
                scores["judged"] = judge(self._judge, self.settings.judge or "", question, reply.answer)
        return {
            "text": text.digest,
            "name": conversation.name,
            "question": number,
            "ability": question.ability,
            "arm": arm,
            "reader": reader,
            "answer": None if reply is None else reply.answer,
            "tokens": view.tokens if reply is None else reply.tokens,
            "cut": view.cut if reply is None else reply.cut,
            **_found(conversation, question, view),
            **scores,
        }

    def _look(self, conversation: Conversation, arm: ViewName, question: Question, recall: Recall) -> Look:
        """Return what is shown for a text, as far as there is room beside the question."""
        around = _AROUND + self._count(written(conversation, question, View((), 0, False)))
        room = max(0, self.window - around)

        def look(text: str) -> View:
            return fit(
                recall(text),
                lambda place: self._count(f"{record(conversation, place)}\n"),
                room,
                contiguous=arm == "full",
            )

        return look

    @cached_property
    def _embeddings(self) -> KeptEmbeddings | None:
        if self.settings.embeddings is None:
            return None
        return KeptEmbeddings(make_embeddings(self.settings.embeddings), self._out / "vectors.db")


def _found(conversation: Conversation, question: Question, view: View) -> dict[str, Number]:
    """Return which part of the needed turns is shown, whether an answer is, and what is outdated first."""
    shown: dict[str, Number] = dict.fromkeys(("recall", "held", "stale"))
    if question.answers:
        shown["recall"] = len(question.answers & set(view.places)) / len(question.answers)
    if question.references:
        told = "\n".join(conversation.turns[place].text for place in view.places)
        shown["held"] = max(substring(one, told) for one in question.references)
    if question.outdated:
        order = [place for place in view.places if place in question.answers | question.outdated]
        shown["stale"] = float(bool(order) and order[0] in question.outdated)
    return shown


def _counter(model: Any) -> Callable[[str], int]:
    """Return how to count tokens: by a local model's tokenizer, else by estimate."""
    return estimate_tokens if getattr(model, "tokens_in_view", None) is None else model.get_num_tokens


def _seen(model: Any, settings: Settings) -> int:
    """Return how many tokens of a prompt a model sees; where that is unknown, what may be shown at most."""
    seen = getattr(model, "tokens_in_view", None)
    if seen is None:
        profile = getattr(model, "profile", None) or {}
        most = profile.get("max_input_tokens")
        seen = None if most is None else most - settings.max_tokens
    return settings.window if seen is None else seen
