"""How far back a memory hears: a picture of each, made when the site is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scrubjay import memory
from scrubjay.experiments.reports.colours import colours

WIDTH, STEPS, ROWS = 64, 640, 8
LEAST = 1e-6
"""Of the most that any step moves the output: what is below is not drawn."""
TOLD = (
    f"How much each of the last {STEPS} steps moves the output, before any training: the gradient's norm as "
    f"a part of the largest, mean and range of {ROWS} rows of noise."
)


def heard(name: str) -> NDArray[np.float32]:
    """Return how much each input moves an untrained memory's last output, (rows, steps), the last first."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": WIDTH}
    if any(field.name == "stop_memory_gradient" for field in dataclasses.fields(memory.make_config(name))):
        sizes["stop_memory_gradient"] = False  # or what is stored would seem unheard
    built = memory.make(name, **sizes)
    x = torch.randn(ROWS, STEPS, WIDTH, requires_grad=True)
    start = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    y, _ = built(x, built.initial_state(ROWS), start)
    (gradient,) = torch.autograd.grad((y[:, -1] * torch.randn(ROWS, WIDTH)).sum(), x)
    norms = gradient.norm(dim=-1).flip(1)
    return (norms / norms.amax(dim=1, keepdim=True)).numpy()


def draw_reach(name: str, out: Path) -> None:
    """Draw what a memory hears of the steps before into a file."""
    parts = heard(name)
    ago = np.arange(STEPS) + 1
    mean, low, high = (
        np.where(found < LEAST, np.nan, found) for found in (parts.mean(0), parts.min(0), parts.max(0))
    )
    shade = colours([name])[name]
    figure = Figure(figsize=(6.5, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(ago, np.fmax(low, LEAST), high, color=shade, alpha=0.25, linewidth=0)
    axes.plot(ago, mean, color=shade, linewidth=1.5, marker=".", markersize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, STEPS * 1.1)
    axes.set_ylim(LEAST, 2)
    axes.set_xlabel("steps back; 1 is the present one")
    axes.set_ylabel("part of the largest")
    axes.grid(alpha=0.3)
    figure.savefig(out)
