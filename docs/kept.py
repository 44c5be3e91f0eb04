"""What a context policy keeps of a text: a picture of each, made when the site is built."""

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

TOKENS, PROMPT, BUDGET = 256, 64, 48
_SHADES = {"kept no more, or not yet there": "#ffffff", "kept": "#b9cfe4", "kept and read": "#1f5a96"}
TOLD = (
    f"A small random model reads a prompt of {PROMPT} tokens and then one by one up to {TOKENS}, with a "
    f"budget of {BUDGET}: what its first head has of the text at each of them."
)


@torch.no_grad()
def kept(name: str) -> NDArray[np.int64]:
    """Return for each token from the prompt's last on 2 for tokens it reads, 1 for those kept, else 0."""
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
    policy = context.make(name, **({} if name == "full" else {"budget": BUDGET}))
    cache = context.PolicyCache(policy, model, marked=True)
    text = torch.randint(512, (1, TOKENS))
    rows = []
    for end in range(PROMPT, TOKENS + 1):
        model(text[:, 0 if end == PROMPT else end - 1 : end], cache=cache)
        layer = cache.kept()[0]
        marks = (layer.held.long() * (1 + layer.read.long()))[0, 0]
        rows.append(np.pad(marks.numpy(), (0, TOKENS - end)))
    return np.stack(rows)


def draw_kept(name: str, out: Path) -> None:
    """Draw what a policy keeps and reads of a text into a file."""
    figure = Figure(figsize=(6.5, 3.6), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.imshow(
        kept(name), cmap=ListedColormap(list(_SHADES.values())), vmin=0, vmax=2, aspect="auto",
        extent=(0, TOKENS, TOKENS, PROMPT - 1), interpolation="nearest",
    )  # fmt: skip
    axes.set_xlabel("token of the text")
    axes.set_ylabel("tokens read so far")
    figure.legend(
        handles=[Patch(facecolor=shade, edgecolor="grey", label=told) for told, shade in _SHADES.items()],
        loc="outside upper center", ncols=3, frameon=False, fontsize=8,
    )  # fmt: skip
    figure.savefig(out)
