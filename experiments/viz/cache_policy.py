"""Trace of the tokens that a context policy retains from a text; one step per token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.viz.language_model import decode_token, retrieval_table, top_tokens
from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory.context.layers.policy import FIRST, RetainedTokens

if TYPE_CHECKING:
    from scrubjay.memory.context import PolicyCache
    from scrubjay.memory.context.retrieval_heads import RetrievalHeads

KEPT, READ, FETCHED = "kept", "read", "fetched"
"""Names of recalls: the share of heads over all layers that keep, read or fetch a token."""
_MOST_WEIGHTS = 4_000_000
"""Maximum number of recall weights; the oldest are dropped, so that a page stays below some megabytes."""


class _Snapshot(NamedTuple):
    """Retained tokens after a call of the model, recorded at the last token of the call."""

    recalls: tuple[Recall, ...]
    retained_tokens: float
    """Number of retained tokens, mean over heads."""
    to_first: float
    """Share of the attention that falls on the first `FIRST` tokens, mean over heads."""
    options: dict[str, float]


class RetentionRecorder:
    """Recorder of the retained tokens of one text after each model call.

    The cache must have `track_tokens=True` and batch size 1.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._tokens: list[int | None] = []
        self._losses: dict[int, float] = {}
        self._snapshots: dict[int, _Snapshot] = {}
        self._last_retained: dict[int, RetainedTokens] = {}
        self._log_probs: Float[Tensor, " vocabulary"] | None = None
        self._about: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._tokens)

    def record(self, tokens: Sequence[int], cache: PolicyCache, logits: Float[Tensor, " vocabulary"]) -> None:
        """Record the retained tokens of a cache that has just read `tokens`; `logits` predict the next token.

        The sequence length of the cache shows if the cache was cropped or replaced. In this case the records
        of the removed tokens are dropped. Tokens that were read without a record appear as an ellipsis.
        """
        begin, before = cache.get_seq_length() - len(tokens), len(self._tokens)
        self._losses = {place: loss for place, loss in self._losses.items() if place < begin}
        self._snapshots = {place: snapshot for place, snapshot in self._snapshots.items() if place < begin}
        if begin == before and self._log_probs is not None:
            self._losses[begin] = -float(self._log_probs[tokens[0]])
        self._tokens = [*self._tokens[:begin], *[None] * (begin - before), *tokens]
        self._log_probs = logits.float().log_softmax(dim=-1).cpu()
        self._last_retained = {
            layer: _select_first_row(retained_tokens)
            for layer, retained_tokens in cache.get_retained_tokens().items()
        }
        self._about = {"policy": repr(cache.policy), "cache": f"{cache.nbytes() / 2**20:.1f} MiB"}
        self._snapshots[len(self._tokens) - 1] = self._take_snapshot()
        self._drop_oldest_weights()

    def trace(self, title: str, retrieval: RetrievalHeads | None = None) -> Trace:
        """Return the trace up to now.

        Each step recalls the tokens that the cache retained, the tokens that attention read, and the tokens
        that the policy selected by score. The tables of the trace hold the number of retained tokens and the
        attention to the first tokens, by layer and head.
        """
        words = ["…" if token is None else decode_token(self._tokenizer, token) for token in self._tokens]
        steps = []
        for place, word in enumerate(words):
            snapshot, follows = self._snapshots.get(place), "".join(words[place + 1 : place + 2])
            if snapshot is None:
                steps.append(Step(place, text=word, choice=follows))
            else:
                steps.append(Step(place, None, word, follows, snapshot.options, snapshot.recalls))
        snapshots = [self._snapshots.get(place) for place in range(len(words))]
        losses = tuple(self._losses.get(place) for place in range(len(words)))
        return Trace(
            kind="language model",
            title=title,
            steps=tuple(steps),
            about={"tokens": str(len(words)), **self._about},
            unit="tokens",
            rate=8.0,
            tracks={
                "retained tokens, mean over heads": tuple(
                    m.retained_tokens if m else None for m in snapshots
                ),
                f"attention to the first {FIRST} tokens": tuple(m.to_first if m else None for m in snapshots),
            }
            | ({"loss of the token": losses} if any(loss is not None for loss in losses) else {}),
            tables=self._build_tables(retrieval),
        )

    def _take_snapshot(self) -> _Snapshot:
        layers = list(self._last_retained.values())
        stored_share, read_share, fetched_share = (
            torch.cat([getattr(layer, name)[0] for layer in layers]).float().mean(dim=0)
            for name in ("stored_mask", "read_mask", "fetched_mask")
        )
        shares = {KEPT: stored_share}
        if not torch.equal(stored_share, read_share):
            shares[READ] = read_share
        if bool(fetched_share.any()):
            shares[FETCHED] = fetched_share
        recalls = tuple(Recall.from_weights(name, range(len(share)), share) for name, share in shares.items())
        to_first = torch.cat([layer.first_share[0] for layer in layers]).float().mean()
        assert self._log_probs is not None
        options = top_tokens(self._tokenizer, self._log_probs)
        return _Snapshot(recalls, float(stored_share.sum()), float(to_first), options)

    def _build_tables(self, retrieval: RetrievalHeads | None) -> dict[str, dict[str, tuple[float, ...]]]:
        layers = {f"layer {layer}": retained_tokens for layer, retained_tokens in self._last_retained.items()}
        tables = {
            "retained tokens, by layer and key head": {
                name: tuple(retained_tokens.stored_mask[0].sum(dim=-1).tolist())
                for name, retained_tokens in layers.items()
            },
            f"attention of the last token to the first {FIRST}, by layer and head": {
                name: tuple(retained_tokens.first_share[0].tolist())
                for name, retained_tokens in layers.items()
            },
        }
        return tables if retrieval is None else tables | retrieval_table(retrieval)

    def _drop_oldest_weights(self) -> None:
        """Drop the recall weights of the oldest steps until at most `_MOST_WEIGHTS` weights remain.

        The last step keeps its weights.
        """
        sizes = {place: sum(len(one.levels) for one in m.recalls) for place, m in self._snapshots.items()}
        over = sum(sizes.values()) - _MOST_WEIGHTS
        for place in sorted(sizes)[:-1]:
            if over <= 0:
                return
            over -= sizes[place]
            self._snapshots[place] = self._snapshots[place]._replace(recalls=())


