"""A language model's reading of a text as a trace: a step a token, with the attention of some layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.looking.trace import Recall, Step, Trace
from scrubjay.memory.heads.capture import attention_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scrubjay.memory.heads.retrieval import RetrievalHeads
    from scrubjay.memory.heads.sink_rate import Attended

_LIKELIEST = 5


@torch.no_grad()
def trace_reading(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Int[Tensor, " time"],
    layers: Sequence[int],
    title: str,
    looks: Attended | None = None,
    retrieval: RetrievalHeads | None = None,
) -> Trace:
    """Return what a model attends to while it reads `tokens`, the mean over the heads of each of `layers`.

    A step's options are the likeliest next tokens. Tracks tell the loss of a token after those before it, in
    nats, and of each layer how much goes to token 0 and the entropy of it all, in nats.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        tokens: The text.
        layers: Whose attention is shown.
        title: Of the trace.
        looks: Where its heads look, told in a table.
        retrieval: How much they copy, likewise.

    Raises:
        ValueError: for layers that the model does not have.
    """
    weights = attention_weights(model, tokens[None], dict.fromkeys(layers))
    means = {layer: weights[layer][0].mean(dim=0) for layer in layers}
    log_probs = model(tokens[None]).logits[0].float().log_softmax(dim=-1)
    losses = -log_probs[:-1].gather(1, tokens[1:, None])[:, 0]
    words = [word_of(tokenizer, token) for token in tokens]
    steps = []
    for time, word in enumerate(words):
        chances = likeliest(tokenizer, log_probs[time])
        recalled = tuple(
            Recall.of(f"attention, layer {layer}", range(time + 1), mean[time, : time + 1])
            for layer, mean in means.items()
        )
        steps.append(Step(time, text=word, choice=next(iter(chances)), options=chances, recalled=recalled))
    tracks: dict[str, tuple[float | None, ...]] = {"loss of the token": (None, *losses.tolist())}
    for layer in layers:
        tracks[f"attention to token 0, layer {layer}"] = tuple(means[layer][:, 0].tolist())
        tracks[f"entropy, layer {layer}"] = tuple(_entropy(weights[layer][0]).tolist())
    return Trace(
        kind="language model",
        title=title,
        steps=tuple(steps),
        about={"tokens": str(len(words)), "mean loss": f"{float(losses.mean()):.2f}"},
        unit="tokens",
        tracks=tracks,
        tables=({} if looks is None else _sink_table(looks))
        | ({} if retrieval is None else retrieval_table(retrieval)),
    )


def retrieval_table(heads: RetrievalHeads) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return the scores of retrieval heads as a table of a trace."""
    rows = {f"layer {layer}": scores for layer, scores in heads.by_layer().items()}
    return {"retrieval score, by layer and head": rows}


def _sink_table(looks: Attended) -> dict[str, dict[str, tuple[float, ...]]]:
    shares = looks.sinks.mean(dim=0).tolist()
    rows = {f"layer {layer}": tuple(row) for layer, row in zip(looks.layers, shares, strict=True)}
    return {"attention to token 0, by layer and head": rows}


def word_of(tokenizer: Any, token: Tensor | int) -> str:
    """Return a token as it is read."""
    return tokenizer.decode([int(token)], clean_up_tokenization_spaces=False)


def likeliest(tokenizer: Any, log_probs: Float[Tensor, " vocabulary"]) -> dict[str, float]:
    """Return the likeliest tokens, and how likely they are."""
    best = log_probs.topk(min(_LIKELIEST, len(log_probs)))
    return {
        word_of(tokenizer, token): min(float(value.exp()), 1.0)
        for value, token in zip(best.values, best.indices, strict=True)
    }


def _entropy(weights: Float[Tensor, "heads rows keys"]) -> Float[Tensor, " rows"]:
    """Return the mean over heads."""
    return torch.special.entr(weights.double()).sum(dim=-1).mean(dim=0)
