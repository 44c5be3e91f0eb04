"""Lets this folder's tests import the module that they share, `by_layer`."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def text():
    # No token twice, lest two chunks of the same tokens score alike and rounding choose.
    generator = torch.Generator().manual_seed(0)
    return torch.stack([2 + torch.randperm(62, generator=generator)[:40] for _ in range(2)])


@pytest.fixture(scope="module")
def registered():
    """Register the policies of `by_layer` while a module's tests run."""
    from by_layer import BY_LAYER

    from scrubjay.memory.context import registry

    for name, policy in BY_LAYER.items():
        registry.register(name, policy)
    yield
    for name in BY_LAYER:
        del registry._POLICIES[name]
