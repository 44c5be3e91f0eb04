"""`scrubjay inspect`: what the attention of a language model does on a text, in numbers and in a picture."""

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

from scrubjay.experiments.reports.curves import save_figure
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.reading import read_text
from scrubjay.experiments.words.foreign import one_line
from scrubjay.memory.context.quotes import ControlTokens

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from scrubjay.memory.heads.retrieval import RetrievalHeads
    from scrubjay.memory.heads.sink_rate import Attended

_LENGTH = 64
"""Tokens of a sequence by which Gu et al. measure the sink rate."""
_SEQUENCES = 16
_THRESHOLD = 0.3


class Inspected(NamedTuple):
    """What was looked at."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    tokens: Int[Tensor, " time"]
    """Those that maps show."""
    layers: list[int]
    """Those that there are maps of."""
    looks: Attended
    """Where its heads look."""
    retrieval: RetrievalHeads
    """What they copy."""


def inspect_model(
    model_name: str, text_file: Path, layers: Sequence[int], tokens_shown: int, out: Path
) -> Inspected:
    """Print the numbers and draw the picture, with maps of `layers`, or of telling ones where there are none.

    Raises ValueError for a model, text or layer that cannot be inspected.
    """
    # On first use, as transformers takes seconds to import.
    from scrubjay.memory.context.models import load_model
    from scrubjay.memory.heads.capture import attention_weights
    from scrubjay.memory.heads.prompts import opened
    from scrubjay.memory.heads.sink_rate import attended

    if tokens_shown < 2:
        raise ValueError(f"tokens={tokens_shown}: a map needs at least 2")
    text = read_text(text_file)
    model, tokenizer = load_model(model_name)
    tokens, opening = _tokens(text, tokenizer, text_file), opened(tokenizer, [])
    print(one_line(f"{model_name}: attention on {text_file}"), flush=True)
    looks = attended(model, _sequences(tokens, opening))
    _print_sinks(looks)
    scores = _retrieval(model, tokenizer, looks)
    chosen = layers or _telling(looks, scores)
    shown = torch.tensor([[*opening, *tokens.tolist()][:tokens_shown]])
    maps = attention_weights(model, shown, dict.fromkeys(chosen))
    figure = _draw(looks, scores, {layer: maps[layer][0] for layer in maps}, model_name)
    print(one_line(f"picture: {save_figure(figure, out)}"))
    numbers = out.with_suffix(".json")
    write_atomically(numbers, json.dumps(_numbers(model_name, text_file, looks, scores), indent=1) + "\n")
    print(one_line(f"numbers: {numbers}"))
    return Inspected(model, tokenizer, shown[0], list(chosen), looks, scores)


def _numbers(model_name: str, text_file: Path, looks: Attended, scores: RetrievalHeads) -> dict[str, Any]:
    has = (looks.sinks > _THRESHOLD).float()
    means = {"sink_rate": has, "attention_to_token_0": looks.sinks, "entropy": looks.entropy}
    return {
        "model": model_name,
        "text": str(text_file),
        "sequences": len(looks.sinks),
        "tokens_of_a_sequence": _LENGTH,
        "threshold": _THRESHOLD,
        "sink_rate": has.mean().item(),
        "layers": [
            {"layer": layer, **{name: of[:, row].mean(dim=0).tolist() for name, of in means.items()}}
            for row, layer in enumerate(looks.layers)
        ],
        "retrieval": {"probes": scores.probes, "scores": scores.scores},
    }


def _retrieval(model: Any, tokenizer: Any, looks: Attended) -> RetrievalHeads:
    """Print and return the model's retrieval heads; scores of zero if it cannot answer."""
    from scrubjay.memory.heads.retrieval import RetrievalHeads, retrieval_heads

    try:
        scores = retrieval_heads(model, tokenizer)
    except ValueError as error:
        print(f"no retrieval heads: {one_line(error)}")
        nothing = torch.zeros(looks.sinks.shape[1:]).tolist()
        return RetrievalHeads(tuple(map(tuple, nothing)), 0, tuple(looks.layers))
    print(
        "retrieval heads (layer, head), and the share of copied tokens they attended to most; "
        f"{scores.probes} probes"
    )
    best = scores.ranked()[:10]
    rows = scores.by_layer()
    print("  " + "  ".join(f"({layer}, {head}) {rows[layer][head]:.2f}" for layer, head in best))
    return scores


def _tokens(text: str, tokenizer: Any, path: Path) -> Tensor:
    # A novel is longer than a model's context, of which a tokenizer warns: only its beginning is needed here.
    beginning = ControlTokens(tokenizer).plain(text[: 16 * _LENGTH * _SEQUENCES])
    tokens = tokenizer(beginning, add_special_tokens=False, verbose=False).input_ids
    if len(tokens) < _LENGTH:
        raise ValueError(f"{path} has {len(tokens)} tokens; the sink rate needs at least {_LENGTH}")
    return torch.tensor(tokens)


