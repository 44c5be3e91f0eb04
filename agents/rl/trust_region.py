"""One step of a policy to the border of a trust region: a natural gradient, its length, and a line search.

Schulman et al. 2015 (arXiv 1502.05477), appendix C. With g the gradient of what is to be improved and F the
Fisher information of the policy, averaged over its experience, conjugate gradient solves
`(F + damping) x = g`; the step `s x` has the length at which the quadratic model `s^2 x'Fx / 2` of the mean
divergence reaches the limit, and is shortened until the exact divergence is within the limit and the
surrogate is better. F is multiplied by vectors only, in one of three ways, which agree at the policy that is
looked at:

- `difference`: J'MJv, with J the derivative of the distribution's `outputs`, M its `fisher`, and Jv a central
  difference of `outputs` along v: for any layer that has a gradient, at two runs of the policy per product,
  more where it is steep.
- `gauss_newton`: the same with Jv as the derivative of `u -> J'u`, which reverse mode gives, so that one
  graph serves all products; no forward mode is needed, which torch lacks for its fused LSTM and attention
  kernels.
- `double_backward`: the gradient of the product of v with the gradient of the mean divergence.

What registered memories allow, as tests confirm on the CPU; who has no second derivative is told to use
`difference`:

    memory                                      CPU          CUDA
    gru, gtrxl, hcam, lstm, none, sink          all three    all three, with cuDNN switched off here
    titans, titans_mac, titans_mag, titans_mal  all three    `difference`: their kernel is differentiable once
    stack                                       what all of its parts allow
    layers with torch's fused attention         `difference` `difference`

`difference` is the default. One step of a policy of width 64 on 1,000 rows, milliseconds on one core, with
ten products (gauss_newton, double_backward, difference): none 47, 76, 39; gru 80, 105, 70 in segments of 25
steps and 274, 297, 168 of 100; lstm 75, 145, 46; hcam 265, 322, 545; titans 360, 545, 367. In float32 the
three directions agree to four digits.

Few products are enough. On simple_spread, steps found on 1,000 environment steps and judged on 26,000 others
gained, per square root of divergence, .0141 with a residual of .1 (6.2 products) and .0136 with .3 (3.8) at a
damping of .1, .0125 at .03 (9.7) and .0154 at .3 (4.0), after 10 updates; on their own data .35, .32, .42 and
.29: gradients of so few steps are mostly noise, which a sharper inverse amplifies. Over 120,000 steps of one
seed a damping of .1 learned faster than .5 all the same.
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
Experience = tuple[Callable[[], Distribution], Float[Tensor, "..."]]
"""The policy's distribution over some experience under its present parameters, and how much each entry
counts."""
Product = Callable[[Float[Tensor, "numbers"]], Float[Tensor, "numbers"]]


_LENGTHS = 3
"""How often a difference is taken, each time over a shorter step, before one that is too long is put up
with."""


@dataclass(frozen=True)
class TrustRegionConfig:
    """How steps to the border of a trust region are found. Raises ValueError on an impossible setting."""

    cg_iterations: int = 10
    """Most iterations of conjugate gradient, each one product with the Fisher information."""
    cg_tolerance: float = 0.1
    """Residual, relative to the gradient, below which no more are made: the gain is then within some
    percent."""
    damping: float = 0.1
    """What is added to the Fisher information's diagonal when solving; noisier gradients deserve more."""
    shrink: float = 0.8
    """Factor by which a step that did not improve the surrogate is shortened."""
    backtracks: int = 10
    """How often a step is shortened before it is given up and the weights are put back."""
    curvature: Curvature = "difference"
    """How the Fisher information is multiplied by a vector; `difference` works with any memory."""

    def __post_init__(self) -> None:
        if self.cg_iterations < 1 or self.backtracks < 0:
            raise ValueError(
                f"cg_iterations={self.cg_iterations} must be at least 1, backtracks={self.backtracks} at "
                "least 0"
            )
        if not 0 <= self.cg_tolerance < 1:
            raise ValueError(f"cg_tolerance={self.cg_tolerance}: must lie in [0, 1)")
        if not self.damping >= 0 or not 0 < self.shrink < 1:
            raise ValueError(
                f"damping={self.damping} must not be negative, shrink={self.shrink} must lie between 0 and 1"
            )
        if self.curvature not in ("double_backward", "gauss_newton", "difference"):
            raise ValueError(
                f"curvature={self.curvature!r}: choose double_backward, gauss_newton or difference"
            )


class NaturalGradient(NamedTuple):
    """The solution of `(F + damping) x = g`, as flat vectors over all parameters, and what goes with it."""

    gradient: Float[Tensor, "numbers"]
    """g, the gradient of the surrogate."""
    direction: Float[Tensor, "numbers"]
    """x, as far as conjugate gradient came."""
    fisher: Float[Tensor, "numbers"]
    """F x, without the damping."""
    surrogate: float
    """The surrogate before the step."""
    residual: float
    """Length of `(F + damping) x - g` relative to that of g."""
    policy: Distribution
    """The policy it was computed for, without gradients."""

    @property
    def gain(self) -> float:
        """Return g'x: the best improvement at a divergence of d is about `sqrt(2 d g'x)`."""
        return max(0.0, float(self.gradient @ self.direction))


