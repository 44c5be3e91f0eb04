"""`scrubjay inspect`: attention statistics of a language model on a text, as numbers and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from torch import Tensor

from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.files import read_text, write_atomically
from scrubjay.experiments.viz.curves import save_figure
from scrubjay.memory.context.quotes import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scrubjay.memory.context.attention_sinks import AttentionStats
    from scrubjay.memory.context.retrieval_heads import RetrievalHeads

_LENGTH = 64
"""Sequence length in tokens at which Gu et al. measure the sink rate."""
_SEQUENCES = 16
_THRESHOLD = 0.3


class InspectionResult(NamedTuple):
    """Result of `inspect_model`."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: Int[Tensor, " time"]
    """Token ids shown in the attention maps."""
    layers: list[int]
    """Layers with attention maps."""
    stats: AttentionStats
    """Attention statistics of the heads."""
    retrieval: RetrievalHeads
    """Retrieval scores of the heads."""


def inspect_model(
    model_name: str, text_file: Path, layers: Sequence[int], tokens_shown: int, out: Path
) -> InspectionResult:
    """Print attention statistics of a model on a text, and draw a figure with attention maps of `layers`.

    If `layers` is empty, the maps show the first layer, the last layer, the layer with the strongest sink,
    and the layer with the best retrieval head. Raises ValueError for an invalid model, text or layer.
    """
    # Imported on first use, since transformers takes seconds to import.
    from scrubjay.memory.context.attention_sinks import measure_attention
    from scrubjay.memory.context.capture import attention_weights
    from scrubjay.memory.context.models import load_model
    from scrubjay.memory.context.quotes import prepend_bos

    if tokens_shown < 2:
        raise ValueError(f"tokens={tokens_shown}: must be at least 2")
    text = read_text(text_file)
    model, tokenizer = load_model(model_name)
    tokens, opening = _tokens(text, tokenizer, text_file), prepend_bos(tokenizer, [])
    print(one_line(f"{model_name}: attention on {text_file}"), flush=True)
    stats = measure_attention(model, _sequences(tokens, opening))
    _print_sinks(stats)
    scores = _retrieval(model, tokenizer, stats)
    strongest = stats.layers[int(stats.sinks.mean(dim=(0, 2)).argmax())]
    map_layers = layers or sorted({stats.layers[0], strongest, scores.best_layer(), stats.layers[-1]})
    visible = torch.tensor([[*opening, *tokens.tolist()][:tokens_shown]])
    maps = attention_weights(model, visible, dict.fromkeys(map_layers))
    figure = _draw(stats, scores, {layer: maps[layer][0] for layer in maps}, model_name)
    print(one_line(f"picture: {save_figure(figure, out)}"))
    numbers = out.with_suffix(".json")
    write_atomically(numbers, json.dumps(_numbers(model_name, text_file, stats, scores), indent=1) + "\n")
    print(one_line(f"numbers: {numbers}"))
    return InspectionResult(model, tokenizer, visible[0], list(map_layers), stats, scores)


def _numbers(
    model_name: str, text_file: Path, stats: AttentionStats, scores: RetrievalHeads
) -> dict[str, Any]:
    has = (stats.sinks > _THRESHOLD).float()
    means = {"sink_rate": has, "attention_to_token_0": stats.sinks, "entropy": stats.entropy}
    return {
        "model": model_name,
        "text": str(text_file),
        "sequences": len(stats.sinks),
        "tokens_of_a_sequence": _LENGTH,
        "threshold": _THRESHOLD,
        "sink_rate": has.mean().item(),
        "layers": [
            {"layer": layer, **{name: of[:, row].mean(dim=0).tolist() for name, of in means.items()}}
            for row, layer in enumerate(stats.layers)
        ],
        "retrieval": {"probes": scores.probes, "scores": scores.scores},
    }


def _retrieval(model: Any, tokenizer: Any, stats: AttentionStats) -> RetrievalHeads:
    """Print and return the retrieval heads of the model; scores are zero if they cannot be measured."""
    from scrubjay.memory.context.retrieval_heads import RetrievalHeads, retrieval_heads

    try:
        scores = retrieval_heads(model, tokenizer)
    except ValueError as error:
        print(f"retrieval heads not measured: {one_line(error)}")
        nothing = torch.zeros(stats.sinks.shape[1:]).tolist()
        return RetrievalHeads(tuple(map(tuple, nothing)), 0, tuple(stats.layers))
    print(
        "retrieval heads (layer, head) with the share of copied tokens that got their largest attention; "
        f"{scores.probes} probes"
    )
    best = scores.rank()[:10]
    rows = scores.by_layer()
    print("  " + "  ".join(f"({layer}, {head}) {rows[layer][head]:.2f}" for layer, head in best))
    return scores


def _tokens(text: str, tokenizer: Any, path: Path) -> Tensor:
    # Only the beginning of the text is needed; tokenizers warn about texts longer than the context.
    beginning = ControlTokens(tokenizer).escape(text[: 16 * _LENGTH * _SEQUENCES])
    tokens = tokenizer(beginning, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) < _LENGTH:
        raise ValueError(f"{path} has {len(tokens)} tokens; the sink rate needs at least {_LENGTH}")
    return torch.tensor(tokens)


