"""Whether a device of torch is there, asked before anything long is begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def usable_device(name: str | torch.device, to_do: str) -> torch.device:
    """Return torch's device of that name. Raises ValueError, saying what cannot be done, if it is not there.

    Args:
        name: Such as "cuda:1".
        to_do: What it is for, such as "hold embeddings".
    """
    import torch  # a bank without a device does without

    try:
        probe = torch.zeros(1, device=name)
        probe.cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"device={str(name)!r}: torch cannot {to_do} there ({reason}); leave it out, or name one that it "
            "sees"
        ) from None
    return probe.device