def _sequences(tokens: Int[Tensor, " time"], opening: list[int]) -> Int[Tensor, "sequences length"]:
    """Return up to 16 sequences of 64 tokens from the text's beginning, each opened as a text is."""
    own = _LENGTH - len(opening)
    count = min(_SEQUENCES, len(tokens) // own)
    before = torch.tensor(opening, dtype=tokens.dtype).expand(count, -1)
    return torch.cat([before, tokens[: count * own].view(count, own)], dim=1)


def _telling(looks: Attended, scores: RetrievalHeads) -> list[int]:
    strongest = looks.layers[int(looks.sinks.mean(dim=(0, 2)).argmax())]
    return sorted({looks.layers[0], strongest, scores.best_layer(), looks.layers[-1]})


def _print_sinks(looks: Attended) -> None:
    sinks, entropy = looks.sinks, looks.entropy.mean(dim=(0, 2))
    has = (sinks > _THRESHOLD).float()
    print(
        f"sink rate {has.mean():.2f}: the share of heads that give token 0 more than {_THRESHOLD} on "
        "average, "
        f"in {len(sinks)} sequences of {_LENGTH} tokens"
    )
    print("layer  sink rate  entropy  mean attention to token 0")
    rates, means = has.mean(dim=(0, 2)).tolist(), sinks.mean(dim=(0, 2)).tolist()
    for layer, rate, nats, mean in zip(looks.layers, rates, entropy.tolist(), means, strict=True):
        print(f"{layer:>5}  {rate:>9.2f}  {nats:>7.2f}  {mean:>5.2f} {'#' * round(40 * mean)}")


def _draw(
    looks: Attended,
    scores: RetrievalHeads,
    maps: dict[int, Float[Tensor, "heads rows keys"]],
    title: str,
) -> Figure:
    """Draw both tables of layers by heads, both by layer, and each layer's map.

    A map is the mean of its heads, and its best retriever.
    """
    columns = 2 + len(maps)
    figure = Figure(figsize=(4.2 * columns, 8.4), dpi=110, layout="constrained")
    axes = figure.subplots(2, columns, squeeze=False)
    figure.suptitle(f"attention of {title}")
    _table(axes[0][0], looks.sinks.mean(dim=0).tolist(), "attention to token 0", looks.layers)
    _table(axes[1][0], scores.scores, "retrieval score", looks.layers)
    _by_layer(axes[0][1], looks.sinks.mean(dim=0), looks.layers, "attention to token 0")
    _by_layer(axes[1][1], looks.entropy.mean(dim=0), looks.layers, "entropy, nats")
    axes[0][1].set_ylim(0, 1)
    axes[1][1].set_ylim(bottom=0)
    image = None
    for column, (layer, weights) in enumerate(maps.items(), start=2):
        row = scores.by_layer()[layer]
        best = max(range(len(row)), key=row.__getitem__)
        _map(axes[0][column], weights.mean(dim=0), f"layer {layer}, mean of heads")
        image = _map(axes[1][column], weights[best], f"layer {layer}, head {best}, retrieval {row[best]:.2f}")
    if image is not None:
        figure.colorbar(image, ax=axes[:, -1], label="attention weight", shrink=0.6)
    return figure


def _by_layer(axes: Axes, values: Float[Tensor, "layers heads"], layers: list[int], name: str) -> None:
    """Draw the mean of a layer's heads, and between which they lie."""
    low, high = values.min(dim=1).values.tolist(), values.max(dim=1).values.tolist()
    axes.fill_between(layers, low, high, alpha=0.25, label="heads")
    axes.plot(layers, values.mean(dim=1).tolist(), marker=".", label="their mean")
    axes.set_title(name)
    axes.set_xlabel("layer")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncol=2, frameon=False)


def _table(axes: Axes, values: Sequence[Sequence[float]], title: str, layers: list[int]) -> None:
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axes.set_title(title)
    axes.set_xlabel("head")
    axes.set_ylabel("layer")
    shown = range(0, len(layers), -(-len(layers) // 16))
    axes.set_yticks([*shown], [str(layers[row]) for row in shown])
    axes.figure.colorbar(image, ax=axes)


def _map(axes: Axes, weights: Float[Tensor, "rows keys"], title: str) -> Any:
    future = torch.ones_like(weights, dtype=torch.bool).triu(1)
    shown = weights.clamp(min=1e-4).masked_fill(future, float("nan"))
    # The sink's is the column to look for, and one key wide it would not be seen.
    keys = shown.shape[1]
    wide = max(keys // 12, 1)
    shown = torch.cat([shown[:, :1].expand(-1, wide), shown[:, 1:]], dim=1)
    image = axes.imshow(
        shown.float().numpy(), cmap="magma", norm=LogNorm(1e-4, 1), interpolation="nearest", aspect="auto"
    )
    axes.axvline(wide - 0.5, color="white", linewidth=1)
    every = [*range(max(keys // 4, 1), keys, max(keys // 4, 1))]
    axes.set_xticks([(wide - 1) / 2, *(key + wide - 1 for key in every)], ["0", *map(str, every)])
    axes.set_title(title)
    axes.set_xlabel("key, the first one drawn wide")
    axes.set_ylabel("query")
    return image
