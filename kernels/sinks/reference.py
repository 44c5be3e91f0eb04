"""Reference implementation of sink attention, one query and head at a time.

Dimension letters as in `sink_attention`.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def read_out(
    query: Float[Tensor, "B T H D"],
    keys: Float[Tensor, "B N G D"],
    values: Float[Tensor, "B N G V"],
    sink_logit: Float[Tensor, " H"] | None,
    query_step: Int[Tensor, "B T"],
    key_step: Int[Tensor, "B N"],
    episode_start: Int[Tensor, "B T"],
    window: int,
    num_sinks: int,
    scale: float,
) -> tuple[Float[Tensor, "B T H V"], Float[Tensor, "B T H"]]:
    """Return the output of `kernels.sink_attention` and the log-sum-exp of each softmax.

    Args: those of `kernels.sink_attention`.
    """
    batch, time, heads, _ = query.shape
    groups = keys.shape[2]
    dtype = torch.promote_types(query.dtype, torch.float32)
    outputs, lses = [], []
    for b in range(batch):
        for t in range(time):
            step, start = int(query_step[b, t]), int(episode_start[b, t])
            visible = [
                n
                for n, key in enumerate(key_step[b].tolist())
                if max(0, start) <= key <= step and (key < start + num_sinks or key > step - window)
            ]
            for h in range(heads):
                g = h * groups // heads
                scores = keys[b, visible, g].to(dtype) @ query[b, t, h].to(dtype) * scale
                if sink_logit is not None:
                    scores = torch.cat([scores, sink_logit[h : h + 1].to(dtype)])
                attention = torch.softmax(scores, dim=0)[: len(visible)]
                outputs.append(attention @ values[b, visible, g].to(dtype))
                lses.append(torch.logsumexp(scores, dim=0))
    out, lse = (torch.stack(x) if x else query.new_zeros(0) for x in (outputs, lses))
    return out.view(batch, time, heads, values.shape[-1]).to(query.dtype), lse.view(batch, time, heads)
