from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import distributions as reference

from scrubjay.agents.rl.composite import make_action_head
from scrubjay.agents.rl.distributions import (
    Categorical,
    CategoricalHead,
    DiagonalGaussian,
    IndependentCategoricals,
    stack_agents,
)
from scrubjay.agents.rl.encoders.observation import category_sizes


def test_categorical_agrees_with_torch() -> None:
    logits = torch.randn(5, 4, 7, dtype=torch.float64)
    ours, theirs = Categorical(logits), reference.Categorical(logits=logits)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), theirs.mode)


def test_independent_categoricals_are_a_product() -> None:
    logits = torch.randn(6, 3, 4, dtype=torch.float64)
    ours = IndependentCategoricals(logits)
    theirs = reference.Independent(reference.Categorical(logits=logits), 1)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())


def test_the_barrier_is_the_divergence_from_uniform_choices() -> None:
    logits = torch.randn(6, 3, 4, dtype=torch.float64)
    theirs = reference.Categorical(logits=logits)
    uniform = reference.Categorical(logits=torch.zeros_like(logits))
    expected = reference.kl_divergence(uniform, theirs)
    torch.testing.assert_close(Categorical(logits).barrier(), expected)
    torch.testing.assert_close(IndependentCategoricals(logits).barrier(), expected.sum(dim=-1))
    # Choices that there are not count for nothing: those of 2 are among as many columns as those of 4.
    head = CategoricalHead(spaces.MultiDiscrete([2, 4]), dim=8).double()
    features = torch.randn(5, 8, dtype=torch.float64)
    two, four = head.linear(features).unflatten(-1, (2, 4)).unbind(1)
    apart = Categorical(two[:, :2]).barrier() + Categorical(four).barrier()
    distribution = head(features)
    assert isinstance(distribution, IndependentCategoricals)
    torch.testing.assert_close(distribution.barrier(), apart)


def test_the_barrier_pulls_at_choices_that_the_entropy_has_given_up() -> None:
    logits = torch.tensor([20.0, 0.0, 0.0], dtype=torch.float64, requires_grad=True)
    distribution = Categorical(logits)
    (by_barrier,) = torch.autograd.grad(-distribution.barrier(), logits, retain_graph=True)
    (by_entropy,) = torch.autograd.grad(distribution.entropy(), logits)
    torch.testing.assert_close(by_barrier, 1 / 3 - distribution.log_probs.detach().exp())
    assert by_barrier[1] > 0.3
    assert by_entropy[1] < 1e-6


def test_diagonal_gaussian_agrees_with_torch() -> None:
    mean, log_std = torch.randn(5, 2, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    ours = DiagonalGaussian(mean, log_std)
    theirs = reference.Independent(reference.Normal(mean, log_std.exp().expand_as(mean)), 1)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert torch.equal(ours.mode(), mean)


def test_categorical_samples_with_its_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.3, 0.15, 0.05])
    count = 40_000
    samples = Categorical(probabilities.log().expand(count, 4)).sample(torch.Generator().manual_seed(0))
    frequencies = samples.bincount(minlength=4) / count
    # Four standard errors of the most uncertain frequency.
    assert (frequencies - probabilities).abs().max() < 4 * 0.5 / count**0.5


def test_gaussian_samples_with_its_moments() -> None:
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([0.5, -1.0])
    count = 40_000
    samples = DiagonalGaussian(mean.expand(count, 2), log_std).sample(torch.Generator().manual_seed(0))
    error = 4 * log_std.exp() / count**0.5
    assert ((samples.mean(dim=0) - mean).abs() < error).all()
    assert ((samples.std(dim=0) - log_std.exp()).abs() < error).all()


@pytest.mark.parametrize(
    "space", [spaces.Discrete(5, start=-2), spaces.Discrete(3), spaces.MultiDiscrete([2, 5, 3])]
)
def test_sampling_repeats_with_its_generator(space: spaces.Space) -> None:
    distribution = make_action_head(space, 8)(torch.randn(50, 8))
    first = distribution.sample(torch.Generator().manual_seed(3))
    assert torch.equal(first, distribution.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(first, distribution.sample(torch.Generator().manual_seed(4)))


@pytest.mark.parametrize(
    "space",
    [
        spaces.Discrete(5, start=-2),
        spaces.MultiDiscrete([2, 5, 3], start=[1, 0, -4]),
        spaces.MultiDiscrete(np.array([[2, 3], [4, 2]])),
        spaces.MultiBinary(4),
        spaces.Box(-0.5, 0.25, (2, 3), np.float32),
    ],
    ids=str,
)
def test_actions_handed_out_are_in_the_space_and_reach_all_of_it(space: spaces.Space) -> None:
    head = make_action_head(space, 8)
    with torch.no_grad():
        actions = head.to_env(head(torch.zeros(400, 8)).sample(torch.Generator().manual_seed(0)))
    assert all(space.contains(action) for action in actions)
    low, high = actions.min(axis=0), actions.max(axis=0)
    if isinstance(space, spaces.Box):
        np.testing.assert_array_equal(low, space.low)
        np.testing.assert_array_equal(high, space.high)
    elif isinstance(space, spaces.MultiBinary):
        assert low.max() == 0
        assert high.min() == 1
    else:
        sizes, starts = category_sizes(space)
        np.testing.assert_array_equal(low.ravel(), starts)
        np.testing.assert_array_equal(high.ravel(), starts + sizes - 1)


def test_choices_that_do_not_exist_have_no_probability_and_no_entropy() -> None:
    head = make_action_head(spaces.MultiDiscrete([2, 5]), 8)
    distribution = head(torch.zeros(1, 8))
    expected = np.log(2) + np.log(5)
    assert distribution.entropy().item() == pytest.approx(expected)
    assert distribution.log_prob(torch.tensor([[1, 4]])).item() == pytest.approx(-expected)
    distribution.entropy().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())


