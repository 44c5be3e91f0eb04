"""MemoryReader: read a text of any length with a chat model, which rewrites a note after each chunk.

    from scrubjay.agents.langchain import MemoryReader

    reading = MemoryReader(model).read(open("novel.txt"), "How often does she write to him?")
    print(reading.answer, reading.note)

Yu et al. 2025, "MemAgent" (arXiv 2507.02259). The model sees the question, its note and one chunk of the
text, and writes a new note. Only the note passes to the next chunk, so the cost is linear in the length of
the text and the prompt never grows. At the end the model answers from the note alone. A note can add up what
stands in many places, such as a count or the last value of a name; `scrubjay.memory.context.InfiniRetri` only
finds sentences.

Differences from the paper: the wording is ours, chunks end at sentences, and the model is not trained for the
task by reinforcement learning. A model that was not trained for it may lose facts while it rewrites.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import Template
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage

from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.language.text import (
    clean,
    escape_control_tokens,
    make_token_counter,
    truncate_text,
)
from scrubjay.memory.context.sentences import (
    Bookmark,
    ProgressDisplay,
    ReadingPosition,
    Sentence,
    cut_sentence,
    group_sentences,
    split_sentences,
)

NOTE_TASK = "$part\n\nEarlier it was said: $note\n\n$question $instruction Otherwise say: nothing."
ANSWER_TASK = "Note: $note\n\n$question"
INSTRUCTION = "Repeat every sentence above that answers this."
EMPTY_NOTE = "nothing"

_TEMPLATE_TOKENS = 128
"""Tokens reserved for the chat template and the wording of a prompt."""
_DEFAULT_CHUNK = 4096


@dataclass(frozen=True)
class NoteReading:
    """Result of reading a text with a note."""

    answer: str
    """Answer of the model from the note."""
    note: str
    """Note after the last chunk."""
    tokens_read: int
    """Length of the text in tokens."""


class MemoryReader:
    """Reader of long texts with any LangChain chat model.

    Args:
        model: The chat model.
        note_tokens: Maximum number of tokens of the note; a longer reply is cut. Set the model's own limit of
            an answer to at least this number. A `LocalChatModel` receives it as `max_tokens`.
        chunk_tokens: Maximum number of tokens of a chunk. Default: 4,096, or what a `LocalChatModel` can read
            beside the note.
        instruction: What the model does for the new note. The default suits a small model that looks for
            facts. A larger model can aggregate, as in "Repeat all counts, with those of the text added."
        count_tokens: Function that returns the number of tokens of a text. Default: the tokenizer of a
            `LocalChatModel`; for other models an estimate of four characters per token.

    Raises:
        ValueError: If a size is below 1, or if note and chunk exceed what a `LocalChatModel` reads in full.
    """

    def __init__(
        self,
        model: BaseChatModel,
        *,
        note_tokens: int = 1024,
        chunk_tokens: int | None = None,
        instruction: str = INSTRUCTION,
        count_tokens: Callable[[str], int] | None = None,
    ) -> None:
        for name, size in (("note_tokens", note_tokens), ("chunk_tokens", chunk_tokens)):
            if size is not None and size < 1:
                raise ValueError(f"{name}={size}: must be at least 1")
        self.model, self.note_tokens, self.instruction = model, note_tokens, instruction
        self._count_tokens = count_tokens or make_token_counter(model)
        self._view = self._view_length()
        self.chunk_tokens = chunk_tokens or max(1, min(_DEFAULT_CHUNK, self._space_for_chunk("")))
        self._check_space("")

    def read(
        self,
        text: str | Iterable[str],
        question: str,
        *,
        state: Path | str | None = None,
        progress: bool = True,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> NoteReading:
        """Read a text and answer the question from the note.

        Args:
            text: The text, or pieces of it that may be split anywhere.
            question: The question.
            state: File that stores the reading position and the note every few seconds and at Ctrl-C; the
                same call resumes from it.
            progress: Whether to display the progress.
            on_note: Callback with the note after every chunk.

        Raises:
            ValueError: If the file `state` belongs to another text, question or setting, or if the question
                is too long.
        """
        with closing(self._read(text, question, state, progress, on_note)) as steps:
            prompt = next(steps)
            while True:
                try:
                    prompt = steps.send(self.model.invoke(prompt, **self._options))
                except StopIteration as end:
                    return end.value

    async def aread(
        self,
        text: str | Iterable[str],
        question: str,
        *,
        state: Path | str | None = None,
        progress: bool = True,
        on_note: Callable[[str], None] = lambda note: None,
    ) -> NoteReading:
        """Read a text with asynchronous calls of the model. Arguments and errors are those of `read`."""
        with closing(self._read(text, question, state, progress, on_note)) as steps:
            prompt = next(steps)
            while True:
                try:
                    prompt = steps.send(await self.model.ainvoke(prompt, **self._options))
                except StopIteration as end:
                    return end.value

    def _read(
        self,
        text: str | Iterable[str],
        question: str,
        state: Path | str | None,
        progress: bool,
        on_note: Callable[[str], None],
    ) -> Generator[list[BaseMessage], AIMessage, NoteReading]:
        """Yield the prompts of a reading, receive the replies, and return the result."""
        self._check_space(question)
        bookmark = Bookmark(None if state is None else Path(state), self._settings(question))
        length = len(text) if isinstance(text, str) else None
        with ProgressDisplay(bookmark, length, progress, self._describe) as watch:
            cut = partial(cut_sentence, encode=self._encode, most_tokens=self.chunk_tokens)
            sentences = bookmark.iterate_unread(split_sentences(text), cut)
            for chunk in group_sentences(sentences, self.chunk_tokens):
                part = "".join(sentence.text for sentence in chunk)
                reply = yield self._prompt(NOTE_TASK, question, self._note(bookmark), part)
                # A model that says nothing must not erase what it knew.
                note = self._cut(reply.text) or self._note(bookmark)
                bookmark.advance(chunk, [Sentence(note, ())])
                on_note(note)
                watch.update()
        note = self._note(bookmark)
        reply = yield self._prompt(ANSWER_TASK, question, note)
        return NoteReading(clean(reply.text).strip(), note, bookmark.position.tokens)

    def _note(self, bookmark: Bookmark) -> str:
        """Return the note at the reading position; a file from elsewhere may hold one of any length."""
        return self._cut("".join(sentence.text for sentence in bookmark.position.sentences))

    def _cut(self, note: str) -> str:
        return truncate_text(clean(note).strip(), self.note_tokens, self._count_tokens, load_prompts("en"))[0]

    def _prompt(self, task: str, question: str, note: str, part: str = "") -> list[BaseMessage]:
        values = {"part": part, "note": note or EMPTY_NOTE, "question": question}
        safe_values = {name: escape_control_tokens(clean(text)) for name, text in values.items()}
        return [HumanMessage(Template(task).substitute(safe_values, instruction=self.instruction))]

    def _encode(self, text: str) -> range:
        """Return one number per token; chat models do not show token ids."""
        return range(self._count_tokens(text))

    def _describe(self, position: ReadingPosition) -> str:
        length = sum(self._count_tokens(sentence.text) for sentence in position.sentences)
        return f"note of {length:,} tokens"

    @property
    def _options(self) -> dict[str, Any]:
        return {} if self._view is None else {"max_tokens": self.note_tokens}

    def _view_length(self) -> int | None:
        """Return how many tokens of prompt and answer a `LocalChatModel` sees in full; None if unknown."""
        tokens_in_view = getattr(self.model, "tokens_in_view", None)
        return None if tokens_in_view is None else tokens_in_view + self.model.max_tokens  # type: ignore

    def _space_for_chunk(self, question: str) -> int:
        """Return how many tokens of a chunk fit beside question, note and reply."""
        if self._view is None:
            return _DEFAULT_CHUNK
        others = self._count_tokens(question + self.instruction) + _TEMPLATE_TOKENS
        return self._view - others - 2 * self.note_tokens

    def _check_space(self, question: str) -> None:
        space = self._space_for_chunk(question)
        if self._view is not None and self.chunk_tokens > space:
            raise ValueError(
                f"chunk_tokens={self.chunk_tokens} and note_tokens={self.note_tokens}: the model reads "
                f"{self._view:,} tokens in full, so {max(space, 0):,} are left for a chunk; lower "
                "chunk_tokens or note_tokens, or raise the model's budget"
            )

    def _settings(self, question: str) -> str:
        """Return a hash of the settings that a saved position depends on, besides the text."""
        settings = (question, self.chunk_tokens, self.note_tokens, self.instruction)
        return hashlib.sha256(repr(settings).encode()).hexdigest()
