"""Nested action spaces, half-bounded Boxes and state-dependent deviations, and torch's distributions."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, iterate
from torch import distributions as reference

from scrubjay.agents import Policy, PolicyConfig, PPOConfig, Spaces
from scrubjay.agents.rl.composite import (
    Composite,
    CompositeHead,
    action_leaves,
    is_discrete,
    make_action_head,
    select_row,
    split_actions,
)
from scrubjay.agents.rl.distributions import Categorical, DiagonalGaussian, IndependentCategoricals
from scrubjay.memory import make_config

LEAVES = [spaces.Discrete(4), spaces.MultiDiscrete([3, 3]), spaces.Box(-1, 1, (2,))]
NESTED = spaces.Dict(
    {
        "turn": spaces.Discrete(3, start=-1),
        "arm": spaces.Tuple([spaces.Box(-0.5, 0.25, (2, 2)), spaces.MultiBinary(2)]),
        "hand": spaces.Dict({"fingers": spaces.MultiDiscrete([2, 3]), "grip": spaces.Box(0, np.inf, (1,))}),
    }
)
DISCRETE = spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete(np.array([[2, 3], [4, 2]]))])
OBSERVATION = spaces.Box(-1, 1, (3,), np.float32)
ALL_REAL = spaces.Box(-np.inf, np.inf, (2,))


def draw() -> tuple[Composite, list[Any]]:
    """Return a random distribution over LEAVES and torch's distributions of its parts."""
    one, two = torch.randn(5, 6, 4).double(), torch.randn(5, 6, 2, 3).double()
    mean, log_std = torch.randn(5, 6, 2).double(), torch.randn(5, 6, 2).double()
    ours = Composite(
        [Categorical(one), IndependentCategoricals(two), DiagonalGaussian(mean, log_std)], LEAVES
    )
    independent = reference.Independent
    theirs = [
        reference.Categorical(logits=one),
        independent(reference.Categorical(logits=two), 1),
        independent(reference.Normal(mean, log_std.exp()), 1),
    ]
    return ours, theirs


def test_numbers_are_the_sums_of_torchs():
    (ours, theirs), (our_other, their_other) = draw(), draw()
    parts = [part.sample() for part in theirs]
    actions = torch.cat([parts[0][..., None].double(), parts[1].double(), parts[2]], dim=-1)
    expected = sum(part.log_prob(own) for part, own in zip(theirs, parts, strict=True))
    torch.testing.assert_close(ours.log_prob(actions), expected)
    torch.testing.assert_close(ours.entropy(), sum(part.entropy() for part in theirs))
    divergences = [reference.kl_divergence(*pair) for pair in zip(theirs, their_other, strict=True)]
    torch.testing.assert_close(ours.kl(our_other), sum(divergences))
    torch.testing.assert_close(ours.kl(ours.detach()), torch.zeros(5, 6).double())
    for part, again in zip(parts, split_actions(LEAVES, actions), strict=True):
        assert torch.equal(part, again)
        assert part.dtype == again.dtype


def test_the_log_probability_has_torchs_gradients():
    features = torch.randn(7, 8).double()
    head = CompositeHead(NESTED, 8).double()
    actions = head(features).sample(torch.Generator().manual_seed(0)).detach()
    total = torch.zeros(())
    for leaf, part, own in zip(head.leaves, head.heads, split_actions(head.leaves, actions), strict=True):
        distribution = part(features)
        if isinstance(leaf, spaces.Box):
            theirs = reference.Normal(distribution.mean, distribution.log_std.exp())
        else:
            theirs = reference.Categorical(logits=distribution.log_probs)
        total = total + theirs.log_prob(own).sum()
    names, parameters = zip(*head.named_parameters(), strict=True)
    expected = torch.autograd.grad(total, parameters, retain_graph=True)
    actual = torch.autograd.grad(head(features).log_prob(actions).sum(), parameters)
    for name, left, right in zip(names, actual, expected, strict=True):
        torch.testing.assert_close(left, right, msg=name)
        assert left.abs().max() > 0


