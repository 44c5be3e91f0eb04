"""Check of a torch device before a long computation starts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def resolve_device(name: str | torch.device, purpose: str) -> torch.device:
    """Return the torch device of this name. Raises ValueError if the device is not available.

    Args:
        name: Name of the device, such as "cuda:1".
        purpose: Purpose of the device for the error message, such as "hold embeddings".
    """
    import torch  # a bank without a device does not need torch

    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(name)!r}: torch cannot {purpose} on this device ({reason}); omit `device` or "
            "choose an available device"
        ) from None
    return probe.device