@contextmanager
def record_calls(model: Any, recorder: RetentionRecorder) -> Iterator[None]:
    """Record every model call inside a with block if the cache has `track_tokens=True`."""

    def record(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> None:
        cache: Any = kwargs.get("cache")
        if getattr(cache, "track_tokens", False):
            ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
            recorder.record(ids[0].tolist(), cache, out.logits[0, -1])

    hook = model.register_forward_hook(record, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


@torch.no_grad()
def trace_retention(
    model: Any,
    tokenizer: Any,
    cache: PolicyCache,
    tokens: Int[Tensor, " time"],
    prompt: int,
    title: str,
    retrieval: RetrievalHeads | None = None,
    on_token: Any = lambda num_tokens: None,
) -> Trace:
    """Return the trace of the tokens that a new cache retains.

    The model reads the first `prompt` tokens in one call, and the rest one by one.

    Args:
        model: Causal language model of transformers.
        tokenizer: Tokenizer of the model.
        cache: Empty cache with `track_tokens=True`.
        tokens: Token ids of the text.
        prompt: Number of tokens in the first call; the others are read as if they were generated.
        title: Title of the trace.
        retrieval: Retrieval scores of the heads, shown in a table.
        on_token: Callback with the number of tokens read.

    Raises:
        ValueError: if `prompt` is not from 1 to the number of tokens.
    """
    if not 1 <= prompt <= len(tokens):
        raise ValueError(f"prompt={prompt}: must be from 1 to the number of tokens, {len(tokens)}")
    recorder = RetentionRecorder(tokenizer)
    with record_calls(model, recorder):
        for begin, end in [(0, prompt), *((at, at + 1) for at in range(prompt, len(tokens)))]:
            model(input_ids=tokens[None, begin:end], cache=cache, logits_to_keep=1)
            on_token(end)
    return recorder.trace(title, retrieval)


def _select_first_row(retained_tokens: RetainedTokens) -> RetainedTokens:
    return RetainedTokens(*(field[:1].cpu() for field in retained_tokens))
