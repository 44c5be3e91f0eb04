"""The definition of a linear memory: one token at a time, and all a token does in one step."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rule = Literal["hebbian", "delta"]


class Given(NamedTuple):
    """The tensors of `kernels.linear_memory` that have gradients, checked, in one dtype."""

    query: Float[Tensor, "B T H K"]
    key: Float[Tensor, "B T H K"]
    value: Float[Tensor, "B T H V"]
    log_decay: Float[Tensor, "B T H *K"]
    step: Float[Tensor, "B T H"]
    state: Float[Tensor, "B H K V"]


def run(
    given: Given, start: Bool[Tensor, "B T"] | None, rule: Rule, read_before_write: bool
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Return what tokens read and the state after; arguments as those of `kernels.linear_memory`."""
    query, key, value, log_decay, step, state = given
    outputs = []
    for t in range(query.shape[1]):
        if start is not None:
            state = torch.where(start[:, t, None, None, None], 0, state)
        kept = log_decay[:, t].exp()
        faded = (kept if log_decay.ndim == 4 else kept[..., None])[..., None] * state
        written = value[:, t]
        if rule == "delta":
            written = written - (faded * key[:, t, :, :, None]).sum(2)
        after = faded + (step[:, t, :, None] * key[:, t])[..., None] * written[:, :, None]
        outputs.append(((state if read_before_write else after) * query[:, t, :, :, None]).sum(2))
        state = after
    return torch.stack(outputs, dim=1) if outputs else value, state
