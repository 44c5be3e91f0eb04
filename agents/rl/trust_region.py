"""Trust-region policy optimization (TRPO) steps: natural gradient, step size and backtracking line search.

Implements appendix C of Schulman et al. 2015 (arXiv 1502.05477). g is the gradient of the surrogate
objective. F is the Fisher information of the policy, averaged over a batch. Conjugate gradient solves
`(F + damping) x = g`. The full step is `s x`: the scale s is such that the quadratic model `s^2 x'Fx / 2` of
the mean KL divergence reaches the limit. The line search shortens the step until the exact divergence is
within the limit and the surrogate has improved.

F itself is never computed. Conjugate gradient only needs products Fv with vectors v. Three methods compute
Fv, and they agree at the current policy. The first two use Fv = J'MJv. J is the Jacobian of the
distribution's `outputs` with respect to the parameters. M is the Fisher information with respect to these
outputs; the distribution's method `fisher` multiplies a vector by M.

- `difference`: Jv is a central difference of `outputs` along v. The method works with any differentiable
  layer. A product takes two forward passes, or more if the outputs change steeply.
- `gauss_newton`: Jv is the derivative of `v'(J'u)` with respect to u, in reverse mode. One graph serves all
  products. The method needs no forward-mode differentiation, which torch lacks for its fused LSTM and
  attention kernels.
- `double_backward`: Fv is the gradient of the dot product of v and the gradient of the mean divergence.

The table lists the methods that registered memories support. Tests confirm the CPU column. A memory without
second derivatives raises an error that suggests `difference`:

    memory                                      CPU          CUDA
    gru, gtrxl, hcam, lstm, none, sink          all three    all three; this module disables cuDNN
    titans, titans_mac, titans_mag, titans_mal  all three    `difference`: their kernel is differentiable once
    stack                                       those that all of its parts support
    layers with torch's fused attention         `difference` `difference`

`difference` is the default. The next table has the milliseconds of one step with ten products, on one core.
The policy has width 64, and the batch has 1,000 environment steps:

    memory                      gauss_newton  double_backward  difference
    none                        47            76               39
    gru, segments of 25 steps   80            105              70
    gru, segments of 100 steps  274           297              168
    lstm                        75            145              46
    hcam                        265           322              545
    titans                      360           545              367

In float32 the directions x of the three methods agree to four digits.

Few products are enough. The last table shows updates on simple_spread after 10 earlier updates. Each update
was computed on 1,000 environment steps. It was evaluated on the same steps and on 26,000 other steps. The
gain is the improvement of the surrogate, divided by the square root of the divergence:

    damping  cg_tolerance  products  gain on other steps  gain on the same steps
    0.1      0.1           6.2       0.0141               0.35
    0.1      0.3           3.8       0.0136               0.32
    0.03     0.1           9.7       0.0125               0.42
    0.3      0.1           4.0       0.0154               0.29

Gradients of so few steps are mostly noise. A more exact inverse amplifies this noise. Nevertheless, over
120,000 steps of one seed a damping of 0.1 learned faster than 0.5.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import grad

from scrubjay.agents.rl.distributions import Distribution

Curvature = Literal["double_backward", "gauss_newton", "difference"]
WeightedDistribution = tuple[Callable[[], Distribution], Float[Tensor, "..."]]
"""Function that returns the current policy's distribution over a batch, and the weight of each entry."""
Product = Callable[[Float[Tensor, "numbers"]], Float[Tensor, "numbers"]]


_MAX_DIFFERENCES = 3
"""Maximum number of central differences, with decreasing step, before a step that is too long is accepted."""


@dataclass(frozen=True)
class TrustRegionConfig:
    """Config of trust-region steps. Raises ValueError on an invalid value."""

    cg_iterations: int = 10
    """Maximum number of conjugate-gradient iterations, each with one Fisher-vector product."""
    cg_tolerance: float = 0.1
    """Relative residual at which conjugate gradient stops. Compared with an exact solution, the default loses
    a few percent of the improvement."""
    damping: float = 0.1
    """Damping that is added to the diagonal of the Fisher information; increase it for noisy gradients."""
    shrink: float = 0.8
    """Factor by which the line search shortens a step that does not improve the surrogate; above 0 and
    below 1. For a step beyond the divergence limit, the line search computes a factor instead."""
    backtracks: int = 10
    """Maximum number of backtracking steps; if all fail, the weights are restored."""
    curvature: Curvature = "difference"
    """Method of Fisher-vector products: difference (works with any memory), gauss_newton or
    double_backward."""

    def __post_init__(self) -> None:
        if self.cg_iterations < 1 or self.backtracks < 0:
            raise ValueError(
                f"cg_iterations={self.cg_iterations}: must be at least 1; backtracks={self.backtracks}: must "
                "be at least 0"
            )
        if not 0 <= self.cg_tolerance < 1:
            raise ValueError(f"cg_tolerance={self.cg_tolerance}: must lie in [0, 1)")
        if not self.damping >= 0 or not 0 < self.shrink < 1:
            raise ValueError(
                f"damping={self.damping}: must not be negative; shrink={self.shrink}: must lie between 0 and "
                "1"
            )
        if self.curvature not in ("double_backward", "gauss_newton", "difference"):
            raise ValueError(
                f"curvature={self.curvature!r}: choose from double_backward, gauss_newton, difference"
            )