def test_samples_have_the_probabilities_of_the_parts_and_are_independent():
    count = 20_000
    chances, log_std = torch.tensor([0.5, 0.3, 0.15, 0.05]), torch.tensor([0.5, -1.0])
    pairs = torch.tensor([[0.2, 0.8, 0.0], [0.1, 0.3, 0.6]])
    mean = torch.tensor([1.0, -2.0])
    parts = [
        Categorical(chances.log().expand(count, 4)),
        IndependentCategoricals(pairs.log().clamp_min(-1e9).expand(count, 2, 3)),
        DiagonalGaussian(mean.expand(count, 2), log_std),
    ]
    one, two, numbers = split_actions(
        LEAVES, Composite(parts, LEAVES).sample(torch.Generator().manual_seed(0))
    )
    margin = 4 * 0.5 / count**0.5  # four standard errors of the most uncertain frequency
    assert (one.bincount(minlength=4) / count - chances).abs().max() < margin
    for column in range(2):
        assert (two[:, column].bincount(minlength=3) / count - pairs[column]).abs().max() < margin
    assert ((numbers.mean(dim=0) - mean).abs() < 4 * log_std.exp() / count**0.5).all()
    assert ((numbers.std(dim=0) - log_std.exp()).abs() < 4 * log_std.exp() / count**0.5).all()
    both = torch.cat([one[:, None], two, numbers], dim=1).double()
    correlations = torch.corrcoef(both.T) - torch.eye(5)
    assert correlations.abs().max() < 5 / count**0.5


def test_fisher_is_the_curvature_of_the_divergence():
    def build(z: torch.Tensor) -> Composite:
        one, two, mean, log_std = z.split([4, 6, 2, 2])
        parts = [Categorical(one), IndependentCategoricals(two.view(2, 3)), DiagonalGaussian(mean, log_std)]
        return Composite(parts, LEAVES)

    ours, _ = draw()
    centre = ours.outputs()[0, 0]
    old = build(centre)
    hessian = torch.autograd.functional.hessian(lambda z: old.kl(build(z)), centre)
    jacobian = torch.autograd.functional.jacobian(lambda z: build(z).outputs(), centre)
    products = torch.stack([jacobian.T @ old.fisher(column) for column in jacobian.T], dim=-1)
    torch.testing.assert_close(products, hessian)


def test_the_barrier_is_the_sum_over_discrete_parts():
    ours, _ = draw()
    parts: Any = ours.parts[:2]
    discrete = Composite(parts, LEAVES[:2])
    torch.testing.assert_close(discrete.barrier(), sum(part.barrier() for part in parts))
    policies = [PolicyConfig().build(Spaces(OBSERVATION, space)) for space in (DISCRETE, NESTED)]
    assert [is_discrete(policy.actor) for policy in policies] == [True, False]
    PPOConfig(barrier_coefficient=0.1).build(policies[0])
    with pytest.raises(ValueError, match="needs a discrete action space, not Dict"):
        PPOConfig(barrier_coefficient=0.1).build(policies[1])


@pytest.mark.parametrize("space", [NESTED, DISCRETE], ids=["mixed", "discrete"])
def test_a_policy_acts_in_the_space_alone_and_in_a_batch(space):
    policy = PolicyConfig(make_config("gru", dim=8)).build(Spaces(OBSERVATION, space))
    observations = np.random.default_rng(0).uniform(-1, 1, (6, 3)).astype(np.float32)
    batched, _ = policy.act(observations)
    rows = list(iterate(batch_space(space, 6), batched))
    assert len(rows) == 6
    for row, observation in enumerate(observations):
        single, _ = policy.act(observation)
        assert space.contains(single)
        assert space.contains(rows[row])
        for left, right in zip(flat(single), flat(select_row(batched, row)), strict=True):
            np.testing.assert_allclose(left, right, atol=1e-5)


