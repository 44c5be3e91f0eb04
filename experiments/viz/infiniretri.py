"""Trace of InfiniRetri on a text: one step per sentence, with the retained sentences after each chunk."""

from __future__ import annotations

from scrubjay.experiments.viz.cache_policy import KEPT
from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory.context.infiniretri import InfiniRetri, ReadingResult, SentenceSelection


class InfiniRetriRecorder:
    """Recorder of the retained sentences while InfiniRetri reads a text for a question."""

    def __init__(self, reader: InfiniRetri, question: str) -> None:
        self._reader, self._question = reader, question
        self._steps: list[Step] = []
        self._scores: list[float | None] = []
        self._tokens: list[float | None] = []
        self._retained_sentences: list[int] = []

    def __len__(self) -> int:
        return len(self._steps)

    def record(self, selection: SentenceSelection) -> None:
        """Record the selection after a chunk; pass this method as callback to `InfiniRetri.read`."""
        old, new = len(self._retained_sentences), len(selection.sentences) - len(self._retained_sentences)
        places = [*self._retained_sentences, *range(len(self._steps), len(self._steps) + new)]
        self._retained_sentences = [places[at] for at in selection.indices]
        self._scores += selection.scores[old:]
        self._tokens += [None] * new
        self._steps += [
            Step(place, text=selection.sentences[old + at].text) for at, place in enumerate(places[old:])
        ]
        if not new:
            return
        best = [selection.scores[at] for at in selection.indices]
        recall = Recall.from_weights(KEPT, self._retained_sentences, best)
        summary = f"{len(self._retained_sentences)} of {len(selection.sentences)} sentences are kept"
        self._steps[-1] = Step(places[-1], None, self._steps[-1].text, summary, {}, (recall,))
        self._tokens[-1] = sum(len(selection.sentences[at].tokens) for at in selection.indices)

    def trace(self, title: str, result: ReadingResult | None = None) -> Trace:
        """Return the trace up to now: the retained sentences after each chunk, and the answer in `result`."""
        reader = self._reader
        answer = {} if result is None else {"answer": result.answer, "tokens": str(result.tokens_read)}
        return Trace(
            kind="language model",
            title=title,
            steps=tuple(self._steps),
            about={
                "question": self._question,
                **answer,
                "tokens per chunk": str(reader.chunk_tokens),
                "heads": f"{', '.join(map(str, reader.heads))} of layer {reader.layer}",
            },
            unit="sentences",
            rate=4.0,
            tracks={
                "score of the sentence at its first reading": tuple(self._scores),
                "retained tokens": tuple(self._tokens),
            },
        )
