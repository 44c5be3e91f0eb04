"""A device that is not there is named, and what it was wanted for."""

import pytest
import torch

from scrubjay.memory.parts.device import usable_device


def test_what_is_there_is_returned():
    assert usable_device("cpu", "compute") == usable_device(torch.device("cpu"), "compute")
    assert usable_device("cpu", "compute") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "abacus", torch.device("cuda:99")])
def test_what_is_not_there_is_named(name):
    told = f"device='{name}': torch cannot hold a heron there .*; leave it out"
    with pytest.raises(ValueError, match=told):
        usable_device(name, "hold a heron")
