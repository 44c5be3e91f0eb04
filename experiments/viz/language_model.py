"""Traces of a language model that reads a text.

`trace_reading` shows the attention of some layers, with one step per token. `trace_retention` shows the
tokens that a context policy retains. `InfiniRetriRecorder` shows the sentences that InfiniRetri retains.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory.context.capture import attention_weights
from scrubjay.memory.context.infiniretri import InfiniRetri, ReadingResult, SentenceSelection
from scrubjay.memory.context.layers.policy import FIRST, RetainedTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scrubjay.memory.context import PolicyCache
    from scrubjay.memory.context.attention_sinks import AttentionStats
    from scrubjay.memory.context.retrieval_heads import RetrievalHeads

_LIKELIEST = 5


@torch.no_grad()
def trace_reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Int[Tensor, " time"],
    layers: Sequence[int],
    title: str,
    attention_stats: AttentionStats | None = None,
    retrieval: RetrievalHeads | None = None,
) -> Trace:
    """Return a trace of the attention over `tokens`: the mean over heads for each layer in `layers`.

    The options of a step are the most likely next tokens. Tracks are the loss of each token in nats, and per
    layer the attention to token 0 and the entropy of the attention in nats.

    Args:
        model: Causal language model of transformers.
        tokenizer: Tokenizer of the model.
        tokens: Token ids of the text.
        layers: Layers whose attention is shown.
        title: Title of the trace.
        looks: Attention statistics of the heads, shown in a table.
        retrieval: Retrieval scores of the heads, shown in a table.

    Raises:
        ValueError: if the model lacks one of `layers`.
    """
    weights = attention_weights(model, tokens[None], dict.fromkeys(layers))
    means = {layer: weights[layer][0].mean(dim=0) for layer in layers}
    log_probs = model(tokens[None]).logits[0].float().log_softmax(dim=-1)
    losses = -log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
    words = [decode_token(tokenizer, token) for token in tokens]
    steps = []
    for time, word in enumerate(words):
        chances = top_tokens(tokenizer, log_probs[time])
        recalls = tuple(
            Recall.from_weights(f"attention, layer {layer}", range(time + 1), mean[time, : time + 1])
            for layer, mean in means.items()
        )
        steps.append(Step(time, text=word, choice=next(iter(chances)), options=chances, recalls=recalls))
    tracks: dict[str, tuple[float | None, ...]] = {"loss of the token": (None, *losses.tolist())}
    for layer in layers:
        tracks[f"attention to token 0, layer {layer}"] = tuple(means[layer][:, 0].tolist())
        entropy = torch.special.entr(weights[layer][0].double()).sum(dim=-1).mean(dim=0)
        tracks[f"entropy, layer {layer}"] = tuple(entropy.tolist())
    tables: dict[str, dict[str, tuple[float, ...]]] = {}
    if attention_stats is not None:
        shares = zip(attention_stats.layers, attention_stats.sinks.mean(dim=0).tolist(), strict=True)
        rows = {f"layer {layer}": tuple(row) for layer, row in shares}
        tables["attention to token 0, by layer and head"] = rows
    return Trace(
        kind="language model",
        title=title,
        steps=tuple(steps),
        about={"tokens": str(len(words)), "mean loss": f"{float(losses.mean()):.2f}"},
        unit="tokens",
        tracks=tracks,
        tables=tables if retrieval is None else tables | retrieval_table(retrieval),
    )


def retrieval_table(heads: RetrievalHeads) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return the scores of retrieval heads as a table of a trace."""
    rows = {f"layer {layer}": scores for layer, scores in heads.by_layer().items()}
    return {"retrieval score, by layer and head": rows}


def decode_token(tokenizer: Any, token: Tensor | int) -> str:
    """Return the text of a token id."""
    return tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)


def top_tokens(tokenizer: Any, log_probs: Float[Tensor, " vocabulary"]) -> dict[str, float]:
    """Return the most likely tokens with their probabilities."""
    best = log_probs.topk(min(_LIKELIEST, len(log_probs)))
    return {
        decode_token(tokenizer, token): min(float(value.exp()), 1.0)
        for value, token in zip(best.values, best.indices, strict=True)
    }


KEPT, READ, FETCHED = "kept", "read", "fetched"
"""Names of recalls: the share of heads over all layers that keep, read or fetch a token."""
_MOST_WEIGHTS = 4_000_000
"""Maximum number of recall weights; the oldest are dropped, so that a page stays below some megabytes."""


class _Snapshot(NamedTuple):
    """Retained tokens after a call of the model, recorded at the last token of the call."""

    recalls: tuple[Recall, ...]
    retained_tokens: float | None
    """Number of retained tokens, mean over heads."""
    to_first: float | None
    """Share of the attention that falls on the first `FIRST` tokens, mean over heads."""
    options: dict[str, float]


_NO_SNAPSHOT = _Snapshot((), None, None, {})


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
            layer: RetainedTokens(*(field[:1].cpu() for field in retained_tokens))
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
        snapshots = [self._snapshots.get(place, _NO_SNAPSHOT) for place in range(len(words))]
        steps = [
            Step(place, None, word, follows, snapshot.options, snapshot.recalls)
            for place, (word, follows, snapshot) in enumerate(
                zip(words, [*words[1:], ""], snapshots, strict=True)
            )
        ]
        layers = {f"layer {layer}": own for layer, own in self._last_retained.items()}
        tables = {
            "retained tokens, by layer and key head": {
                name: tuple(own.stored_mask[0].sum(dim=-1).tolist()) for name, own in layers.items()
            },
            f"attention of the last token to the first {FIRST}, by layer and head": {
                name: tuple(own.first_share[0].tolist()) for name, own in layers.items()
            },
        }
        losses = tuple(self._losses.get(place) for place in range(len(words)))
        return Trace(
            kind="language model",
            title=title,
            steps=tuple(steps),
            about={"tokens": str(len(words)), **self._about},
            unit="tokens",
            rate=8.0,
            tracks={
                "retained tokens, mean over heads": tuple(m.retained_tokens for m in snapshots),
                f"attention to the first {FIRST} tokens": tuple(m.to_first for m in snapshots),
            }
            | ({"loss of the token": losses} if any(loss is not None for loss in losses) else {}),
            tables=tables if retrieval is None else tables | retrieval_table(retrieval),
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
