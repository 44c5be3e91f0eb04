"""Reference definition of linear memory: one token at a time."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Rule = Literal["hebbian", "delta"]


class LinearInputs(NamedTuple):
    """Differentiable arguments of `kernels.linear_memory`, validated and in one dtype."""

    query: Float[Tensor, "B T H K"]
    key: Float[Tensor, "B T H K"]
    value: Float[Tensor, "B T H V"]
    log_decay: Float[Tensor, "B T H *K"]
    step: Float[Tensor, "B T H"]
    state: Float[Tensor, "B H K V"]
    erase_key: Float[Tensor, "B T H K"] | None = None
    """Keys whose stored values are subtracted; None if they are the keys to write."""

    def tensors(self) -> tuple[Tensor, ...]:
        """Return the fields in order, without an `erase_key` of None."""
        return self[:6] if self.erase_key is None else (*self[:6], self.erase_key)


def run(
    inputs: LinearInputs, start: Bool[Tensor, "B T"] | None, rule: Rule, read_before_write: bool
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B H K V"]]:
    """Return the outputs and the final state. The arguments are those of `kernels.linear_memory`."""
    query, key, value, log_decay, step, state, erase_key = inputs
    erase_key = key if erase_key is None else erase_key
    outputs = []
    for t in range(query.shape[1]):
        if start is not None:
            state = torch.where(start[:, t, None, None, None], 0, state)
        decay = log_decay[:, t].exp()
        decayed_state = (decay if log_decay.ndim == 4 else decay[..., None])[..., None] * state
        error = value[:, t]
        if rule == "delta":
            error = error - (decayed_state * erase_key[:, t, :, :, None]).sum(2)
        after = decayed_state + (step[:, t, :, None] * key[:, t])[..., None] * error[:, :, None]
        outputs.append(((state if read_before_write else after) * query[:, t, :, :, None]).sum(2))
        state = after
    return torch.stack(outputs, dim=1) if outputs else value, state