class TrustRegionStep(NamedTuple):
    """What a step came to."""

    accepted: bool
    """Whether the weights moved."""
    kl: Float[Tensor, "*agents"]
    """Mean divergence from the old policy to the present one, in nats, per agent if there are several."""
    improvement: float
    """What the surrogate gained; 0 if not accepted."""
    expected: float
    """What it would have gained by its gradient alone, at the full step."""
    backtracks: int
    """How often the step was shortened."""
    residual: float
    """Of conjugate gradient, see `NaturalGradient`."""
    policy: Distribution
    """The policy under the present weights, without gradients."""


def conjugate_gradient(
    product: Product, right: Float[Tensor, "numbers"], iterations: int, tolerance: float = 0.0
) -> tuple[Float[Tensor, "numbers"], Float[Tensor, "numbers"]]:
    """Return x and the residual `right - A x`, solving `A x = right` for a positive A given by its product.

    Ends early where the residual is below `tolerance` of `right`, or rounding has made A look indefinite.
    Hestenes and Stiefel 1952.
    """
    x, residual = torch.zeros_like(right), right.clone()
    search, squared = residual.clone(), float(residual @ residual)
    enough = tolerance**2 * squared
    for _ in range(iterations):
        if squared <= enough:
            break
        along = product(search)
        curvature = float(search @ along)
        if not curvature > 0:
            break
        x.add_(search, alpha=squared / curvature)
        residual.sub_(along, alpha=squared / curvature)
        before, squared = squared, float(residual @ residual)
        search.mul_(squared / before).add_(residual)
    return x, residual


def fisher_product(
    parameters: Sequence[Tensor],
    distribution: Callable[[], Distribution],
    current: Distribution,
    weights: Float[Tensor, "..."],
    curvature: Curvature,
) -> Product:
    """Return the product with the Fisher information of `current`, averaged under `weights`.

    `distribution` gives the policy under the present parameters, `current` is what it gave, with its graph,
    which is kept; `weights` has the distribution's leading axes. Parameters are as before after every
    product.
    """
    weights = weights / weights.sum()
    if curvature == "double_backward":
        divergence = (current.detach().kl(current) * weights).sum()
        slope = flatten(grad(divergence, parameters, create_graph=True, materialize_grads=True))
        return lambda vector: _pull(slope, parameters, vector)
    outputs = current.outputs()
    if curvature == "gauss_newton":
        probe = torch.zeros_like(outputs, requires_grad=True)
        pulled = flatten(grad(outputs, parameters, probe, create_graph=True, materialize_grads=True))

        def push(vector: Tensor) -> Tensor:
            return grad(pulled, probe, vector, retain_graph=True)[0]

    else:

        def push(vector: Tensor) -> Tensor:
            return derivative_along(parameters, lambda: distribution().outputs(), vector)

    def product(vector: Tensor) -> Tensor:
        return _pull(outputs, parameters, current.fisher(push(vector)) * weights[..., None])

    return product


@torch.no_grad()
def derivative_along(
    parameters: Sequence[Tensor], function: Callable[[], Tensor], vector: Float[Tensor, "numbers"]
) -> Tensor:
    """Return the derivative of a function of the parameters along a vector, as a central difference.

    The parameters are moved to either side and put back bit for bit.
    """
    origin = flatten(parameters)
    precision = torch.finfo(origin.dtype)
    # Balances rounding, which counts for 1 / step, with the cubic term, which counts for step^2.
    balance = precision.eps ** (1 / 3)
    step = balance * max(1.0, float(origin.norm())) / max(float(vector.norm()), precision.tiny)
    tries = _LENGTHS
    while True:
        place(parameters, origin.add(vector, alpha=step))
        ahead = function()
        place(parameters, origin.sub(vector, alpha=step))
        change = (ahead - function()).div_(2)
        place(parameters, origin)
        size, tries = float(change.square().mean().sqrt()), tries - 1
        if size <= 10 * balance or not tries:
            return change.div_(step)
        # The function is steep: so long a step leaves the region in which it is straight.
        step *= balance / size if math.isfinite(size) else balance