def _sequences(tokens: Int[Tensor, " time"], opening: list[int]) -> Int[Tensor, "sequences length"]:
    """Return up to 16 sequences of 64 tokens: `opening`, followed by the next tokens of the text."""
    own = _LENGTH - len(opening)
    count = min(_SEQUENCES, len(tokens) // own)
    before = torch.tensor(opening, dtype=tokens.dtype).expand(count, -1)
    return torch.cat([before, tokens[: count * own].view(count, own)], dim=1)


def _print_sinks(stats: AttentionStats) -> None:
    sinks, entropy = stats.sinks, stats.entropy.mean(dim=(0, 2))
    has = (sinks > _THRESHOLD).float()
    print(
        f"sink rate {has.mean():.2f}: share of heads whose mean attention to token 0 is above {_THRESHOLD}, "
        f"in {len(sinks)} sequences of {_LENGTH} tokens"
    )
    print("layer  sink rate  entropy  mean attention to token 0")
    rates, means = has.mean(dim=(0, 2)).tolist(), sinks.mean(dim=(0, 2)).tolist()
    for layer, rate, nats, mean in zip(stats.layers, rates, entropy.tolist(), means, strict=True):
        print(f"{layer:>5}  {rate:>9.2f}  {nats:>7.2f}  {mean:>5.2f} {'#' * round(40 * mean)}")


def _draw(
    stats: AttentionStats,
    scores: RetrievalHeads,
    maps: dict[int, Float[Tensor, "heads rows keys"]],
    title: str,
) -> Figure:
    """Draw heat maps with a row per layer and a column per head, curves over layers, and attention maps.

    A layer has two attention maps: the mean over its heads, and its head with the best retrieval score.
    """
    columns = 2 + len(maps)
    figure = Figure(figsize=(4.2 * columns, 8.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    figure.suptitle(f"attention of {title}")
    _table(axes[0][0], stats.sinks.mean(dim=0).tolist(), "attention to token 0", stats.layers)
    _table(axes[1][0], scores.scores, "retrieval score", stats.layers)
    _by_layer(axes[0][1], stats.sinks.mean(dim=0), stats.layers, "attention to token 0")
    _by_layer(axes[1][1], stats.entropy.mean(dim=0), stats.layers, "entropy, nats")
    axes[0][1].set_ylim(0, 1)
    axes[1][1].set_ylim(bottom=0)
    image = None
    for column, (layer, weights) in enumerate(maps.items(), start=2):
        row = scores.by_layer()[layer]
        best = max(range(len(row)), key=row.__getitem__)
        _map(axes[0][column], weights.mean(dim=0), f"layer {layer}, mean over heads")
        image = _map(axes[1][column], weights[best], f"layer {layer}, head {best}, retrieval {row[best]:.2f}")
    if image is not None:
        figure.colorbar(image, ax=axes[:, -1], label="attention weight", shrink=0.6)
    return figure


def _by_layer(axes: Axes, values: Float[Tensor, "layers heads"], layers: list[int], name: str) -> None:
    """Plot the mean and the range of `values` over the heads of each layer."""
    low, high = values.min(dim=1).values.tolist(), values.max(dim=1).values.tolist()
    axes.fill_between(layers, low, high, alpha=0.25, label="range over heads")
    axes.plot(layers, values.mean(dim=1).tolist(), marker=".", label="mean over heads")
    axes.set_title(name)
    axes.set_xlabel("layer")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, frameon=False)


def _table(axes: Axes, values: Sequence[Sequence[float]], title: str, layers: list[int]) -> None:
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    visible = range(0, len(layers), -(-len(layers) // 16))
    axes.set_yticks([*visible], [str(layers[row]) for row in visible])
    axes.figure.colorbar(image, ax=axes)


def _map(axes: Axes, weights: Float[Tensor, "rows keys"], title: str) -> Any:
    future = torch.ones_like(weights, dtype=torch.bool).triu(1)
    visible = weights.clamp(min=1e-4).masked_fill(future, float("nan"))
    # The first column (the attention sink) is drawn wider, since one key would be too narrow to see.
    keys = visible.shape[1]
    wide = max(keys // 12, 1)
    visible = torch.cat([visible[:, :1].expand(-1, wide), visible[:, 1:]], dim=1)
    image = axes.imshow(
        visible.float().numpy(), cmap="magma", norm=LogNorm(1e-4, 1), interpolation="nearest", aspect="auto"
    )
    axes.axvline(wide - 0.5, color="white", linewidth=1)
    every = [*range(max(keys // 4, 1), keys, max(keys // 4, 1))]
    axes.set_xticks([(wide - 1) / 2, *(key + wide - 1 for key in every)], ["0", *map(str, every)])
    axes.set_title(title)
    axes.set_xlabel("key (the first one is drawn wider)")
    axes.set_ylabel("query")
    return image