class NaturalGradient(NamedTuple):
    """Natural gradient of a surrogate objective: the solution x of `(F + damping) x = g`.

    F is the Fisher information, and g is the gradient of the surrogate. Vectors are flat and cover all
    parameters.
    """

    gradient: Float[Tensor, "numbers"]
    """Gradient of the surrogate."""
    direction: Float[Tensor, "numbers"]
    """Natural gradient, computed approximately by conjugate gradient."""
    fisher: Float[Tensor, "numbers"]
    """Product F x, where F is the Fisher information without damping, and x is `direction`."""
    surrogate: float
    """Value of the surrogate before the step."""
    residual: float
    """Norm of the residual of conjugate gradient, relative to the norm of `gradient`."""
    policy: Distribution
    """Action distribution of the policy before the step, without gradients."""

    @property
    def gain(self) -> float:
        """Dot product of `gradient` and `direction`; 0 if it is negative.

        A step with KL divergence d improves the surrogate by at most about `sqrt(2 * d * gain)`.
        """
        return max(0.0, float(self.gradient @ self.direction))


class TrustRegionStep(NamedTuple):
    """Result of a trust-region step."""

    is_accepted: bool
    """True if the weights have changed."""
    kl: Float[Tensor, "*agents"]
    """Mean of KL(old, new), in nats; one value per agent if `weights` has an axis for agents."""
    improvement: float
    """Improvement of the surrogate; 0 if the step was not accepted."""
    expected: float
    """Improvement that the linear model of the surrogate predicts for the full step."""
    backtracks: int
    """Number of backtracking steps."""
    residual: float
    """Relative residual of conjugate gradient; see `NaturalGradient`."""
    policy: Distribution
    """Action distribution of the policy after the step, without gradients."""


def conjugate_gradient(
    product: Product, right: Float[Tensor, "numbers"], iterations: int, tolerance: float = 0.0
) -> tuple[Float[Tensor, "numbers"], Float[Tensor, "numbers"]]:
    """Solve `A x = right` for a positive definite matrix A; return x and the residual `right - A x`.

    `product` multiplies a vector by A. Conjugate gradient (Hestenes and Stiefel 1952) stops early if the norm
    of the residual is at most `tolerance` times the norm of `right`, or if rounding makes A indefinite.
    """
    x, residual = torch.zeros_like(right), right.clone()
    search, square_norm = residual.clone(), float(residual @ residual)
    enough = tolerance**2 * square_norm
    for _ in range(iterations):
        if square_norm <= enough:
            break
        along = product(search)
        curvature = float(search @ along)
        if not curvature > 0:
            break
        x.add_(search, alpha=square_norm / curvature)
        residual.sub_(along, alpha=square_norm / curvature)
        before, square_norm = square_norm, float(residual @ residual)
        search.mul_(square_norm / before).add_(residual)
    return x, residual


def fisher_product(
    parameters: Sequence[Tensor],
    distribution: Callable[[], Distribution],
    current: Distribution,
    weights: Float[Tensor, "..."],
    curvature: Curvature,
) -> Product:
    """Return a function that multiplies a vector by the Fisher information of the policy.

    `distribution` computes the policy's distribution under the current parameters. `current` is a result of
    `distribution`, and its autograd graph is retained. The Fisher information is averaged over the batch;
    `weights` has the weight of each distribution. The parameters are unchanged after every product.
    """
    weights = weights / weights.sum()
    if curvature == "double_backward":
        divergence = (current.detach().kl(current) * weights).sum()
        slope = flatten(grad(divergence, parameters, create_graph=True, materialize_grads=True))
        return lambda vector: _vector_jacobian(slope, parameters, vector)
    outputs = current.outputs()
    if curvature == "gauss_newton":
        probe = torch.zeros_like(outputs, requires_grad=True)
        vjp = flatten(grad(outputs, parameters, probe, create_graph=True, materialize_grads=True))

        def push(vector: Tensor) -> Tensor:
            return grad(vjp, probe, vector, retain_graph=True)[0]

    else:

        def push(vector: Tensor) -> Tensor:
            return derivative_along(parameters, lambda: distribution().outputs(), vector)

    def product(vector: Tensor) -> Tensor:
        return _vector_jacobian(outputs, parameters, current.fisher(push(vector)) * weights[..., None])

    return product


