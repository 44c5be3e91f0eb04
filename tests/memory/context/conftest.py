"""Shared fixtures; the tests of this folder may import `by_layer` and `families`."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def text():
    # Every token occurs once, so that no two chunks have equal scores and rounding decides nothing.
    generator = torch.Generator().manual_seed(0)
    return torch.stack([2 + torch.randperm(62, generator=generator)[:40] for _ in range(2)])


@pytest.fixture(scope="module")
def register_test_policies():
    """Register the policies of `by_layer` for the tests of a module."""
    from by_layer import BY_LAYER

    from scrubjay.memory.context import registry

    for name, policy in BY_LAYER.items():
        registry.register(name, policy)
    yield
    for name in BY_LAYER:
        del registry._POLICIES[name]
