from __future__ import annotations

import hypothesis.strategies as st
import torch
from hypothesis import given, settings

from scrubjay.agents import generalized_advantage

Parts = dict[str, torch.Tensor]


def random_parts(seed: int, batch: int, time: int, end_rate: float) -> Parts:
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    ends = torch.rand(batch, time, generator=generator) < end_rate
    kind = torch.rand(batch, time, generator=generator) < 0.5
    truncated = ends & kind
    return {
        "rewards": numbers(batch, time),
        "values": numbers(batch, time),
        "last_values": numbers(batch),
        "bootstrap_values": torch.where(truncated, numbers(batch, time), 0),
        "terminated": ends & ~kind,
        "truncated": truncated,
    }


def slow_advantage(parts: Parts, gamma: float, lam: float) -> torch.Tensor:
    """Compute equation 16 of the paper as a double sum, episode by episode."""
    batch, time = parts["rewards"].shape
    result = torch.zeros(batch, time, dtype=torch.float64)
    for b in range(batch):
        errors = []
        for t in range(time):
            if parts["terminated"][b, t]:
                following = 0.0
            elif parts["truncated"][b, t]:
                following = parts["bootstrap_values"][b, t]
            elif t + 1 < time:
                following = parts["values"][b, t + 1]
            else:
                following = parts["last_values"][b]
            errors.append(parts["rewards"][b, t] + gamma * following - parts["values"][b, t])
        for t in range(time):
            total, weight = 0.0, 1.0
            for later in range(t, time):
                total += weight * errors[later]
                if parts["terminated"][b, later] or parts["truncated"][b, later]:
                    break
                weight *= gamma * lam
            result[b, t] = total
    return result


@given(
    seed=st.integers(0, 1000),
    batch=st.integers(1, 4),
    time=st.integers(1, 12),
    end_rate=st.sampled_from([0.0, 0.2, 1.0]),
    gamma=st.sampled_from([0.0, 0.9, 1.0]),
    lam=st.sampled_from([0.0, 0.7, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_agrees_with_the_double_sum(
    seed: int, batch: int, time: int, end_rate: float, gamma: float, lam: float
) -> None:
    parts = random_parts(seed, batch, time, end_rate)
    advantages, returns = generalized_advantage(**parts, gamma=gamma, lam=lam)
    torch.testing.assert_close(advantages, slow_advantage(parts, gamma, lam))
    torch.testing.assert_close(returns, advantages + parts["values"])


def test_hand_made_episode_truncated_at_the_last_step() -> None:
    false = torch.zeros(1, 3, dtype=torch.bool)
    _, returns = generalized_advantage(
        rewards=torch.tensor([[1.0, 2.0, 4.0]]),
        values=torch.tensor([[0.3, -0.2, 0.9]]),
        last_values=torch.tensor([1000.0]),  # of the next episode: must not be used
        bootstrap_values=torch.tensor([[0.0, 0.0, 16.0]]),
        terminated=false,
        truncated=torch.tensor([[False, False, True]]),
        gamma=0.5,
        lam=1.0,
    )
    # 4 + 16/2 = 12; 2 + 12/2 = 8; 1 + 8/2 = 5.
    torch.testing.assert_close(returns, torch.tensor([[5.0, 8.0, 12.0]]))


def test_with_lambda_one_and_no_ends_returns_are_discounted_sums() -> None:
    parts = random_parts(1, 3, 9, 0.0)
    _, returns = generalized_advantage(**parts, gamma=0.9, lam=1.0)
    powers = 0.9 ** torch.arange(10, dtype=torch.float64)
    rewards = torch.cat([parts["rewards"], parts["last_values"][:, None]], dim=1)
    for t in range(9):
        torch.testing.assert_close(returns[:, t], (rewards[:, t:] * powers[: 10 - t]).sum(dim=1))


@given(seed=st.integers(0, 1000), cut=st.integers(1, 9))
@settings(max_examples=30, deadline=None)
def test_one_step_advantages_do_not_depend_on_where_segments_are_cut(seed: int, cut: int) -> None:
    parts = random_parts(seed, 2, 10, 0.3)
    whole, _ = generalized_advantage(**parts, gamma=0.9, lam=0.0)
    left = {key: value[:, :cut] for key, value in parts.items() if value.ndim == 2}
    right = {key: value[:, cut:] for key, value in parts.items() if value.ndim == 2}
    first, _ = generalized_advantage(**left, last_values=parts["values"][:, cut], gamma=0.9, lam=0.0)
    second, _ = generalized_advantage(**right, last_values=parts["last_values"], gamma=0.9, lam=0.0)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_a_cut_at_the_end_of_an_episode_changes_nothing_for_any_lambda(seed: int) -> None:
    parts = random_parts(seed, 3, 10, 0.2)
    parts["terminated"][:, 4], parts["truncated"][:, 4] = True, False
    whole, _ = generalized_advantage(**parts, gamma=0.9, lam=0.8)
    left = {key: value[:, :5] for key, value in parts.items() if value.ndim == 2}
    right = {key: value[:, 5:] for key, value in parts.items() if value.ndim == 2}
    first, _ = generalized_advantage(**left, last_values=torch.full((3,), 1e6).double(), gamma=0.9, lam=0.8)
    second, _ = generalized_advantage(**right, last_values=parts["last_values"], gamma=0.9, lam=0.8)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)


@given(seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_nothing_crosses_the_end_of_an_episode(seed: int) -> None:
    parts = random_parts(seed, 2, 8, 0.0)
    parts["truncated"][:, 3] = True
    before, _ = generalized_advantage(**parts, gamma=1.0, lam=0.9)
    for key in ("rewards", "values"):
        parts[key][:, 4:] = float("nan")
    parts["last_values"][:] = float("nan")
    after, _ = generalized_advantage(**parts, gamma=1.0, lam=0.9)
    assert torch.equal(before[:, :4], after[:, :4])
    assert after[:, 4:].isnan().all()


def test_a_step_that_is_both_ends_counts_as_terminated() -> None:
    true = torch.ones(1, 1, dtype=torch.bool)
    advantages, _ = generalized_advantage(
        torch.tensor([[2.0]]),
        torch.tensor([[0.5]]),
        torch.tensor([9.0]),
        torch.tensor([[7.0]]),
        true,
        true,
        1.0,
        1.0,
    )
    assert advantages.item() == 1.5
