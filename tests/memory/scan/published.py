"""Numbers that published code gave, and the formula of what it was given (both are data)."""

import json
import math
from pathlib import Path

import torch


def wave(*shape, offset):
    """Return sines, as inputs and weights of published code were."""
    return torch.sin(0.37 * torch.arange(math.prod(shape), dtype=torch.float64) + offset).view(shape)


def outputs(name, what="outputs"):
    """Return what published code gave, `[time, width]`."""
    kept = json.loads((Path(__file__).parent / f"{name}.json").read_text())
    return torch.tensor(kept[what], dtype=torch.float64)


@torch.no_grad()
def set_weights(module, values):
    """Write values over parameters of the same names, all of them."""
    parameters = dict(module.named_parameters())
    assert parameters.keys() == values.keys()
    for name, value in values.items():
        parameters[name].copy_(value)
