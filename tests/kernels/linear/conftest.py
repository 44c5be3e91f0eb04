"""Fixtures of the tests of linear memory: random arguments, and their outputs and gradients."""

from typing import Any

import pytest
import torch
from torch.nn import functional

from scrubjay.kernels import linear_memory

TENSORS = ("query", "key", "value", "log_decay", "step", "state", "erase_key")


def _draw(
    seed=0, batch=2, time=7, heads=2, width=4, values=3, channel=False, strength=1.0, starts=0.0, **options
) -> dict[str, Any]:
    """Return arguments of linear_memory in float64: unit keys, steps up to 2, decays at most e^-strength.

    The rule "erase" is the delta rule with erase keys that differ from the keys.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    arguments = {
        "query": normal(batch, time, heads, width),
        "key": functional.normalize(normal(batch, time, heads, width), dim=-1),
        "value": normal(batch, time, heads, values),
        "log_decay": -strength * uniform(batch, time, heads, *([width] if channel else [])),
        "step": 2 * uniform(batch, time, heads),
        "state": normal(batch, heads, width, values),
        "start": uniform(batch, time) < starts if starts else None,
        "rule": "delta",
    } | options
    if arguments["rule"] == "erase":
        erase_key = functional.normalize(normal(batch, time, heads, width), dim=-1)
        arguments |= {"rule": "delta", "erase_key": erase_key}
    return arguments


def _outcome(arguments: dict[str, Any], **options) -> dict[str, torch.Tensor]:
    """Return the outputs, the state after, and the gradients of a weighted sum of both."""
    names = [name for name in TENSORS if name in arguments]
    fresh = arguments | {name: arguments[name].detach().clone().requires_grad_() for name in names}
    result = dict(zip(("y", "after"), linear_memory(**fresh, **options), strict=True))
    weighted_sums = [
        (x * torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x)).sum() for x in result.values()
    ]
    leaves = [fresh[name] for name in names]
    grads = torch.autograd.grad(
        weighted_sums[0] + weighted_sums[1], leaves, allow_unused=True, materialize_grads=True
    )
    return {name: x.detach() for name, x in result.items()} | dict(zip(names, grads, strict=True))


def _assert_same(result, expected, tolerance=1e-11):
    assert result.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(
            result[name], expected[name], rtol=tolerance, atol=tolerance, equal_nan=True, msg=name
        )


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def outcome():
    return _outcome


@pytest.fixture(scope="session")
def assert_same():
    return _assert_same
