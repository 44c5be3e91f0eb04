"""Reference outputs of published code, and the formula of its inputs and weights (both are data)."""

import json
import math
from pathlib import Path

import torch


def wave(*shape, offset):
    """Return the sines used as inputs and weights of the published code."""
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + offset).view(shape)


def outputs(name, key="outputs"):
    """Return the outputs of the published code, `[time, width]`."""
    results = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    return torch.tensor(results[key], dtype=torch.float64)


@torch.no_grad()
def set_weights(module, values):
    """Overwrite all parameters with the values of the same names."""
    parameters = dict(module.named_parameters())
    assert parameters.keys() == values.keys()
    for name, value in values.items():
        parameters[name].copy_(value)
