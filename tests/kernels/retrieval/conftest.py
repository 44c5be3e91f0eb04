"""Shared fixtures of the chunk retrieval tests: arguments and a comparison with the definition."""

from typing import Any

import pytest
import torch

from scrubjay.kernels import chunk_retrieval

TENSORS = ["query", "keys", "values", "summaries"]


def _draw(
    seed, batch=2, time=5, chunks=6, length=3, heads=4, groups=2, width=6, coarse=None, dtype=torch.float64
) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=dtype)

    arguments = {
        "query": normal(batch, time, heads, width),
        "keys": normal(batch, chunks, length, groups, width),
        "values": normal(batch, chunks, length, groups, width),
        "summaries": normal(batch, chunks, groups, width),
        "valid": torch.randint(0, chunks + 1, (batch, time), generator=generator),
    }
    if coarse is not None:
        arguments["summary_query"] = normal(batch, time, coarse, 5)
        arguments["summaries"] = normal(batch, chunks, 1, 5)
    return arguments


def _assert_equals_the_definition(arguments, path, **options):
    out = chunk_retrieval(**arguments, **options, implementation=path)
    expected = chunk_retrieval(**arguments, **options, implementation="reference")
    torch.testing.assert_close(out, expected)


@pytest.fixture(scope="session")
def draw():
    return _draw


@pytest.fixture(scope="session")
def assert_equals_the_definition():
    return _assert_equals_the_definition
