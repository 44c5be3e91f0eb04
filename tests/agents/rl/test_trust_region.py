from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scrubjay.agents.rl.distributions import (
    Categorical,
    DiagonalGaussian,
    Distribution,
    IndependentCategoricals,
)
from scrubjay.agents.rl.trust_region import (
    Curvature,
    TrustRegionConfig,
    conjugate_gradient,
    fisher_product,
    flatten,
    mean_kl,
    natural_gradient,
    set_parameters,
    snapshot,
    trust_region_step,
)
from scrubjay.memory import list_memories, make

CURVATURES = get_args(Curvature)
TIGHT = TrustRegionConfig(cg_iterations=60, cg_tolerance=0.0, damping=0.0)


class Actor(nn.Module):
    """Policy of an encoder, a memory and a head on fixed inputs."""

    def __init__(self, memory: str, kind: str, batch: int = 3, time: int = 5, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.kind = kind
        self.encoder = nn.Sequential(nn.Linear(4, 8), nn.Tanh())
        self.memory = make(memory, dim=8)
        self.head = nn.Linear(8, 6)
        self.log_std = nn.Parameter(0.3 * torch.randn(6)) if kind == "gaussian" else None
        self.double()
        self.inputs = torch.randn(batch, time, 4, dtype=torch.float64)
        self.start = torch.rand(batch, time) < 0.2
        self.weights = (torch.rand(batch, time) < 0.7).double()
        self.weights[0, 0] = 1

    def forward(self) -> Distribution:
        state = self.memory.initial_state(len(self.inputs))
        features, _ = self.memory(self.encoder(self.inputs), state, self.start)
        numbers = self.head(features)
        if self.kind == "gaussian":
            assert self.log_std is not None
            return DiagonalGaussian(numbers, self.log_std)
        if self.kind == "multi":
            return IndependentCategoricals(numbers.unflatten(-1, (2, 3)))
        return Categorical(numbers)


def random_direction(parameters: Sequence[Tensor], scale: float = 0.3) -> Tensor:
    generator = torch.Generator().manual_seed(9)
    count = sum(parameter.numel() for parameter in parameters)
    return scale * torch.randn(count, generator=generator, dtype=parameters[0].dtype)


def gain(actor: Actor, seed: int = 1) -> tuple[Distribution, Callable[[Distribution], Tensor]]:
    """Return the sampling distribution, and a surrogate with random advantages of its actions."""
    generator = torch.Generator().manual_seed(seed)
    old = snapshot(actor())
    actions = old.sample(generator)
    before = old.log_prob(actions)
    advantages = torch.randn(before.shape, generator=generator, dtype=torch.float64)
    total = actor.weights.sum()
    return (
        old,
        lambda new: ((new.log_prob(actions) - before).exp() * advantages * actor.weights).sum() / total,
    )


def some_parameters(actor: Actor) -> list[tuple[str, nn.Parameter]]:
    return [
        pair for pair in actor.named_parameters() if not pair[0].startswith("memory") or pair[1].ndim == 1
    ]


@functools.cache
def hessian_of_divergence(memory: str, kind: str) -> Tensor:
    """Return the Hessian of the mean divergence at the current policy, without the memory's weights.

    Those would make it large; all gradients of the encoder pass through them.
    """
    actor = Actor(memory, kind, batch=2, time=3)
    parameters = dict(some_parameters(actor))
    names, sizes = list(parameters), [parameter.shape for parameter in parameters.values()]
    with torch.no_grad():
        old = actor()

    def divergence(flat: Tensor) -> Tensor:
        parts = flat.split([size.numel() for size in sizes])
        values = {name: part.view(size) for name, part, size in zip(names, parts, sizes, strict=True)}
        new = torch.func.functional_call(actor, values, ())
        return (old.kl(new) * actor.weights).sum() / actor.weights.sum()

    flat = flatten(list(parameters.values())).detach()
    hessian = torch.autograd.functional.hessian(divergence, flat)
    assert isinstance(hessian, Tensor)
    return hessian


@pytest.mark.one_in(4)
@pytest.mark.parametrize("curvature", CURVATURES)
@pytest.mark.parametrize("kind", ["categorical", "multi", "gaussian"])
@pytest.mark.parametrize("memory", ["none", "gru"])
def test_products_are_those_of_the_divergences_hessian(memory: str, kind: str, curvature: Curvature) -> None:
    actor = Actor(memory, kind, batch=2, time=3)
    parameters: list[Tensor] = [parameter for _, parameter in some_parameters(actor)]
    product = fisher_product(parameters, actor, actor(), actor.weights, curvature)
    hessian = hessian_of_divergence(memory, kind)
    before = flatten(parameters).detach()
    tolerance = 1e-6 if curvature == "difference" else 1e-10
    for scale in (1e-3, 1.0, 1e3):  # of no influence on the relative error
        vector = random_direction(parameters, scale)
        expected = hessian @ vector
        assert (product(vector) - expected).norm() < tolerance * expected.norm()
    assert torch.equal(flatten(parameters), before)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory", list_memories())
def test_every_memory_allows_what_the_table_says(memory: str) -> None:
    # On the CPU: all three. The reference needs first derivatives only: J row by row.
    actor = Actor(memory, "categorical", batch=2, time=4)
    parameters = list(actor.parameters())
    current = actor()
    outputs = current.outputs()
    rows = [
        flatten(torch.autograd.grad(out, parameters, retain_graph=True, materialize_grads=True))
        for out in outputs.flatten()
    ]
    jacobian = torch.stack(rows)
    vector = random_direction(parameters, 1.0)
    weights = (actor.weights / actor.weights.sum())[..., None]
    output_change = (jacobian @ vector).view_as(outputs)
    expected = jacobian.T @ (current.fisher(output_change) * weights).flatten()
    for curvature in CURVATURES:
        product = fisher_product(parameters, actor, current, actor.weights, curvature)
        error = (product(vector) - expected).norm() / expected.norm()
        # Differences cross the kinks of layers that have some.
        assert error < (1e-4 if curvature == "difference" else 1e-9), curvature


@pytest.mark.parametrize("memory", ["none", "gru", "sink"])
def test_single_precision_finds_the_same_direction(memory: str) -> None:
    actor = Actor(memory, "categorical")
    for part in (actor, *actor.children()):
        part.float()
    actor.inputs, actor.weights = actor.inputs.float(), actor.weights.float()
    _, surrogate = gain(actor)
    directions = [
        natural_gradient(
            list(actor.parameters()), actor, surrogate, actor.weights, TrustRegionConfig(curvature=curvature)
        ).direction
        for curvature in CURVATURES
    ]
    for direction in directions[1:]:
        assert torch.cosine_similarity(direction, directions[0], dim=0) > 0.9999


class Attentive(nn.Module):
    """Policy with torch's fused attention, which has no second derivative on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 24)
        self.inputs = torch.randn(2, 5, 8)

    def forward(self) -> Distribution:
        query, keys, values = self.linear(self.inputs)[:, None].chunk(3, dim=-1)
        return Categorical(nn.functional.scaled_dot_product_attention(query, keys, values).squeeze(1))


@pytest.mark.parametrize("curvature", CURVATURES)
def test_layers_without_second_derivatives_need_the_difference(curvature: Curvature) -> None:
    torch.manual_seed(0)
    actor = Attentive()
    old = actor().detach()
    actions = old.mode()

    def step() -> bool:
        return trust_region_step(
            list(actor.parameters()),
            actor,
            lambda new: new.log_prob(actions).mean(),
            old,
            torch.ones(2, 5),
            TrustRegionConfig(curvature=curvature),
            0.01,
        ).is_accepted

    if curvature == "difference":
        assert step()
    else:
        with pytest.raises(ValueError, match="use curvature='difference'"):
            step()


@given(st.integers(1, 12), st.integers(0, 2**31))
@settings(max_examples=30, deadline=None)
def test_conjugate_gradient_solves_as_a_dense_solver_does(size: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator, dtype=torch.float64)
    matrix = root @ root.T + torch.eye(size, dtype=torch.float64)
    right = torch.randn(size, generator=generator, dtype=torch.float64)
    solution, residual = conjugate_gradient(lambda vector: matrix @ vector, right, 3 * size)
    torch.testing.assert_close(solution, torch.linalg.solve(matrix, right), rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(residual, right - matrix @ solution, rtol=0, atol=1e-8)


def test_conjugate_gradient_stops_at_its_tolerance() -> None:
    matrix = torch.diag(torch.logspace(0, 3, 40, dtype=torch.float64))
    right = torch.ones(40, dtype=torch.float64)
    calls = []

    def product(vector: Tensor) -> Tensor:
        calls.append(1)
        return matrix @ vector

    solution, _ = conjugate_gradient(product, right, 1000, tolerance=0.01)
    assert (matrix @ solution - right).norm() <= 0.01 * right.norm()
    assert len(calls) < 1000


def test_conjugate_gradient_refuses_directions_of_no_curvature() -> None:
    solution, residual = conjugate_gradient(lambda vector: -vector, torch.ones(3), 5)
    assert torch.equal(solution, torch.zeros(3))
    assert torch.equal(residual, torch.ones(3))


def means(distribution: Distribution) -> Tensor:
    assert isinstance(distribution, DiagonalGaussian)
    return distribution.mean


def test_a_step_on_a_quadratic_problem_is_known_in_closed_form() -> None:
    # Means of a Gaussian of fixed deviation: the divergence is |change|^2 / 2 variance, the gain linear.
    mean = nn.Parameter(torch.tensor([0.4, -1.0, 2.0], dtype=torch.float64))
    log_std = torch.tensor([0.3, -0.2, 0.0], dtype=torch.float64)
    slope = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    weights = torch.ones(2, 4, dtype=torch.float64)
    limit = 0.02

    def distribution() -> DiagonalGaussian:
        return DiagonalGaussian(mean.expand(2, 4, 3), log_std)

    before = mean.detach().clone()
    step = trust_region_step(
        [mean],
        distribution,
        lambda new: (means(new) @ slope).mean(),
        distribution().detach(),
        weights,
        TIGHT,
        limit,
    )
    direction = slope * (2 * log_std).exp()
    length = math.sqrt(2 * 0.999 * limit / float(slope @ direction))
    torch.testing.assert_close(mean.detach() - before, length * direction)
    assert step.is_accepted
    assert step.backtracks == 0
    assert float(step.kl) == pytest.approx(0.999 * limit)
    assert step.improvement == pytest.approx(length * float(slope @ direction))
    assert step.expected == pytest.approx(step.improvement)


@pytest.mark.slow
@given(
    memory=st.sampled_from(["none", "gru"]),
    kind=st.sampled_from(["categorical", "multi", "gaussian"]),
    curvature=st.sampled_from(CURVATURES),
    limit=st.floats(1e-6, 1.0),
    damping=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_a_step_keeps_the_limit_and_improves_or_leaves_no_trace(
    memory: str, kind: str, curvature: Curvature, limit: float, damping: float, seed: int
) -> None:
    actor = Actor(memory, kind, seed=seed)
    old, surrogate = gain(actor, seed)
    parameters = list(actor.parameters())
    before = flatten(parameters).detach()
    config = TrustRegionConfig(curvature=curvature, damping=damping)
    step = trust_region_step(parameters, actor, surrogate, old, actor.weights, config, limit)
    new = snapshot(actor())
    if step.is_accepted:
        exact = (old.kl(new) * actor.weights).sum() / actor.weights.sum()
        assert float(exact) <= limit
        assert float(surrogate(new) - surrogate(old)) == pytest.approx(step.improvement)
        assert step.improvement > 0
    else:
        assert torch.equal(flatten(parameters), before)


def test_small_steps_use_the_whole_limit() -> None:
    actor = Actor("gru", "categorical")
    old, surrogate = gain(actor)
    step = trust_region_step(
        list(actor.parameters()), actor, surrogate, old, actor.weights, TrustRegionConfig(), 1e-7
    )
    assert step.is_accepted
    assert float(step.kl) > 0.9e-7
    assert step.improvement == pytest.approx(step.expected, rel=0.02)


def test_every_agent_keeps_its_own_limit() -> None:
    actor = Actor("none", "categorical", batch=6, time=4)
    old, surrogate = gain(actor)
    limits = torch.tensor([0.02, 1e-4, 0.01, 0.05], dtype=torch.float64)

    def as_team(values: Tensor) -> Tensor:  # the four steps of time as agents of one step
        return values[:, None]

    class Team:
        def __init__(self, one: Distribution) -> None:
            self.one = one

        def detach(self) -> Team:
            return Team(self.one.detach())

        def kl(self, other: Team) -> Tensor:
            return as_team(self.one.kl(other.one))

        def outputs(self) -> Tensor:
            return as_team(self.one.outputs())

        def fisher(self, direction: Tensor) -> Tensor:
            return as_team(self.one.fisher(direction.squeeze(1)))

    step = trust_region_step(
        list(actor.parameters()),
        lambda: Team(actor()),  # pyright: ignore[reportArgumentType]
        lambda new: surrogate(new.one),  # pyright: ignore[reportAttributeAccessIssue]
        Team(old),  # pyright: ignore[reportArgumentType]
        as_team(actor.weights),
        TrustRegionConfig(),
        limits,
    )
    assert step.is_accepted
    expected = (old.kl(actor()) * actor.weights).sum(dim=0) / actor.weights.sum(dim=0)
    torch.testing.assert_close(step.kl, expected.detach())
    assert (step.kl <= limits).all()


def test_steps_from_moved_weights_measure_from_where_they_began() -> None:
    # Gaussian means again: after a step a, the longest step along b has |a + s b| at the limit.
    mean = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    log_std, weights = torch.zeros(2, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)

    def distribution() -> DiagonalGaussian:
        return DiagonalGaussian(mean.expand(1, 1, 2), log_std)

    old = snapshot(distribution())
    already = torch.tensor([0.3, 0.1], dtype=torch.float64)
    set_parameters([mean], already)
    slope = torch.tensor([0.2, 1.0], dtype=torch.float64)
    limit = 0.5
    step = trust_region_step(
        [mean],
        distribution,
        lambda new: (means(new) @ slope).sum(),
        old,
        weights,
        TIGHT,
        limit,
        displacement=already,
    )
    assert step.is_accepted
    torch.testing.assert_close(mean.detach().square().sum() / 2, torch.tensor(0.999 * limit).double())
    change = mean.detach() - already
    torch.testing.assert_close(change / change.norm(), slope / slope.norm())


def test_nothing_moves_where_nothing_is_to_be_gained() -> None:
    actor = Actor("gru", "categorical")
    old, _ = gain(actor)
    parameters = list(actor.parameters())
    before = flatten(parameters).detach()
    actions = old.mode()
    for surrogate in (
        lambda new: 0.0 * new.log_prob(actions).mean(),
        # The old policy is the best one: the gradient is rounding alone, and any step loses.
        lambda new: 5.0 - old.kl(new).mean(),
        lambda new: math.nan * new.log_prob(actions).mean(),
    ):
        step = trust_region_step(parameters, actor, surrogate, old, actor.weights, TrustRegionConfig(), 0.01)
        assert not step.is_accepted
        assert step.improvement == 0
        assert torch.equal(flatten(parameters), before)


def test_a_policy_that_is_already_certain_stays() -> None:
    logits = nn.Parameter(torch.tensor([60.0, 0.0, -3.0]))

    def distribution() -> Categorical:
        return Categorical(logits.expand(2, 3, 3))

    old = distribution().detach()
    before = logits.detach().clone()
    advantages = torch.tensor([1.0, 0.0, -2.0])
    step = trust_region_step(
        [logits],
        distribution,
        lambda new: (new.outputs().exp() * advantages).sum(-1).mean(),
        old,
        torch.ones(2, 3),
        TrustRegionConfig(),
        0.01,
    )
    assert not step.is_accepted
    assert torch.equal(logits, before)


@pytest.mark.parametrize("curvature", CURVATURES)
def test_weights_come_back_bit_for_bit_from_a_failed_search(curvature: Curvature) -> None:
    actor = Actor("gru", "gaussian")
    old, surrogate = gain(actor)
    parameters = list(actor.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    natural = natural_gradient(
        parameters, actor, surrogate, actor.weights, TrustRegionConfig(curvature=curvature)
    )
    # Promises a gain that no step keeps.
    boastful = natural._replace(surrogate=natural.surrogate + 10)
    step = trust_region_step(
        parameters, actor, surrogate, old, actor.weights, TrustRegionConfig(), 0.01, natural=boastful
    )
    assert not step.is_accepted
    assert step.backtracks == TrustRegionConfig().backtracks
    assert all(torch.equal(now, then) for now, then in zip(parameters, before, strict=True))


def test_entries_without_weight_do_not_count() -> None:
    old = Categorical(torch.randn(2, 3, 4))
    new = Categorical(torch.randn(2, 3, 4))
    weights = torch.tensor([[1.0, 0, 1], [0, 0, 0]])
    expected = old.kl(new)[0, [0, 2]].mean()
    torch.testing.assert_close(mean_kl(old, new, weights), expected)
    assert float(mean_kl(old, new, torch.zeros(2, 3))) == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("cg_iterations", 0),
        ("cg_tolerance", 1.0),
        ("damping", -0.1),
        ("damping", math.nan),
        ("shrink", 1.0),
        ("backtracks", -1),
        ("curvature", "exact"),
    ],
)
def test_impossible_settings_are_named(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=field):
        TrustRegionConfig(**{field: value})  # pyright: ignore[reportArgumentType]
