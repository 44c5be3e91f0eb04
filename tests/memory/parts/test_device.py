"""The error for an unavailable device names the device and its purpose."""

import pytest
import torch

from scrubjay.memory.parts.device import resolve_device


def test_an_available_device_is_returned():
    assert resolve_device("cpu", "compute") == resolve_device(torch.device("cpu"), "compute")
    assert resolve_device("cpu", "compute") == torch.device("cpu")


@pytest.mark.parametrize("name", ["cuda:99", "abacus", torch.device("cuda:99")])
def test_an_unavailable_device_is_named(name):
    message = f"device='{name}': torch cannot hold a heron on this device .*; omit `device`"
    with pytest.raises(ValueError, match=message):
        resolve_device(name, "hold a heron")
