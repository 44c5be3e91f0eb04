"""Shared fixtures of sink attention's tests: random arguments, outputs with gradients, a comparison."""

from typing import Any

import pytest
import torch

from scrubjay.kernels import sink_attention

TENSORS = ["query", "keys", "values", "sink_logit"]


def _draw(
    seed,
    batch=2,
    time=7,
    cache_size=5,
    heads=4,
    groups=2,
    width=6,
    value_width=3,
    reset=0.1,
    age=40,
    sink_logit=True,
    dtype=torch.float64,
) -> dict[str, Any]:
    """Return the arguments of a segment after a shuffled cache of earlier steps and empty slots."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    first = torch.randint(0, age + 1, (batch,), generator=generator)
    starts = torch.rand(batch, age + time, generator=generator) < reset
    episode_start = torch.where(starts, torch.arange(age + time), 0).cummax(dim=1).values
    query_step = first[:, None] + torch.arange(time)
    cache = torch.full((batch, cache_size), -1)
    for row, before in enumerate(first.tolist()):
        cached_steps = torch.randperm(before, generator=generator)[:cache_size]
        cache[row, torch.randperm(cache_size, generator=generator)[: len(cached_steps)]] = cached_steps
    return {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, cache_size + time, groups, width),
        "values": normal(batch, cache_size + time, groups, value_width),
        "query_step": query_step,
        "key_step": torch.cat([cache, query_step], dim=1),
        "episode_start": episode_start.gather(1, query_step),
        "sink_logit": normal(heads) if sink_logit else None,
    }


def _readout_and_gradients(arguments, **options) -> dict[str, torch.Tensor]:
    fresh = dict(arguments)
    names = [name for name in TENSORS if arguments[name] is not None]
    for name in names:
        fresh[name] = arguments[name].clone().requires_grad_()
    out = sink_attention(**fresh, **options)
    out, lse = out if isinstance(out, tuple) else (out, None)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    loss = (out * weights).sum()
    results = {"out": out.detach()}
    if lse is not None:
        results["lse"] = lse.detach()
        loss = loss + (lse.masked_fill(lse.isinf(), 0) * weights[..., 0]).sum()
    loss.backward()
    return results | {name: fresh[name].grad for name in names}


def _assert_same(results, expected, tolerance=1e-9):
    assert results.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(results[name], expected[name], rtol=tolerance, atol=tolerance, msg=name)


def _permute_slots(arguments, seed=0) -> dict[str, Any]:
    order = torch.randperm(arguments["keys"].shape[1], generator=torch.Generator().manual_seed(seed))
    return arguments | {name: arguments[name][:, order] for name in ("keys", "values", "key_step")}


def _tiny(**options) -> dict[str, Any]:
    return _draw(
        11, batch=1, time=5, cache_size=3, heads=2, groups=1, width=2, value_width=2, reset=0.2, **options
    )


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def readout_and_gradients():
    return _readout_and_gradients


@pytest.fixture(scope="session")
def assert_same():
    return _assert_same


@pytest.fixture(scope="session")
def permute_slots():
    return _permute_slots


@pytest.fixture(scope="session")
def tiny():
    return _tiny
