"""Plot of the tokens that a context policy retains and reads, drawn when the site is built."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray
from transformers import LlamaConfig, LlamaForCausalLM

from scrubjay.memory import context
from scrubjay.memory.context.identity import architecture
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights

TOKENS, PROMPT, BUDGET = 256, 64, 48
_SHADES = {"dropped or not read yet": "#ffffff", "retained": "#b9cfe4", "retained and read": "#1f5a96"}
_FIELDS = {
    "full": {},
    # A prompt of 64 tokens is read by dense attention, and its cache is that of `full`.
    "flexprefill": {},
    # Their chunks of 256 and 16 tokens do not fit the budget.
    **{name: {"budget": BUDGET, "chunk_size": 8} for name in ("longheads", "quest")},
    # The first key head is full.
    "task_kv": {"budget": BUDGET, "num_sinks": 4, "recent": 12, "window": 12},
    # The first key head streams; the second one keeps all tokens.
    "duo": {"num_sinks": 4, "recent": BUDGET - 4, "scores": ((0.0, 0.0, 1.0, 1.0),)},
    # Random maps give half of the tokens a score above the threshold.
    "kvzap": {"budget": BUDGET, "window": 16, "threshold": 0.0},
}
DESCRIPTION = (
    f"A small random model reads a prompt of {PROMPT} tokens, then single tokens up to {TOKENS}. The budget "
    f"is {BUDGET}. Chunks have at most 8 tokens. The plot shows the tokens of its first head at each step."
)


@torch.no_grad()
def mark_tokens(name: str) -> NDArray[np.int64]:
    """Return a matrix of steps by tokens: 2 for tokens that are read, 1 for tokens only retained, else 0."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=512,
    )
    model = LlamaForCausalLM(config).eval()
    fields = _FIELDS.get(name, {"budget": BUDGET})
    if name == "kvzap":
        fields = {
            **fields,
            "weights": KVzapWeights({0: torch.randn(2, 65)}, architecture(model), ()).register(),
        }
    policy = context.make(name, **fields)
    cache = context.PolicyCache(policy, model, track_tokens=True)
    text = torch.randint(512, (1, TOKENS))
    rows = []
    for end in range(PROMPT, TOKENS + 1):
        model(text[:, 0 if end == PROMPT else end - 1 : end], cache=cache)
        layer = cache.get_retained_tokens()[0]
        marks = (layer.stored_mask.long() * (1 + layer.read_mask.long()))[0, 0]
        rows.append(np.pad(marks.numpy(), (0, TOKENS - end)))
    return np.stack(rows)


def draw_policy(name: str, out: Path) -> None:
    """Draw the retained and read tokens of a policy into a file."""
    figure = Figure(figsize=(6.5, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        mark_tokens(name), cmap=ListedColormap(list(_SHADES.values())), vmin=0, vmax=2, aspect="auto",
        extent=(0, TOKENS, TOKENS, PROMPT - 1), interpolation="nearest",
    )  # fmt: skip
    axes.set_xlabel("token of the text")
    axes.set_ylabel("tokens read so far")
    figure.legend(
        handles=[Patch(facecolor=shade, edgecolor="grey", label=label) for label, shade in _SHADES.items()],
        loc="outside upper center", ncols=3, frameon=False, fontsize=8,
    )  # fmt: skip
    figure.savefig(out)
