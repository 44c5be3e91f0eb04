"""Forward and backward pass of sink attention by Triton kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import ensure_dense_rows
from scrubjay.kernels.sinks.gpu.attend import attend_launch
from scrubjay.kernels.sinks.gpu.gradients import key_gradient_launch, query_gradient_launch


def forward(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    """Return the output `[B, T, H, V]` and the log-sum-exp of the scores, `[B, T, H]` float32.

    Args: those of `kernels.sink_attention`.
    """
    query, keys, values = map(ensure_dense_rows, (query, keys, values))
    sink_logit = None if sink_logit is None else sink_logit.contiguous()
    out = query.new_empty(*query.shape[:3], values.shape[-1])
    log_sum = query.new_empty(query.shape[:3], dtype=torch.float32)
    steps = (query_step, key_step, episode_start)
    attend_launch(query, keys, values, sink_logit, *steps, out, log_sum, window, num_sinks, scale).run()
    return out, log_sum


def backward(
    grads: tuple[Tensor, Tensor | None],
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    sink_logit: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    query_step: Tensor,
    key_step: Tensor,
    episode_start: Tensor,
    window: int,
    num_sinks: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, keys, values and sink_logit; the last is empty without a sink_logit.

    Args: those of `kernels.sink_attention`, the outputs of `forward`, and the gradients of these outputs. The
    gradient of the log-sum-exp may be None.
    """
    grad, log_sum_grad = grads
    log_sum_grad = None if log_sum_grad is None else log_sum_grad.float().contiguous()
    grad, query, keys, values = map(ensure_dense_rows, (grad, query, keys, values))
    out, log_sum = out.contiguous(), log_sum.contiguous()
    query_grad, keys_grad, values_grad = (tensor.new_empty(tensor.shape) for tensor in (query, keys, values))
    delta = torch.empty_like(log_sum)
    inputs = (grad, query, keys, values, query_step, key_step, episode_start)
    sizes = (window, num_sinks, scale)
    query_gradient_launch(*inputs, out, log_sum, log_sum_grad, delta, query_grad, *sizes).run()
    key_gradient_launch(*inputs, log_sum, delta, keys_grad, values_grad, *sizes).run()
    if sink_logit is None:
        return query_grad, keys_grad, values_grad, query.new_empty(0)
    sink_grad = -(torch.exp(sink_logit.float() - log_sum) * delta).sum(dim=(0, 1))
    return query_grad, keys_grad, values_grad, sink_grad.to(sink_logit.dtype)
