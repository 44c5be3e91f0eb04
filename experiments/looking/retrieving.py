"""InfiniRetri's reading of a text as a trace: a step a sentence, and which are kept after each chunk."""

from __future__ import annotations

from scrubjay.experiments.looking.keeping import HELD
from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.memory.reading.infiniretri import InfiniRetri, Judged, Retrieved


class Retrieving:
    """What becomes of the sentences of a text that is read for a question."""

    def __init__(self, reader: InfiniRetri, question: str) -> None:
        self._reader, self._question = reader, question
        self._steps: list[Step] = []
        self._scores: list[float | None] = []
        self._tokens: list[float | None] = []
        self._kept: list[int] = []

    def __len__(self) -> int:
        return len(self._steps)

    def note(self, judged: Judged) -> None:
        """Note a chunk, in order: pass this to `InfiniRetri.read`."""
        old, new = len(self._kept), len(judged.sentences) - len(self._kept)
        places = [*self._kept, *range(len(self._steps), len(self._steps) + new)]
        self._kept = [places[at] for at in judged.kept]
        self._scores += judged.scores[old:]
        self._tokens += [None] * new
        self._steps += [
            Step(place, text=judged.sentences[old + at].text) for at, place in enumerate(places[old:])
        ]
        if not new:
            return
        best = [judged.scores[at] for at in judged.kept]
        recalled = Recall.of(HELD, self._kept, best)
        told = f"{len(self._kept)} of {len(judged.sentences)} sentences are kept"
        self._steps[-1] = Step(places[-1], None, self._steps[-1].text, told, {}, (recalled,))
        self._tokens[-1] = sum(len(judged.sentences[at].tokens) for at in judged.kept)

    def trace(self, title: str, found: Retrieved | None = None) -> Trace:
        """Return the text so far, what was kept after each chunk, and the answer if it is there."""
        reader = self._reader
        answered = {} if found is None else {"answer": found.answer, "tokens": str(found.tokens_read)}
        return Trace(
            kind="language model",
            title=title,
            steps=tuple(self._steps),
            about={
                "question": self._question,
                **answered,
                "tokens of a chunk": str(reader.chunk_tokens),
                "heads": f"{', '.join(map(str, reader.heads))} of layer {reader.layer}",
            },
            unit="sentences",
            rate=4.0,
            tracks={
                "score of the sentence, when it was first read": tuple(self._scores),
                "tokens kept": tuple(self._tokens),
            },
        )
