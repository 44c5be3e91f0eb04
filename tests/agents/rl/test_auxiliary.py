"""Auxiliary losses on solvable cases: predictable targets are learned, others have the loss of guessing."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.nn import functional

from scrubjay.agents import PPO, Policy, PPOConfig, Segment
from scrubjay.agents.rl.auxiliary import (
    HEADS,
    NextObservation,
    Reconstruction,
    SegmentReconstruction,
    Verifier,
)
from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.memory import make_config


def make_segment(
    observations: torch.Tensor, actions: torch.Tensor, starts: torch.Tensor, **state: Any
) -> Segment:
    zeros = torch.zeros(starts.shape)
    return Segment(
        observations=observations,
        actions=actions,
        log_probs=zeros,
        values=zeros,
        rewards=zeros,
        starts=starts,
        terminated=zeros.bool(),
        truncated=zeros.bool(),
        bootstrap_values=zeros,
        last_values=zeros[:, 0],
        state=state,
    )


def walk(batch: int, time: int, seed: int) -> Segment:
    """Random walks on a ring of five places, where actions move by 0 or 1; episodes start anywhere."""
    generator = torch.Generator().manual_seed(seed)
    actions = torch.randint(2, (batch, time), generator=generator)
    starts = torch.rand(batch, time, generator=generator) < 0.2
    places = torch.randint(5, (batch, time), generator=generator)
    for t in range(1, time):
        next_places = (places[:, t - 1] + actions[:, t - 1]) % 5
        places[:, t] = torch.where(starts[:, t], places[:, t], next_places)
    return make_segment(places, actions, starts)


def fit(head: torch.nn.Module, features_of: Callable[[Segment], torch.Tensor]) -> float:
    """Train a head on random segments; return its loss on a new one."""
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    for seed in range(150):
        segment = walk(16, 12, seed)
        optimizer.zero_grad()
        head(features_of(segment), segment).backward()
        optimizer.step()
    segment = walk(64, 12, 1000)
    return head(features_of(segment), segment).item()


def one_hot(segment: Segment) -> torch.Tensor:
    assert isinstance(segment.observations, torch.Tensor)
    return torch.nn.functional.one_hot(segment.observations, 16).float()


def test_what_comes_next_is_told_from_place_and_action_and_not_from_one_of_them() -> None:
    torch.manual_seed(0)
    pair_of_spaces = spaces.Discrete(5), spaces.Discrete(2)
    assert fit(NextObservation(*pair_of_spaces, 16), one_hot) < 0.05
    blind = fit(NextObservation(*pair_of_spaces, 16), lambda segment: torch.zeros_like(one_hot(segment)))
    assert blind == pytest.approx(np.log(5), abs=0.05)

    def without_action(segment: Segment) -> torch.Tensor:
        segment.actions.zero_()
        return one_hot(segment)

    assert fit(NextObservation(*pair_of_spaces, 16), without_action) == pytest.approx(np.log(2), abs=0.05)


def test_the_present_is_redrawn() -> None:
    torch.manual_seed(0)
    assert fit(SegmentReconstruction(spaces.Discrete(5), spaces.Discrete(2), 16), one_hot) < 0.05


def test_nothing_is_asked_across_the_border_of_an_episode() -> None:
    torch.manual_seed(0)
    head = NextObservation(spaces.Discrete(5), spaces.Discrete(2), 16)
    segment = walk(4, 10, 0)
    features = torch.randn(4, 10, 16, requires_grad=True)
    loss = head(features, segment)
    has_gradient = torch.autograd.grad(loss, features)[0].abs().sum(-1) > 0
    assert torch.equal(has_gradient[:, :-1], ~segment.starts[:, 1:])
    assert not has_gradient[:, -1].any()
    alone = dataclasses.replace(segment, starts=torch.ones(4, 10, dtype=torch.bool))
    nothing = head(features, alone)
    assert nothing.item() == 0
    assert not torch.autograd.grad(nothing, features)[0].any()


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "action",
    [
        spaces.Discrete(3, start=4),
        spaces.MultiDiscrete(np.array([2, 3]), start=np.array([1, -1])),
        spaces.Box(-1, 1, (2,)),
        spaces.MultiBinary(2),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_a_policy_learns_by_them_whatever_its_actions(
    make_policy: Callable[..., Policy], name: Any, action: spaces.Space
) -> None:
    torch.manual_seed(0)
    config = PolicyConfig(make_config("gru", dim=8), auxiliary=(name,))
    policy = Policy(spaces.Discrete(5), action, config)
    segment = walk(4, 6, 0)
    observations: Any = segment.observations
    steps = [policy.step(observation, policy.initial_state(4)) for observation in observations.unbind(1)]
    actions = torch.stack([step.action for step in steps], dim=1)
    log_probs = torch.stack([step.log_prob for step in steps], dim=1)
    segment = dataclasses.replace(
        segment, actions=actions, log_probs=log_probs, state=policy.initial_state(4)
    )
    learner = PPO(policy, PPOConfig(auxiliary_coefficient=1.0, learning_rate=1e-2, num_minibatches=2))
    losses = [learner.update(segment)[f"losses/{name}_loss"] for _ in range(15)]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("things", "anything"),
    [
        (spaces.Box(-1, 1, (4, 2), np.float32), float("nan")),
        (spaces.MultiDiscrete(np.array([[3, 4]] * 4), start=np.array([[2, -1]] * 4)), 99),
    ],
)
@pytest.mark.parametrize("name", HEADS)
def test_what_lies_in_empty_slots_of_a_set_costs_nothing(
    name: Any, things: spaces.Space, anything: float
) -> None:
    torch.manual_seed(0)
    observation_space = spaces.Dict({"things": things, "things_mask": spaces.MultiBinary(4)})
    config = PolicyConfig(make_config("gru", dim=8), auxiliary=(name,))
    policy = Policy(observation_space, spaces.Discrete(2), config)
    things.seed(0)
    values = torch.as_tensor(np.array([[things.sample() for _ in range(6)] for _ in range(3)]))
    mask = (torch.rand(3, 6, 4) < 0.5).float()
    losses = []
    for filling in (values, anything):
        padded_values = torch.where(mask[..., None] > 0, values, filling).to(values.dtype)
        observations: Any = {"things": padded_values, "things_mask": mask}
        segment = make_segment(observations, torch.zeros(3, 6).long(), torch.zeros(3, 6).bool())
        segment = dataclasses.replace(segment, state=policy.initial_state(3))
        loss = policy.evaluate(segment).auxiliary_losses[name]
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(policy.auxiliary.parameters()), allow_unused=True)
        assert all(part is None or part.isfinite().all() for part in gradients)
    assert losses[0] == losses[1]


def test_the_weight_is_that_of_their_sum() -> None:
    torch.manual_seed(0)
    config = PolicyConfig(make_config("gru", dim=8), auxiliary=("reconstruction", "next_observation"))
    policy = Policy(spaces.Discrete(5), spaces.Discrete(2), config)
    segment = dataclasses.replace(walk(4, 6, 0), state=policy.initial_state(4))
    advantages = torch.zeros(4, 6)
    losses = {}
    for weight in (0.0, 0.5):
        learner = PPO(policy, PPOConfig(auxiliary_coefficient=weight))
        losses[weight], metrics = learner.loss(segment, advantages, advantages)
    both = metrics["losses/reconstruction_loss"] + metrics["losses/next_observation_loss"]
    torch.testing.assert_close(losses[0.5] - losses[0.0], 0.5 * both)


def test_what_is_not_there_is_refused(make_policy: Callable[..., Policy]) -> None:
    with pytest.raises(ValueError, match=r"auxiliary_coefficient=0\.5 needs"):
        PPO(make_policy(), PPOConfig(auxiliary_coefficient=0.5))
    memory = make_config("gru", dim=8)
    impossible: list[dict[str, Any]] = [
        {"auxiliary": ("next",)},
        {"auxiliary": ("reconstruction",), "reconstruction": True},
        {"auxiliary": ("next_observation", "next_observation")},
    ]
    for bad in impossible:
        with pytest.raises(
            ValueError, match="choose from reconstruction, next_observation, verifier, each at most once"
        ):
            PolicyConfig(memory, **bad)


def test_indices_of_many_sizes_cost_the_mean_of_their_cross_entropies() -> None:
    torch.manual_seed(0)
    space = spaces.MultiDiscrete(np.array([[2, 5], [3, 1]]), start=np.array([[0, 7], [-1, 2]]))
    drawing = Reconstruction(space, 8)
    features, target = torch.randn(6, 8), torch.as_tensor(np.stack([space.sample() for _ in range(6)]))
    parts = drawing.decoders[0].get_submodule("linear")(features).split([2, 5, 3, 1], dim=1)
    entries = (target - torch.as_tensor(space.start)).flatten(1).unbind(1)
    costs = [torch.nn.functional.cross_entropy(*pair) for pair in zip(parts, entries, strict=True)]
    torch.testing.assert_close(drawing(features, target), torch.stack(costs).mean())


def make_zero_decoder(space: spaces.Space) -> Reconstruction:
    """Return decoders whose outputs are all zero."""
    reconstruction = Reconstruction(space, 8)
    for parameter in reconstruction.parameters():
        torch.nn.init.zeros_(parameter)
    return reconstruction


def test_losses_of_a_decoder_that_says_nothing_are_known() -> None:
    features = torch.randn(3, 8)
    index = make_zero_decoder(spaces.Discrete(5, start=1))(features, torch.tensor([1, 5, 3]))
    assert index.item() == pytest.approx(np.log(5))
    indices = make_zero_decoder(spaces.MultiDiscrete([2, 8]))(
        features, torch.tensor([[0, 7], [1, 1], [1, 0]])
    )
    assert indices.item() == pytest.approx((np.log(2) + np.log(8)) / 2)
    bits = make_zero_decoder(spaces.MultiBinary(4))(features, torch.randint(2, (3, 4)))
    assert bits.item() == pytest.approx(np.log(2))
    image_space = spaces.Box(0, 255, (20, 17, 3), np.uint8)
    image = make_zero_decoder(image_space)(features, torch.randint(256, (3, 20, 17, 3), dtype=torch.uint8))
    assert image.item() == pytest.approx(np.log(2))
    vector = torch.randn(3, 2)
    loss = make_zero_decoder(spaces.Box(-np.inf, np.inf, (2,)))(features, vector)
    torch.testing.assert_close(loss, vector.square().mean())


def test_a_dict_costs_the_sum_of_its_leaves() -> None:
    leaves = {"digit": spaces.Discrete(3), "speed": spaces.Box(-np.inf, np.inf, (2,))}
    together = Reconstruction(spaces.Dict(leaves), 8)
    features = torch.randn(4, 8)
    observation = {"digit": torch.tensor([0, 1, 2, 0]), "speed": torch.randn(4, 2)}
    alone = [
        decode(features, observation[key]) for key, decode in zip(leaves, together.decoders, strict=True)
    ]
    torch.testing.assert_close(together(features, observation), sum(alone))


def test_image_pixels_cost_sigmoid_cross_entropy_where_they_are() -> None:
    space = spaces.Box(0, 255, (3, 4, 3), np.uint8)  # so small that a linear layer draws it
    reconstruction = Reconstruction(space, 8)
    features, image = torch.randn(2, 8), torch.randint(256, (2, 3, 4, 3), dtype=torch.uint8)
    logits = reconstruction.decoders[0].get_submodule("linear")(features).view(2, 3, 3, 4).permute(0, 2, 3, 1)
    expected = functional.binary_cross_entropy_with_logits(logits, image / 255)
    torch.testing.assert_close(reconstruction(features, image), expected)


def test_a_decoder_learns_to_draw_an_image() -> None:
    torch.manual_seed(0)
    space = spaces.Box(0, 255, (20, 17, 3), np.uint8)
    reconstruction = Reconstruction(space, 8)
    images = 255 * torch.randint(2, (4, 20, 17, 3), dtype=torch.uint8)
    features = torch.eye(4, 8)
    optimizer = torch.optim.Adam(reconstruction.parameters(), lr=0.01)
    for _ in range(150):
        optimizer.zero_grad()
        loss = reconstruction(features, images)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.2


@pytest.mark.parametrize("dtype", [np.float32, np.uint8])
def test_images_of_either_kind_have_a_cross_entropy_whatever_their_scale(dtype):
    top = 255 if dtype == np.uint8 else 1
    space = spaces.Box(0, top, (24, 20, 3), dtype)
    reconstruction = Reconstruction(space, 8)
    decoder = next(m for m in reconstruction.modules() if type(m).__name__ == "_ImageDecoder")
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.zero_()
    image = torch.full((1, 24, 20, 3), top, dtype=torch.uint8 if dtype == np.uint8 else torch.float32)
    # Logits of 0 say "one half": log 2 nats a pixel, where a squared error would be 1 or 1/4.
    torch.testing.assert_close(decoder(torch.zeros(1, 8), image), torch.tensor(2.0).log())


def make_constant_segment(numbers, time):
    """Return a segment in which each environment shows its number at every step of one episode."""
    places = torch.as_tensor(numbers)[:, None].expand(-1, time).contiguous()
    starts = torch.zeros(places.shape, dtype=torch.bool)
    starts[:, 0] = True
    return make_segment(places, torch.zeros_like(places), starts)


def one_hot_numbers(numbers, time):
    return torch.nn.functional.one_hot(torch.as_tensor(numbers), 16).float()[:, None].expand(-1, time, -1)


def verifier(batch):
    torch.manual_seed(0)
    return Verifier(spaces.Discrete(batch), spaces.Discrete(2), 16)


def fit_verifier(features, segment):
    head = verifier(len(segment.starts))
    optimizer = torch.optim.Adam(head.parameters(), lr=3e-2)
    for _ in range(120):
        optimizer.zero_grad()
        loss = head(features, segment)
        loss.backward()
        optimizer.step()
    return loss.item()


def test_who_kept_it_tells_its_own_future_from_that_of_others():
    segment = make_constant_segment(range(8), 20)
    assert fit_verifier(one_hot_numbers(range(8), 20), segment) < 0.05
    # The same for all rows says of none which is its own, however long one learns.
    assert fit_verifier(torch.ones(8, 20, 16), segment) == pytest.approx(math.log(8), abs=1e-3)


def test_rows_that_show_the_same_cannot_be_told_apart():
    twice = [0, 0, 1, 1, 2, 2, 3, 3]
    assert fit_verifier(one_hot_numbers(twice, 20), make_constant_segment(twice, 20)) == pytest.approx(
        math.log(2), abs=0.05
    )


def test_steps_are_asked_for_what_follows_in_their_episode():
    segment = make_constant_segment(range(3), 12)
    segment.starts[1, 6] = True
    features = torch.randn(3, 12, 16, requires_grad=True)
    has_gradient = torch.autograd.grad(verifier(3)(features, segment), features)[0].abs().sum(-1) > 0
    # One and four steps later lie within; sixteen do not.
    assert has_gradient[0].tolist() == [True] * 11 + [False]
    assert has_gradient[1].tolist() == [True] * 5 + [False] + [True] * 5 + [False]


@pytest.mark.parametrize(("batch", "time"), [(1, 12), (3, 1)])
def test_alone_or_without_a_future_it_costs_nothing(batch, time):
    head = verifier(batch)
    features = torch.randn(batch, time, 16, requires_grad=True)
    loss = head(features, make_constant_segment(range(batch), time))
    assert loss.item() == 0
    assert not torch.autograd.grad(loss, features)[0].any()
