"""Minibatches and Adam steps of all learners; validation of optimizer states from untrusted checkpoints."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.optim.adam import adam as step_of_adam

from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.kernels.derivatives import retain_freed_memory

_INVALID = "optimizer state does not match this policy"


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Return a new Adam optimizer with the settings that all learners use.

    As a side effect, the C library keeps up to 64 MB of freed memory in this process from now on, instead of
    returning this memory to the operating system. This makes gradient steps faster.
    """
    retain_freed_memory()
    return torch.optim.Adam(parameters, lr=learning_rate, eps=1e-5, fused=True)


def minibatches(
    num_rows: int, epochs: int, count: int, generator: torch.Generator
) -> Iterator[Int[Tensor, " rows"]]:
    """Yield the batch indices of the `count` minibatches of each epoch; `generator` shuffles every epoch."""
    for _ in range(epochs):
        yield from torch.randperm(num_rows, generator=generator).tensor_split(count)


def gradient_step(
    optimizer: torch.optim.Adam,
    loss: Float[Tensor, ""],
    max_grad_norm: float,
    peers: SingleProcess | None = None,
) -> Float[Tensor, ""]:
    """Take one step on the loss, with gradients summed over `peers`; return their norm before clipping."""
    parameters = optimizer.param_groups[0]["params"]
    optimizer.zero_grad()
    loss.backward()
    if peers is not None:
        peers.sum_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    take_step(optimizer)
    return norm.detach()


def take_step(optimizer: torch.optim.Adam) -> None:
    """Take one step, as `optimizer.step()` does, without the overhead of hooks.

    The optimizer must be a result of `adam`.
    """
    (group,) = optimizer.param_groups
    parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
    states = [optimizer.state[parameter] for parameter in parameters]
    if not all(states):  # the first step creates the state
        optimizer.step()
        return
    means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        step_of_adam(
            parameters,
            [parameter.grad for parameter in parameters],
            means,
            squares,
            [],
            steps,
            fused=True,
            beta1=beta1,
            beta2=beta2,
            **{name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")},
        )


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Load moments, step counts and learning rates from `state`, a result of `optimizer.state_dict()`.

    The tensors are copied. All other hyperparameters of the optimizer are unchanged. Raises ValueError, and
    changes nothing, if the state is malformed, belongs to other parameters or contains NaN or inf.
    """
    parts = state if isinstance(state, dict) else {}
    groups, moments = parts.get("param_groups"), parts.get("state")
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or not isinstance(moments, dict) or len(groups) != len(own):
        raise ValueError(_INVALID)
    new_groups = [_load_group(theirs, ours) for theirs, ours in zip(groups, own, strict=True)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, parameter_state in moments.items():
        if (
            type(index) is not int
            or not 0 <= index < len(parameters)
            or not isinstance(parameter_state, dict)
        ):
            raise ValueError(_INVALID)
        for name, value in parameter_state.items():
            if not _is_valid(value, () if name == "step" else tuple(parameters[index].shape)):
                raise ValueError(
                    f"{_INVALID}: {name!r:.40} of parameter {index} has a wrong shape or is not finite"
                )
    if len({frozenset(parameter_state) for parameter_state in moments.values()}) > 1:
        raise ValueError(f"{_INVALID}: the state of every parameter must have the same keys")
    optimizer.load_state_dict(copy.deepcopy({"state": moments, "param_groups": new_groups}))


def _load_group(stored_group: Any, own_group: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(stored_group, dict) or stored_group.get("params") != own_group["params"]:
        raise ValueError(_INVALID)
    rate: Any = stored_group.get("lr")
    if type(rate) not in (int, float) or not math.isfinite(rate) or rate < 0:
        raise ValueError(
            f"{_INVALID}: the state has learning rate {rate!r:.40}; expected a finite number, at least 0"
        )
    return {**own_group, "lr": rate}


def _is_valid(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and tuple(value.shape) == shape
        and bool(value.isfinite().all())
    )
