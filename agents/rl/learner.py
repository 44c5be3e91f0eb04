"""Parts that all learners share: interfaces, data-parallel reductions, minibatches and Adam steps.

Several processes compute one update together, each from a part of the batch, through `Peers`. States of
optimizers may come from untrusted checkpoints and are validated.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from datetime import timedelta
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor, distributed, nn
from torch.optim.adam import adam as step_of_adam

from scrubjay.kernels.derivatives import retain_freed_memory


@runtime_checkable
class Learner(Protocol):
    """Interface of a learner, which updates the policy that it was built with.

    `get_state` and `set_state` save and restore everything except the policy's weights, as tensors and plain
    values. A resumed run then continues exactly.
    """

    def update(self, segment: Any) -> dict[str, float]:
        """Update the policy on a segment that this policy has sampled; return metrics by name."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Return the state of the learner, without the policy's weights."""
        ...

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        ...


_LARGEST = torch.finfo(torch.float32).max


def check_numbers(config: Any) -> None:
    """Raise ValueError if a finite number in a dataclass is above those of 32 bits, which torch needs."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int | float) and _LARGEST < abs(value) < math.inf:
            raise ValueError(f"{field.name}={value}: must be at most {_LARGEST:.2g}, as torch has 32 bits")


@dataclass(frozen=True)
class LearnerConfig(ABC):
    """Base class of learner configs: a frozen dataclass that builds its learner.

    Raises:
        ValueError: If a number is too large for torch.
    """

    policy_type: ClassVar[str] = "agent"
    """Type of policy that the learner trains: "agent" or "team"."""
    supports_peers: ClassVar[bool] = False
    """True if several processes can share one update through `peers`, each with a part of the batch."""
    updates_statistics: ClassVar[bool] = False
    """True if `update` ends with `policy.update_statistics`, which `normalize_observations` needs."""
    min_rows_field: ClassVar[str | None] = None
    """Name of the config field that sets the minimum number of environments in a batch. None if the learner
    has no such field; the minimum is then 1."""

    def __post_init__(self) -> None:
        check_numbers(self)

    @abstractmethod
    def build(self, policy: Any, seed: int = 0, peers: SingleProcess | None = None) -> Learner:
        """Return a learner that trains `policy`.

        Args:
            policy: Policy to train.
            seed: Seed of the learner's random numbers.
            peers: Learners in other processes with which this one computes each update. Callers pass it only
                if `supports_peers` is True.

        Raises:
            ValueError: If config and policy do not match.
        """

    @property
    def sampled_burn_in(self) -> int:
        """Number of earlier segments whose steps `update` needs with each segment; the base class has 0."""
        return 0

    @property
    def min_rows(self) -> int:
        """Minimum batch size of an update, in environments."""
        return 1 if self.min_rows_field is None else getattr(self, self.min_rows_field)

    def check_rows(self, num_rows: int) -> None:
        """Raise ValueError if a batch of `num_rows` environments is too small for an update."""
        if num_rows < self.min_rows:
            raise ValueError(
                f"{self.min_rows_field}={self.min_rows} is more than the {num_rows} environments of the "
                "batch; use more environments or fewer minibatches"
            )

    def with_total_steps(self, total_steps: int) -> Self:
        """Return the config for a run of `total_steps` environment steps; the base class returns `self`."""
        return self

    def check_learners(self, count: int) -> None:
        """Raise ValueError if `count` learner processes cannot share one update."""
        if count > 1 and not self.supports_peers:
            raise ValueError(
                f"num_learners={count}: {type(self).__name__.removesuffix('Config')} does not support "
                "several learners; use 0 (in the driver process) or 1 (in a separate process)"
            )


class SingleProcess:
    """Reductions for a learner in a single process: sums and moments over its own values only."""

    def locate_rows(self, num_rows: int) -> tuple[int, int]:
        """Return the index of this learner's first row in the whole batch, and the size of the whole batch.

        `num_rows` is the number of batch rows that this learner has.
        """
        return 0, num_rows

    def sum(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Return the elementwise sum of `values` over all learners."""
        return values

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace the gradient of each parameter by its sum over all learners."""

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Return the mean and the population standard deviation of the `values` of all learners together."""
        return values.mean(), values.std(correction=0)


class Peers(SingleProcess):
    """Reductions over all processes of the default torch.distributed group, which must be initialized.

    Every process must call the same methods in the same order. If a process is lost, the
    method raises an error in all other processes after `timeout_seconds`.
    """

    def __init__(self, timeout_seconds: float = 60.0) -> None:
        # A separate group, since the default group's timeout is half an hour; gloo, since it supports CPU
        # tensors.
        self._group: Any = distributed.new_group(backend="gloo", timeout=timedelta(seconds=timeout_seconds))

    def locate_rows(self, num_rows: int) -> tuple[int, int]:  # noqa: D102
        counts = [torch.zeros(1, dtype=torch.int64) for _ in range(distributed.get_world_size(self._group))]
        distributed.all_gather(counts, torch.tensor([num_rows]), group=self._group)
        numbers = torch.cat(counts).tolist()
        return sum(numbers[: distributed.get_rank(self._group)]), sum(numbers)

    def sum(self, values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:  # noqa: D102
        total = values.clone()
        distributed.all_reduce(total, group=self._group)
        return total

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:  # noqa: D102
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        total = self.sum(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, part in zip(gradients, total.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))

    def moments(self, values: Float[Tensor, "..."]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:  # noqa: D102
        count = self.sum(values.new_tensor(float(values.numel())))
        mean = self.sum(values.sum()) / count
        return mean, (self.sum((values - mean).square().sum()) / count).sqrt()


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
    for parameter in parameters:  # optimizer.zero_grad takes longer
        parameter.grad = None
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