def test_samples_reach_the_whole_space():
    policy = PolicyConfig(make_config("none", dim=8)).build(Spaces(OBSERVATION, NESTED))
    step = policy.step(
        torch.zeros(400, 3), policy.initial_state(400), generator=torch.Generator().manual_seed(0)
    )
    arrays = policy.env_actions(step.action)
    assert set(arrays["turn"].tolist()) == {-1, 0, 1}
    assert [set(column) for column in arrays["hand"]["fingers"].T.tolist()] == [{0, 1}, {0, 1, 2}]
    assert arrays["arm"][0].shape == (400, 2, 2)
    assert (arrays["arm"][0].min(), arrays["arm"][0].max()) == (-0.5, 0.25)
    assert arrays["hand"]["grip"].min() == 0
    assert arrays["hand"]["grip"].max() > 2
    torch.testing.assert_close(
        step.log_prob,
        policy.actor(policy.memory(policy.encoder(torch.zeros(400, 3))[:, None], {})[0][:, 0]).log_prob(
            step.action
        ),
    )


def flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for key in sorted(value) for leaf in flat(value[key])]
    return [leaf for part in value for leaf in flat(part)] if isinstance(value, tuple) else [value]


def test_indices_are_exact_in_float_actions():
    large = spaces.Tuple([spaces.Discrete(2**24), spaces.Box(-1, 1, (1,))])
    actions = torch.tensor([[2.0**24 - 1, 0.5], [2.0**24 - 2, 0.5]])
    assert split_actions(action_leaves(large), actions)[0].tolist() == [2**24 - 1, 2**24 - 2]
    half = Composite(
        [
            Categorical(torch.randn(9, 2000).bfloat16()),
            DiagonalGaussian(torch.zeros(9, 1).bfloat16(), torch.zeros(1).bfloat16()),
        ],
        [spaces.Discrete(2000), spaces.Box(-1, 1, (1,))],
    )
    index, _ = split_actions(half.leaves, half.mode())
    assert torch.equal(index, half.parts[0].mode())


def test_the_order_of_keys_changes_neither_weights_nor_actions():
    parts = [("b", spaces.Discrete(2)), ("a", spaces.Box(-1, 1, (3,)))]
    one, other = (
        make_action_head(spaces.Dict(pairs), 8)
        for pairs in (parts, parts[::-1])  # pyright: ignore[reportArgumentType]
    )
    other.load_state_dict(one.state_dict())
    features = torch.randn(4, 8)
    actions = one(features).mode().detach()
    assert torch.equal(actions, other(features).mode())
    np.testing.assert_array_equal(one.to_env(actions)["a"], other.to_env(actions)["a"])


@pytest.mark.parametrize("space", [NESTED, DISCRETE], ids=["mixed", "discrete"])
def test_a_saved_policy_acts_as_before(space, tmp_path):
    policy = PolicyConfig(make_config("gru", dim=8)).build(Spaces(OBSERVATION, space))
    policy.save_pretrained(tmp_path)
    again = Policy.from_pretrained(tmp_path)
    assert again.action_space == space
    observations = np.ones((2, 3), np.float32)
    for left, right in zip(flat(again.act(observations)[0]), flat(policy.act(observations)[0]), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (spaces.Dict({}), "has no parts"),
        (spaces.Tuple([spaces.Discrete(2), spaces.Dict({})]), "has no parts.*part of Tuple"),
        (spaces.Dict({"say": spaces.Text(3)}), "Text.*part of Dict"),
        (spaces.Tuple([spaces.Box(0, 3, (1,), np.int64)]), "Box of floats.*part of Tuple"),
    ],
)
def test_unsupported_parts_are_named(space, message):
    with pytest.raises(TypeError, match=message):
        make_action_head(space, 8)


BOUNDS = spaces.Box(
    np.array([-2, 0, 5, -np.inf, -np.inf, -np.inf], np.float32),
    np.array([4, np.inf, np.inf, 0, -7, np.inf], np.float32),
)


def test_samples_of_a_half_bounded_box_reach_every_number_in_it():
    head = make_action_head(BOUNDS, 8)
    expected = np.array(
        [[-2, 0, 5, -1e4, -1e4, -1e4], [4, 1e4, 1e4, 0, -7, 1e4], [1, 3.5, 9, -2.5, -8, 0]], np.float32
    )
    samples = torch.tensor(
        [[-1, 0, 0, -1e4, -1e4 + 7, -1e4], [1, 1e4, 1e4 - 5, 0, 0, 1e4], [0, 3.5, 4, -2.5, -1, 0]]
    )
    np.testing.assert_array_equal(head.to_env(samples), expected)
    with torch.no_grad():
        actions = head.to_env(head(torch.zeros(2000, 8)).sample(torch.Generator().manual_seed(0)))
    assert all(BOUNDS.contains(action) for action in actions)
    # An untrained policy is at a single bound in half of its actions, and at each of two bounds in 16 %.
    at_bound = ((actions == BOUNDS.low) | (actions == BOUNDS.high)).mean(axis=0)
    np.testing.assert_allclose(at_bound, [0.32, 0.5, 0.5, 0.5, 0.5, 0], atol=0.05)


