"""`scrubjay inspect`: what the attention of a language model does on a text, in numbers and in a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from scrubjay.experiments.reports.curves import save_figure
from scrubjay.experiments.runs.reading import read_text
from scrubjay.experiments.words.foreign import one_line
from scrubjay.memory.context.quotes import ControlTokens

if TYPE_CHECKING:
    from scrubjay.memory.heads.retrieval import RetrievalHeads

_LENGTH = 64
"""Tokens of a sequence by which Gu et al. measure the sink rate."""
_SEQUENCES = 16
_THRESHOLD = 0.3


def inspect_model(
    model_name: str, text_file: Path, layers: Sequence[int], tokens_shown: int, out: Path
) -> None:
    """Print the numbers and draw the picture, with maps of `layers`, or of telling ones where there are none.

    Raises ValueError for a model, text or layer that cannot be inspected.
    """
    # On first use, as transformers takes seconds to import.
    from scrubjay.memory.context.models import load_model
    from scrubjay.memory.heads.capture import attention_weights
    from scrubjay.memory.heads.sink_rate import sink_weights

    if tokens_shown < 2:
        raise ValueError(f"tokens={tokens_shown}: a map needs at least 2")
    text = read_text(text_file)
    model, tokenizer = load_model(model_name)
    tokens = _tokens(text, tokenizer, text_file)
    print(one_line(f"{model_name}: attention on {text_file}"), flush=True)
    sinks = sink_weights(model, _sequences(tokens))
    _print_sinks(sinks)
    scores = _retrieval(model, tokenizer, sinks)
    layers = layers or _telling(sinks, scores)
    maps = attention_weights(model, tokens[None, :tokens_shown], dict.fromkeys(layers))
    figure = _draw(sinks.mean(dim=0), scores, {layer: maps[layer][0] for layer in layers}, model_name)
    print(one_line(f"picture: {save_figure(figure, out)}"))


def _retrieval(model: Any, tokenizer: Any, sinks: Tensor) -> RetrievalHeads:
    """Print and return the model's retrieval heads; scores of zero if it cannot answer."""
    from scrubjay.memory.heads.retrieval import RetrievalHeads, retrieval_heads

    try:
        scores = retrieval_heads(model, tokenizer)
    except ValueError as error:
        print(f"no retrieval heads: {one_line(error)}")
        return RetrievalHeads(tuple(map(tuple, torch.zeros(sinks.shape[1:]).tolist())), 0)
    print(
        "retrieval heads (layer, head), and the share of copied tokens they attended to most; "
        f"{scores.probes} probes"
    )
    best = scores.ranked()[:10]
    print("  " + "  ".join(f"({layer}, {head}) {scores.scores[layer][head]:.2f}" for layer, head in best))
    return scores


def _tokens(text: str, tokenizer: Any, path: Path) -> Tensor:
    # A novel is longer than a model's context, of which a tokenizer warns: only its beginning is needed here.
    beginning = ControlTokens(tokenizer).plain(text[: 16 * _LENGTH * _SEQUENCES])
    tokens = tokenizer(beginning, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) < _LENGTH:
        raise ValueError(f"{path} has {len(tokens)} tokens; the sink rate needs at least {_LENGTH}")
    return torch.tensor(tokens)


def _sequences(tokens: Tensor) -> Tensor:
    """Return up to 16 sequences of 64 tokens from the text's beginning, `[sequences, 64]`."""
    count = min(_SEQUENCES, len(tokens) // _LENGTH)
    return tokens[: count * _LENGTH].view(count, _LENGTH)


def _telling(sinks: Tensor, scores: RetrievalHeads) -> list[int]:
    strongest = int(sinks.mean(dim=(0, 2)).argmax())
    return sorted({0, strongest, scores.best_layer(), sinks.shape[1] - 1})


def _print_sinks(sinks: Float[Tensor, "sequences layers heads"]) -> None:
    has = (sinks > _THRESHOLD).float()
    print(
        f"sink rate {has.mean():.2f}: the share of heads that give token 0 more than {_THRESHOLD} on "
        "average, "
        f"in {len(sinks)} sequences of {_LENGTH} tokens"
    )
    print("layer  sink rate  mean attention to token 0")
    for layer, (rate, mean) in enumerate(zip(has.mean(dim=(0, 2)), sinks.mean(dim=(0, 2)), strict=True)):
        print(f"{layer:>5}  {rate:>9.2f}  {mean:>5.2f} {'#' * round(40 * mean.item())}")


def _draw(
    sinks: Float[Tensor, "layers heads"],
    scores: RetrievalHeads,
    maps: dict[int, Float[Tensor, "heads rows keys"]],
    title: str,
) -> Figure:
    """Draw both tables of layers by heads, and each layer's map.

    A map is the mean of its heads, and its best retriever.
    """
    columns = 1 + len(maps)
    figure = Figure(figsize=(4.2 * columns, 8.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    figure.suptitle(f"attention of {title}")
    _table(axes[0][0], sinks.tolist(), "attention to token 0")
    _table(axes[1][0], scores.scores, "retrieval score")
    image = None
    for column, (layer, weights) in enumerate(maps.items(), start=1):
        row = scores.scores[layer]
        best = max(range(len(row)), key=row.__getitem__)
        _map(axes[0][column], weights.mean(dim=0), f"layer {layer}, mean of heads")
        image = _map(axes[1][column], weights[best], f"layer {layer}, head {best}, retrieval {row[best]:.2f}")
    if image is not None:
        figure.colorbar(image, ax=axes[:, -1], label="attention weight", shrink=0.6)
    return figure


def _table(axes: Axes, values: Sequence[Sequence[float]], title: str) -> None:
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    axes.figure.colorbar(image, ax=axes)


def _map(axes: Axes, weights: Float[Tensor, "rows keys"], title: str) -> Any:
    future = torch.ones_like(weights, dtype=torch.bool).triu(1)
    shown = weights.clamp(min=1e-4).masked_fill(future, float("nan"))
    image = axes.imshow(shown.float().numpy(), cmap="magma", norm=LogNorm(1e-4, 1), interpolation="nearest")
    axes.set_title(title)
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    return image
