"""The optimiser of all learners, and its state, taken only if it is of the parameters there are.

A checkpoint may be anybody's.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam as step_of_adam

from scrubjay.memory.parts.heap import keep_freed

_FORM = "its optimiser's state is not as training writes it"


def adam(parameters: Iterable[nn.Parameter], learning_rate: float) -> torch.optim.Adam:
    """Return Adam as learners take it, in a process that will take many steps."""
    keep_freed()
    return torch.optim.Adam(parameters, lr=learning_rate, eps=1e-5, fused=True)


def take_step(optimizer: torch.optim.Adam) -> None:
    """Take the step that `optimizer.step()` takes, of one made by `adam`, without what hooks ask for."""
    (group,) = optimizer.param_groups
    moved = [parameter for parameter in group["params"] if parameter.grad is not None]
    states = [optimizer.state[parameter] for parameter in moved]
    if not all(states):  # which begins what it keeps of each
        optimizer.step()
        return
    means, squares, steps = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    beta1, beta2 = group["betas"]
    with torch.no_grad():
        step_of_adam(
            moved,
            [parameter.grad for parameter in moved],
            means,
            squares,
            [],
            steps,
            fused=True,
            beta1=beta1,
            beta2=beta2,
            **{name: group[name] for name in ("lr", "eps", "weight_decay", "amsgrad", "maximize")},
        )


def restore(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Go on from a copy of what `optimizer.state_dict()` returned: its moments and step sizes.

    All other settings are the optimiser's own. Raises ValueError, and changes nothing, on what is no state,
    is of other parameters, or is not finite.
    """
    parts = state if isinstance(state, dict) else {}
    groups, moments = parts.get("param_groups"), parts.get("state")
    own = optimizer.state_dict()["param_groups"]
    if not isinstance(groups, list) or not isinstance(moments, dict) or len(groups) != len(own):
        raise ValueError(_FORM)
    taken = [_group(theirs, ours) for theirs, ours in zip(groups, own, strict=True)]
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, kept in moments.items():
        if type(index) is not int or not 0 <= index < len(parameters) or not isinstance(kept, dict):
            raise ValueError(_FORM)
        for name, value in kept.items():
            if not _fits(value, () if name == "step" else tuple(parameters[index].shape)):
                raise ValueError(
                    f"{_FORM}: {name!r:.40} of parameter {index} has another shape or is not finite"
                )
    if len({frozenset(kept) for kept in moments.values()}) > 1:
        raise ValueError(f"{_FORM}: it keeps different things of different parameters")
    optimizer.load_state_dict(copy.deepcopy({"state": moments, "param_groups": taken}))


def _group(theirs: Any, ours: dict[str, Any]) -> dict[str, Any]:
    if not isinstance(theirs, dict) or theirs.get("params") != ours["params"]:
        raise ValueError(_FORM)
    rate: Any = theirs.get("lr")
    if type(rate) not in (int, float) or not math.isfinite(rate) or rate < 0:
        raise ValueError(f"{_FORM}: its step size is {rate!r:.40}")
    return {**ours, "lr": rate}


def _fits(value: Any, shape: tuple[int, ...]) -> bool:
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and tuple(value.shape) == shape
        and bool(value.isfinite().all())
    )