@pytest.mark.parametrize("low", [-1.0, -3.0, 0.0])
def test_boxes_that_contain_0_keep_the_actions_of_earlier_versions(low):
    samples = torch.randn(50, 2)
    space = spaces.Box(np.array([low, -1.5], np.float32), np.array([np.inf, 0.5], np.float32))
    expected = samples.numpy() * np.array([1.0, 1.0]) + np.array([0.0, -0.5])
    expected = np.clip(expected, space.low, space.high).astype(np.float32)
    np.testing.assert_array_equal(make_action_head(space, 8).to_env(samples), expected)


def test_a_deviation_of_the_state_agrees_with_torch_and_is_bounded():
    head: Any = make_action_head(ALL_REAL, 8, "state").double()
    features = torch.randn(5, 3, 8).double()
    torch.nn.init.normal_(head.deviation.weight)
    ours = head(features)
    theirs = reference.Independent(reference.Normal(ours.mean, ours.log_std.exp()), 1)
    actions = theirs.sample()
    torch.testing.assert_close(ours.log_prob(actions), theirs.log_prob(actions))
    torch.testing.assert_close(ours.entropy(), theirs.entropy())
    assert ours.log_std.std(dim=0).min() > 0
    other = head(features + 1)
    expected = reference.kl_divergence(
        theirs, reference.Independent(reference.Normal(other.mean, other.log_std.exp()), 1)
    )
    torch.testing.assert_close(ours.kl(other), expected)
    far = head(1e6 * features).log_std
    assert far.min() >= -5
    assert far.max() <= 2
    torch.testing.assert_close(ours.agent(1).log_prob(actions[:, 1]), ours.log_prob(actions)[:, 1])


def test_an_untrained_deviation_is_near_1_and_has_a_gradient_on_both_sides():
    head: Any = make_action_head(ALL_REAL, 8, "state")
    distribution = head(torch.randn(64, 8))
    assert (distribution.log_std.abs() < 0.2).all()
    for bias in (-4.0, -1.0, 0.0, 1.0):
        torch.nn.init.constant_(head.deviation.bias, bias)
        (gradient,) = torch.autograd.grad(head(torch.zeros(1, 8)).entropy().sum(), head.deviation.bias)
        assert gradient.min() > 0.3


def test_a_deviation_of_the_state_needs_a_box():
    for space in (spaces.Discrete(2), DISCRETE):
        with pytest.raises(ValueError, match="deviation='state' needs an action space with a Box, not"):
            PolicyConfig(deviation="state").build(Spaces(OBSERVATION, space))
    policy = PolicyConfig(deviation="state").build(Spaces(OBSERVATION, NESTED))
    assert sum("deviation" in name for name in policy.state_dict()) == 4  # weight and bias of two Boxes


def test_an_unknown_deviation_is_named():
    with pytest.raises(ValueError, match="deviation='both': choose from constant, state"):
        PolicyConfig(deviation="both")  # pyright: ignore[reportArgumentType]


def test_the_weights_of_the_default_policy_keep_their_names():
    policy = PolicyConfig().build(Spaces(OBSERVATION, ALL_REAL))
    names = [name for name in policy.state_dict() if name.startswith("actor")]
    assert sorted(names) == ["actor.linear.bias", "actor.linear.weight", "actor.log_std"]


@pytest.mark.parametrize("space", [NESTED, DISCRETE], ids=["mixed", "discrete"])
def test_nested_spaces_return_from_json(space):
    first = Spaces(OBSERVATION, space)
    again = Spaces.from_dict(json.loads(json.dumps(first.to_dict(), allow_nan=False)))
    assert again == first
    assert first.find_mismatch(again) is None
