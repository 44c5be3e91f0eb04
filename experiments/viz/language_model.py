"""Trace of a language model that reads a text: one step per token, with the attention of some layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.viz.trace import Recall, Step, Trace
from scrubjay.memory.context.capture import attention_weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

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
        tracks[f"entropy, layer {layer}"] = tuple(_entropy(weights[layer][0]).tolist())
    return Trace(
        kind="language model",
        title=title,
        steps=tuple(steps),
        about={"tokens": str(len(words)), "mean loss": f"{float(losses.mean()):.2f}"},
        unit="tokens",
        tracks=tracks,
        tables=({} if attention_stats is None else _attention_table(attention_stats))
        | ({} if retrieval is None else retrieval_table(retrieval)),
    )


def retrieval_table(heads: RetrievalHeads) -> dict[str, dict[str, tuple[float, ...]]]:
    """Return the scores of retrieval heads as a table of a trace."""
    rows = {f"layer {layer}": scores for layer, scores in heads.by_layer().items()}
    return {"retrieval score, by layer and head": rows}


def _attention_table(looks: AttentionStats) -> dict[str, dict[str, tuple[float, ...]]]:
    shares = looks.sinks.mean(dim=0).tolist()
    rows = {f"layer {layer}": tuple(row) for layer, row in zip(looks.layers, shares, strict=True)}
    return {"attention to token 0, by layer and head": rows}


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


def _entropy(weights: Float[Tensor, "heads rows keys"]) -> Float[Tensor, " rows"]:
    """Return the entropy of the attention of each query in nats, mean over heads."""
    return torch.special.entr(weights.double()).sum(dim=-1).mean(dim=0)