def natural_gradient(
    parameters: Sequence[Tensor],
    distribution: Callable[[], Distribution],
    surrogate: Callable[[Distribution], Float[Tensor, ""]],
    weights: Float[Tensor, "..."],
    config: TrustRegionConfig,
    sample: Experience | None = None,
) -> NaturalGradient:
    """Return the direction in which the surrogate of the policy's distribution grows most per divergence.

    Args:
        parameters: Those that a step would move; they are left as they are.
        distribution: Gives the policy under the present parameters, with gradients.
        surrogate: What is to be improved, of such a policy.
        weights: How much each entry counts, as in `trust_region_step`.
        config: Damping, curvature and conjugate gradients.
        sample: Part of the experience over which the Fisher information, which takes most of the time, is
            averaged; None for all of it.
    """
    with _twice_differentiable(config.curvature):
        current = distribution()
        value = surrogate(current)
        gradient = _pull(value, parameters, None)
        if not float(gradient @ gradient) > 0:  # nothing to gain, or nothing that could be computed
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
    moved: Float[Tensor, "numbers"] | None = None,
    natural: NaturalGradient | None = None,
) -> TrustRegionStep:
    """Move the parameters so that the surrogate grows while the mean divergence from `old` keeps its limit.

    A step is taken only if the limits hold exactly and the surrogate is better by more than rounding;
    otherwise the parameters are put back bit for bit.

    Args:
        parameters: What is moved.
        distribution: Gives the policy under the present parameters, with gradients.
        surrogate: What is to be improved, of such a policy.
        old: The policy from which divergence is measured; None for the present one.
        weights: How much each entry counts, such as 1 for agents that are alive and 0 for others,
            `[batch time]`, or `[batch time agents]`: then every agent's own mean keeps its limit.
        config: Damping, conjugate gradients and backtracking.
        kl_limit: The greatest mean divergence, in nats; of everybody or of each agent.
        moved: How far the parameters already are from those of `old`, if they are.
        natural: The direction, if already known.
    """
    if natural is None:
        natural = natural_gradient(parameters, distribution, surrogate, weights, config)
    limits = torch.as_tensor(kl_limit, dtype=weights.dtype, device=weights.device)
    old = natural.policy if old is None else snapshot(old)
    kl = mean_kl(old, natural.policy, weights)
    scale = _full_scale(natural, kl, limits, moved)
    expected = scale * natural.gain
    if not scale > 0 or not math.isfinite(expected):
        return TrustRegionStep(False, kl, 0.0, 0.0, 0, natural.residual, natural.policy)
    origin = flatten(parameters).detach()
    rounding = 4 * torch.finfo(origin.dtype).eps * abs(natural.surrogate)
    with torch.no_grad():
        for attempt in range(config.backtracks + 1):
            place(parameters, origin.add(natural.direction, alpha=scale))
            new = distribution()
            tried = mean_kl(old, new, weights)
            improvement = float(surrogate(new)) - natural.surrogate
            within = bool((tried <= limits).all())
            if within and improvement > rounding:
                return TrustRegionStep(
                    True, tried, improvement, expected, attempt, natural.residual, snapshot(new)
                )
            # The divergence grows as the square of the step, which says where the limit lies.
            room = float((limits / tried).min().sqrt()) if not within else math.nan
            scale *= 0.95 * room if 0 < room < 1 else config.shrink
        place(parameters, origin)
    return TrustRegionStep(False, kl, 0.0, expected, config.backtracks, natural.residual, natural.policy)


def mean_kl(
    old: Distribution, new: Distribution, weights: Float[Tensor, "batch time *agents"]
) -> Float[Tensor, "*agents"]:
    """Return the mean divergence KL(old, new) under the weights, for each agent; 0 for one without weight."""
    total = weights.sum(dim=(0, 1))
    return (old.kl(new) * weights).sum(dim=(0, 1)) / torch.where(total > 0, total, 1)


def snapshot(distribution: Distribution) -> Distribution:
    """Return the distribution without gradients, and as it is now: some hold parameters, that will move."""
    return copy.deepcopy(distribution.detach())


def flatten(tensors: Sequence[Tensor]) -> Float[Tensor, "numbers"]:
    """Return all numbers of the tensors, in order, as one vector of its own."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


@torch.no_grad()
def place(parameters: Sequence[Tensor], values: Float[Tensor, "numbers"]) -> None:
    """Write a flat vector into the parameters, unseen by graphs that hold them."""
    first = 0
    for parameter in parameters:
        count = parameter.numel()
        # Through `data`: a graph that is to be used again must not see a change that will be undone.
        parameter.data.copy_(values[first : first + count].view_as(parameter))
        first += count


def _full_scale(natural: NaturalGradient, kl: Tensor, limits: Tensor, moved: Tensor | None) -> float:
    """Return s for which `|moved + s x|^2 / 2`, measured by F, is the limit; 0 if there is none."""
    square = float(natural.direction @ natural.fisher)
    if not square > 0:
        return 0.0
    across = float(moved @ natural.fisher) if moved is not None else 0.0
    room = 2 * float((0.999 * limits - kl).mean())  # a little short, lest rounding alone breaks the limit
    return (math.sqrt(max(0.0, across**2 + square * room)) - across) / square


def _pull(outputs: Tensor, parameters: Sequence[Tensor], vector: Tensor | None) -> Tensor:
    return flatten(grad(outputs, parameters, vector, retain_graph=True, materialize_grads=True)).detach()


@contextlib.contextmanager
def _twice_differentiable(curvature: Curvature) -> Iterator[None]:
    """Choose kernels with second derivatives where they are needed, and say what to do if there are none."""
    if curvature == "difference":
        yield
        return
    with torch.backends.cudnn.flags(enabled=False):  # its recurrent layers have none
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            if "derivative" not in str(error) and "differentia" not in str(error):
                raise
            raise ValueError(
                f"curvature={curvature!r} needs second derivatives that a layer of this policy lacks "
                f"({error}); use curvature='difference'"
            ) from error