def test_unsupported_action_spaces_are_named() -> None:
    with pytest.raises(TypeError, match=r"Text.*use Discrete"):
        make_action_head(spaces.Text(5), 8)
    with pytest.raises(TypeError, match="Box of floats"):
        make_action_head(spaces.Box(0, 5, (2,), np.int64), 8)


@pytest.mark.parametrize(("low", "high"), [(5.0, 10.0), (-100.0, 100.0), (-0.01, 0.01)])
def test_a_new_policy_covers_the_range_of_a_bounded_box(low, high):
    head = make_action_head(spaces.Box(low, high, (1,)), 8)
    with torch.no_grad():
        samples = head(torch.zeros(4000, 8)).sample(torch.Generator().manual_seed(0))
    actions = head.to_env(samples)
    inside = (actions > low) & (actions < high)
    assert 0.6 < inside.mean() < 0.75  # a normal variable is within one deviation 68 % of the time
    assert abs(actions.mean() - (low + high) / 2) < 0.05 * (high - low)


def test_an_unbounded_box_is_left_in_its_own_units():
    head = make_action_head(spaces.Box(-np.inf, np.inf, (2,)), 8)
    actions = torch.tensor([[3.0, -40.0]])
    assert head.to_env(actions).tolist() == [[3.0, -40.0]]


def _pair(kind: str) -> tuple:
    def draw():
        if kind == "categorical":
            logits = torch.randn(5, 3, 4, dtype=torch.float64)
            return Categorical(logits), reference.Categorical(logits=logits)
        if kind == "independent":
            logits = torch.randn(5, 3, 2, 4, dtype=torch.float64)
            return IndependentCategoricals(logits), reference.Independent(
                reference.Categorical(logits=logits), 1
            )
        mean, log_std = torch.randn(5, 3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
        return DiagonalGaussian(mean, log_std), reference.Independent(
            reference.Normal(mean, log_std.exp().expand_as(mean)), 1
        )

    return draw(), draw()


KINDS = pytest.mark.parametrize("kind", ["categorical", "independent", "gaussian"])


@KINDS
def test_divergence_is_torchs_and_zero_from_itself(kind):
    (ours, theirs), (our_other, their_other) = _pair(kind)
    torch.testing.assert_close(ours.kl(our_other), reference.kl_divergence(theirs, their_other))
    torch.testing.assert_close(ours.kl(ours), torch.zeros(5, 3, dtype=torch.float64))


@KINDS
def test_fisher_is_the_curvature_of_the_divergence(kind):
    (ours, _), _ = _pair(kind)
    if kind == "gaussian":
        centre = torch.cat([ours.mean[0, 0], ours.log_std])
        build = lambda z: DiagonalGaussian(z[:4], z[4:])
    else:
        shape = ours.log_probs[0, 0].shape
        centre = ours.log_probs[0, 0].flatten()
        build = lambda z: type(ours)(z.view(shape))
    old = build(centre)
    hessian = torch.autograd.functional.hessian(lambda z: old.kl(build(z)), centre)
    jacobian = torch.autograd.functional.jacobian(lambda z: build(z).outputs(), centre)
    products = torch.stack([jacobian.T @ old.fisher(column) for column in jacobian.T], dim=-1)
    torch.testing.assert_close(products, hessian)


@KINDS
def test_agents_are_taken_apart_and_put_together(kind):
    (ours, _), _ = _pair(kind)
    together = stack_agents([ours.agent(index) for index in range(3)])
    torch.testing.assert_close(together.outputs(), ours.outputs())
    actions = ours.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(together.log_prob(actions), ours.log_prob(actions))
    torch.testing.assert_close(together.agent(1).outputs(), ours.outputs()[:, 1])
    assert together.agent(2).entropy().shape == (5,)