@torch.no_grad()
def derivative_along(
    parameters: Sequence[Tensor], function: Callable[[], Tensor], vector: Float[Tensor, "numbers"]
) -> Tensor:
    """Return the derivative of `function` along `vector`, as a central difference over the parameters.

    The parameters are changed temporarily and restored bit for bit.
    """
    origin = flatten(parameters)
    precision = torch.finfo(origin.dtype)
    # Balances the rounding error, proportional to 1 / step, with the truncation error, proportional to
    # step^2.
    balance = precision.eps ** (1 / 3)
    step = balance * max(1.0, float(origin.norm())) / max(float(vector.norm()), precision.tiny)
    tries = _MAX_DIFFERENCES
    while True:
        set_parameters(parameters, origin.add(vector, alpha=step))
        ahead = function()
        set_parameters(parameters, origin.sub(vector, alpha=step))
        change = (ahead - function()).div_(2)
        set_parameters(parameters, origin)
        size, tries = float(change.square().mean().sqrt()), tries - 1
        if size <= 10 * balance or not tries:
            return change.div_(step)
        # The function is steep: the step leaves the region where it is approximately linear.
        step *= balance / size if math.isfinite(size) else balance


def natural_gradient(
    parameters: Sequence[Tensor],
    distribution: Callable[[], Distribution],
    surrogate: Callable[[Distribution], Float[Tensor, ""]],
    weights: Float[Tensor, "..."],
    config: TrustRegionConfig,
    sample: WeightedDistribution | None = None,
) -> NaturalGradient:
    """Return the natural gradient of a surrogate objective of the policy's distribution.

    Args:
        parameters: Parameters of the policy; they are unchanged.
        distribution: Computes the distribution under the current parameters, with gradients.
        surrogate: Objective to maximize, as a function of the distribution.
        weights: Weight of each distribution, as in `trust_region_step`.
        config: Damping, curvature and conjugate gradient.
        sample: Part of the batch over which the Fisher information is averaged; None for the whole batch. A
            part saves time, since the products with the Fisher information take most of it.
    """
    with _twice_differentiable(config.curvature):
        current = distribution()
        value = surrogate(current)
        gradient = _vector_jacobian(value, parameters, None)
        if not float(gradient @ gradient) > 0:  # zero or NaN gradient
            still = torch.zeros_like(gradient)
            return NaturalGradient(gradient, still, still, value.item(), 0.0, snapshot(current))
        if sample is None:
            product = fisher_product(parameters, distribution, current, weights, config.curvature)
        else:
            product = fisher_product(parameters, sample[0], sample[0](), sample[1], config.curvature)
        direction, residual = conjugate_gradient(
            lambda vector: product(vector).add_(vector, alpha=config.damping),
            gradient,
            config.cg_iterations,
            config.cg_tolerance,
        )
    fisher = (gradient - residual).sub_(direction, alpha=config.damping)
    relative = float(residual.norm() / gradient.norm())
    return NaturalGradient(gradient, direction, fisher, value.item(), relative, snapshot(current))


