"""Plot of the influence of earlier inputs on a memory's output, drawn when the site is built."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from scrubjay import memory
from scrubjay.experiments.viz.style import assign_colors

WIDTH, STEPS, ROWS = 64, 640, 8
LEAST = 1e-6
"""Smallest influence that is drawn, relative to the largest."""
DESCRIPTION = (
    f"Influence of each of the last {STEPS} inputs on the output of an untrained memory: gradient norm "
    f"relative to the largest one, mean and range over {ROWS} sequences of noise."
)


def measure_reach(name: str) -> NDArray[np.float32]:
    """Return the influence of each input on the last output, (rows, steps), the last step first."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"dim": WIDTH}
    if any(field.name == "stop_memory_gradient" for field in dataclasses.fields(memory.make_config(name))):
        sizes["stop_memory_gradient"] = False  # else stored steps have no gradient
    model = memory.make(name, **sizes)
    x = torch.randn(ROWS, STEPS, WIDTH, requires_grad=True)
    start = torch.zeros(ROWS, STEPS, dtype=torch.bool)
    y, _ = model(x, model.initial_state(ROWS), start)
    (gradient,) = torch.autograd.grad((y[:, -1] * torch.randn(ROWS, WIDTH)).sum(), x)
    norms = gradient.norm(dim=-1).flip(1)
    return (norms / norms.amax(dim=1, keepdim=True)).numpy()


def draw_reach(name: str, out: Path) -> None:
    """Draw the influence of earlier inputs into a file."""
    parts = measure_reach(name)
    ago = np.arange(STEPS) + 1
    mean, low, high = (
        np.where(values < LEAST, np.nan, values) for values in (parts.mean(0), parts.min(0), parts.max(0))
    )
    shade = assign_colors([name])[name]
    figure = Figure(figsize=(6.5, 2.8), dpi=110, layout="constrained")
    axes = figure.subplots()
    axes.fill_between(ago, np.fmax(low, LEAST), high, color=shade, alpha=0.25, linewidth=0)
    axes.plot(ago, mean, color=shade, linewidth=1.5, marker=".", markersize=3)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(0.9, STEPS * 1.1)
    axes.set_ylim(LEAST, 2)
    axes.set_xlabel("steps back (1 is the current step)")
    axes.set_ylabel("relative influence")
    axes.grid(alpha=0.3)
    figure.savefig(out)
