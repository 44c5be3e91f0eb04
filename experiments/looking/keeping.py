"""What a context policy keeps of a text: a language model's reading as a trace, a step a token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.looking.reading import likeliest, retrieval_table, word_of
from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.memory.context.parts.marks import FIRST, LayerKept

if TYPE_CHECKING:
    from scrubjay.memory.context import PolicyCache
    from scrubjay.memory.heads.retrieval import RetrievalHeads

HELD, READ, FETCHED = "kept", "read", "fetched"
"""Names of what steps recall: the share of heads, over all layers, that keep a token, read it, fetched it."""
_MOST_WEIGHTS = 4_000_000
"""Of what is recalled: of long texts the newest steps have it, and a page stays below some megabytes."""


class _Moment(NamedTuple):
    """What is kept after a call of the model, whose last token it is of."""

    recalled: tuple[Recall, ...]
    held: float
    """Tokens, the mean over heads."""
    to_first: float
    """Share of attention that the first tokens got, the mean over heads."""
    options: dict[str, float]


class Keeping:
    """What is kept of one text, noted after each call of a model with a marked cache of one row."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int | None] = []
        self._losses: dict[int, float] = {}
        self._moments: dict[int, _Moment] = {}
        self._last: dict[int, LayerKept] = {}
        self._log_probs: Float[Tensor, " vocabulary"] | None = None
        self._about: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def note(self, tokens: Sequence[int], cache: PolicyCache, logits: Float[Tensor, " vocabulary"]) -> None:
        """Note what a cache keeps that has just read `tokens`, and by `logits` what is likely to follow.

        A cache that was cropped, or another one, says so by how much it has seen: what was noted of later
        tokens is forgotten. What it had seen before, and was not noted, has no words.
        """
        begin, before = cache.get_seq_length() - len(tokens), len(self._tokens)
        self._losses = {place: loss for place, loss in self._losses.items() if place < begin}
        self._moments = {place: moment for place, moment in self._moments.items() if place < begin}
        if begin == before and self._log_probs is not None:
            self._losses[begin] = -float(self._log_probs[tokens[0]])
        self._tokens = [*self._tokens[:begin], *[None] * (begin - before), *tokens]
        self._log_probs = logits.float().log_softmax(dim=-1).cpu()
        self._last = {layer: _first_row(kept) for layer, kept in cache.kept().items()}
        self._about = {"policy": repr(cache.policy), "cache": f"{cache.nbytes() / 2**20:.1f} MiB"}
        self._moments[len(self._tokens) - 1] = self._moment()
        self._forget()

    def trace(self, title: str, retrieval: RetrievalHeads | None = None) -> Trace:
        """Return the text so far, what of it was kept, read and fetched, and at its end each head's share."""
        words = ["…" if token is None else word_of(self._tokenizer, token) for token in self._tokens]
        steps = []
        for place, word in enumerate(words):
            moment, follows = self._moments.get(place), "".join(words[place + 1 : place + 2])
            if moment is None:
                steps.append(Step(place, text=word, choice=follows))
            else:
                steps.append(Step(place, None, word, follows, moment.options, moment.recalled))
        moments = [self._moments.get(place) for place in range(len(words))]
        losses = tuple(self._losses.get(place) for place in range(len(words)))
        return Trace(
            kind="language model",
            title=title,
            steps=tuple(steps),
            about={"tokens": str(len(words)), **self._about},
            unit="tokens",
            rate=8.0,
            tracks={
                "tokens kept, mean of heads": tuple(m.held if m else None for m in moments),
                f"attention to the first {FIRST} tokens": tuple(m.to_first if m else None for m in moments),
            }
            | ({"loss of the token": losses} if any(loss is not None for loss in losses) else {}),
            tables=self._tables(retrieval),
        )

    def _moment(self) -> _Moment:
        layers = list(self._last.values())
        held, read, fetched = (
            torch.cat([getattr(layer, name)[0] for layer in layers]).float().mean(dim=0)
            for name in ("held", "read", "fetched")
        )
        shares = {HELD: held}
        if not torch.equal(held, read):
            shares[READ] = read
        if bool(fetched.any()):
            shares[FETCHED] = fetched
        recalled = tuple(Recall.of(name, range(len(of)), of) for name, of in shares.items())
        to_first = torch.cat([layer.to_first[0] for layer in layers]).float().mean()
        assert self._log_probs is not None
        options = likeliest(self._tokenizer, self._log_probs)
        return _Moment(recalled, float(held.sum()), float(to_first), options)

    def _tables(self, retrieval: RetrievalHeads | None) -> dict[str, dict[str, tuple[float, ...]]]:
        layers = {f"layer {layer}": kept for layer, kept in self._last.items()}
        tables = {
            "tokens kept, by layer and key head": {
                name: tuple(kept.held[0].sum(dim=-1).tolist()) for name, kept in layers.items()
            },
            f"attention of the last token to the first {FIRST}, by layer and head": {
                name: tuple(kept.to_first[0].tolist()) for name, kept in layers.items()
            },
        }
        return tables if retrieval is None else tables | retrieval_table(retrieval)

    def _forget(self) -> None:
        """Let go of what the oldest steps recalled, so that all the rest stays small enough to be shown."""
        sizes = {place: sum(len(one.levels) for one in m.recalled) for place, m in self._moments.items()}
        over = sum(sizes.values()) - _MOST_WEIGHTS
        for place in sorted(sizes)[:-1]:
            if over <= 0:
                return
            over -= sizes[place]
            self._moments[place] = self._moments[place]._replace(recalled=())


@contextmanager
def noted(model: Any, keeping: Keeping) -> Iterator[None]:
    """While entered, note what every call of a model with a marked cache keeps."""

    def note(_: Any, args: tuple[Any, ...], given: dict[str, Any], out: Any) -> None:
        cache: Any = given.get("cache")
        if getattr(cache, "marked", False):
            ids = given["input_ids"] if "input_ids" in given else args[0]
            keeping.note(ids[0].tolist(), cache, out.logits[0, -1])

    hook = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def trace_keeping(
    model: Any,
    tokenizer: Any,
    cache: PolicyCache,
    tokens: Int[Tensor, " time"],
    prompt: int,
    title: str,
    retrieval: RetrievalHeads | None = None,
    on_token: Any = lambda done: None,
) -> Trace:
    """Return what a new marked cache keeps of `tokens`: the first `prompt` read at once, the rest one by one.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        cache: What it reads into.
        tokens: The text.
        prompt: How many of them are read at once, as a prompt is; the others come as if they were said.
        title: Of the trace.
        retrieval: Scores of the model's heads, to be shown with it.
        on_token: Called with how many tokens are read.

    Raises:
        ValueError: if `prompt` is not from 1 to the number of tokens.
    """
    if not 1 <= prompt <= len(tokens):
        raise ValueError(f"prompt={prompt}: of {len(tokens)} tokens at least 1 is read at once, at most all")
    keeping = Keeping(tokenizer)
    with noted(model, keeping):
        for begin, end in [(0, prompt), *((at, at + 1) for at in range(prompt, len(tokens)))]:
            model(input_ids=tokens[None, begin:end], cache=cache, logits_to_keep=1)
            on_token(end)
    return keeping.trace(title, retrieval)


def _first_row(kept: LayerKept) -> LayerKept:
    return LayerKept(*(of[:1].cpu() for of in kept))