def trust_region_step(
    parameters: Sequence[Tensor],
    distribution: Callable[[], Distribution],
    surrogate: Callable[[Distribution], Float[Tensor, ""]],
    old: Distribution | None,
    weights: Float[Tensor, "..."],
    config: TrustRegionConfig,
    kl_limit: float | Float[Tensor, "agents"],
    displacement: Float[Tensor, "numbers"] | None = None,
    natural: NaturalGradient | None = None,
) -> TrustRegionStep:
    """Update the parameters to improve the surrogate, with a limit on the mean KL divergence from `old`.

    A step is accepted only if the exact divergence is within the limit and the surrogate improves by more
    than rounding. Otherwise the parameters are restored bit for bit.

    Args:
        parameters: Parameters to update.
        distribution: Computes the distribution under the current parameters, with gradients.
        surrogate: Objective to maximize, as a function of the distribution.
        old: Distribution from which the divergence is measured; None for the current distribution.
        weights: Weight of each distribution, such as 1 for agents that are alive and 0 for all others. With
            shape `[batch time]` one mean divergence is limited. With `[batch time agents]` the mean
            divergence of every agent is limited.
        config: Damping, conjugate gradient and backtracking.
        kl_limit: Maximum mean divergence in nats: the same number for every agent, or one number per agent.
        displacement: Current parameters minus the parameters of `old`; None if both are equal.
        natural: Natural gradient at the current parameters; None to compute it here.
    """
    if natural is None:
        natural = natural_gradient(parameters, distribution, surrogate, weights, config)
    limits = torch.as_tensor(kl_limit, dtype=weights.dtype, device=weights.device)
    old = natural.policy if old is None else snapshot(old)
    kl = mean_kl(old, natural.policy, weights)
    scale = _full_scale(natural, kl, limits, displacement)
    expected = scale * natural.gain
    if not scale > 0 or not math.isfinite(expected):
        return TrustRegionStep(False, kl, 0.0, 0.0, 0, natural.residual, natural.policy)
    origin = flatten(parameters).detach()
    rounding = 4 * torch.finfo(origin.dtype).eps * abs(natural.surrogate)
    with torch.no_grad():
        for attempt in range(config.backtracks + 1):
            set_parameters(parameters, origin.add(natural.direction, alpha=scale))
            new = distribution()
            new_kl = mean_kl(old, new, weights)
            improvement = float(surrogate(new)) - natural.surrogate
            within = bool((new_kl <= limits).all())
            if within and improvement > rounding:
                return TrustRegionStep(
                    True, new_kl, improvement, expected, attempt, natural.residual, snapshot(new)
                )
            # The divergence grows with the square of the step, which predicts the step at the limit.
            ratio = float((limits / new_kl).min().sqrt()) if not within else math.nan
            scale *= 0.95 * ratio if 0 < ratio < 1 else config.shrink
        set_parameters(parameters, origin)
    return TrustRegionStep(False, kl, 0.0, expected, config.backtracks, natural.residual, natural.policy)


def mean_kl(
    old: Distribution, new: Distribution, weights: Float[Tensor, "batch time *agents"]
) -> Float[Tensor, "*agents"]:
    """Return the weighted mean of KL(old, new), for each agent; 0 for an agent whose weights are all 0."""
    total = weights.sum(dim=(0, 1))
    return (old.kl(new) * weights).sum(dim=(0, 1)) / torch.where(total > 0, total, 1)


def snapshot(distribution: Distribution) -> Distribution:
    """Return a deep copy of the distribution without gradients; it does not share tensors with parameters."""
    return copy.deepcopy(distribution.detach())


def flatten(tensors: Sequence[Tensor]) -> Float[Tensor, "numbers"]:
    """Return a copy of all tensors as one flat vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def set_parameters(parameters: Sequence[Tensor], values: Float[Tensor, "numbers"]) -> None:
    """Copy a flat vector into the parameters. Autograd ignores the change, so retained graphs stay valid."""
    first = 0
    for parameter in parameters:
        count = parameter.numel()
        # Through `data`, since retained graphs must stay valid: these changes are undone.
        parameter.data.copy_(values[first : first + count].view_as(parameter))
        first += count


def _full_scale(natural: NaturalGradient, kl: Tensor, limits: Tensor, displacement: Tensor | None) -> float:
    """Return the scale s such that the step s x almost reaches the divergence limit, by a quadratic model.

    x is `natural.direction`, and F is the Fisher information. d is `displacement`: the current parameters
    minus the parameters from which the divergence is measured. The model of the mean divergence after the
    step is `kl + s d'Fx + s^2 x'Fx / 2`; `kl` is the divergence before the step. With several agents, `kl`
    and `limits` are averaged over the agents. Returns 0 if x'Fx is not positive.
    """
    square = float(natural.direction @ natural.fisher)
    if not square > 0:
        return 0.0
    across = float(displacement @ natural.fisher) if displacement is not None else 0.0
    margin = 2 * float((0.999 * limits - kl).mean())  # slightly below the limit, because of rounding
    return (math.sqrt(max(0.0, across**2 + square * margin)) - across) / square


def _vector_jacobian(outputs: Tensor, parameters: Sequence[Tensor], vector: Tensor | None) -> Tensor:
    return flatten(grad(outputs, parameters, vector, retain_graph=True, materialize_grads=True)).detach()


@contextlib.contextmanager
def _twice_differentiable(curvature: Curvature) -> Iterator[None]:
    """Disable cuDNN inside the `with` block if `curvature` needs second derivatives.

    Raises ValueError if the block needs the second derivative of a layer that has none.
    """
    if curvature == "difference":
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):  # cuDNN's recurrent layers have no second derivatives
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            if "derivative" not in str(error) and "differentia" not in str(error):
                raise
            raise ValueError(
                f"curvature={curvature!r} needs second derivatives, which a layer of this policy lacks "
                f"({error}); use curvature='difference'"
            ) from error
