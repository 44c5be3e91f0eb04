from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from scrubjay.agents import PPO, Policy, PPOConfig, Sampler, Segment
from scrubjay.agents.rl.segment import Batch
from scrubjay.memory import make_config

Envs = Callable[[int], SyncVectorEnv]


def leaves(batch: Batch) -> dict[str, torch.Tensor]:
    tensors = {}
    for field in fields(batch):  # pyright: ignore[reportArgumentType]
        value = getattr(batch, field.name)
        if isinstance(value, Batch):
            value = {f"{field.name}/{key}": leaf for key, leaf in leaves(value).items()}
        if value is not None:
            tensors |= value if isinstance(value, dict) else {field.name: value}
    return tensors


def test_cat_undoes_rows(scripted_envs: Envs, make_policy: Callable[..., Policy]) -> None:
    segment = Sampler(scripted_envs(5), make_policy(), 7, burn_in_segments=2).collect()
    assert segment.num_rows == 5
    assert segment.num_steps == 35
    parts = [segment.rows(torch.tensor(index)) for index in ([0, 1], [2], [3, 4])]
    joined_leaves, original = leaves(Segment.cat(parts)), leaves(segment)
    assert joined_leaves.keys() == original.keys()
    assert all(torch.equal(joined_leaves[key], original[key]) for key in original)


def test_rows_keep_the_given_order(scripted_envs: Envs, make_policy: Callable[..., Policy]) -> None:
    segment = Sampler(scripted_envs(4), make_policy(), 3, burn_in_segments=1).collect()
    selected_leaves, original = leaves(segment.rows(torch.tensor([2, 0]))), leaves(segment)
    assert all(torch.equal(selected_leaves[key], original[key][[2, 0]]) for key in original)


def test_unequal_lengths_and_nothing_are_refused(
    scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy()
    segments = [Sampler(scripted_envs(2), policy, length).collect() for length in (3, 4)]
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        Segment.cat(segments)
    with pytest.raises(ValueError, match="at least one"):
        Segment.cat([])


def test_to_changes_the_device_of_everything(make_policy: Callable[..., Policy], scripted_envs: Envs) -> None:
    policy = make_policy(observation_space=spaces.Box(-9, 9, (3,)))
    segment = Sampler(scripted_envs(2), policy, 3, burn_in_segments=1).collect()
    assert all(leaf.device.type == "meta" for leaf in leaves(segment.to("meta")).values())


# Episodes of the scripted environments have at most 5 steps; a memory of more than one chunk is in the middle
# of one at the start of a segment.
replaying = pytest.mark.parametrize(
    "memory",
    [
        make_config("gru", dim=8),
        make_config("hcam", dim=8, chunk_size=2, num_chunks=3, top_k=2),
        make_config("gtrxl", dim=8, window=5),
        make_config("sink", dim=8, window=2, num_sinks=1),
        make_config("titans", dim=8, chunk_size=3),
    ],
    ids=lambda config: type(config).__name__,
)


@pytest.mark.one_in(4)
@replaying
@pytest.mark.parametrize("count", [1, 3])
def test_a_replay_under_the_same_weights_ends_in_the_stored_state(
    memory, count, scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy(memory=memory)
    sampler = Sampler(scripted_envs(5), policy, 4, burn_in_segments=count)
    for _ in range(5):
        segment = sampler.collect()
        assert segment.burn_in is not None
        assert segment.burn_in.starts.shape == (5, 4 * count)
        segment_of_replay = replace(segment, state=policy.replay(segment.burn_in))
        for one, other in zip(
            policy.evaluate(segment_of_replay)[:3], policy.evaluate(segment)[:3], strict=True
        ):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@replaying
def test_a_replay_computes_the_state_of_the_new_weights(
    memory, scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    """The state at sampling time does not matter: each episode began within the replayed steps."""
    policy = make_policy(memory=memory)
    sampler = Sampler(scripted_envs(5), policy, 6, burn_in_segments=1)
    sampler.collect()
    segment = sampler.collect()
    assert segment.burn_in is not None
    assert segment.burn_in.starts.any(dim=1).all()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    # A memory in one pass over both segments from the last start of an episode, without any stored state.
    both = {
        name: torch.cat([leaves(segment.burn_in)[name], leaves(segment)[name]], 1)
        for name in ("observations", "starts")
    }
    for row in range(5):
        begin = int(both["starts"][row, :6].nonzero().max())
        observations, starts = (both[name][row : row + 1, begin:] for name in ("observations", "starts"))
        features, _, _ = policy.head_inputs(
            observations.flatten(0, 1), (1, starts.shape[1]), policy.initial_state(1), starts
        )
        expected = policy.critic(features).squeeze(-1)[:, 6 - begin :]
        segment_of_replay = replace(segment, state=policy.replay(segment.burn_in))
        torch.testing.assert_close(
            policy.evaluate(segment_of_replay).values[row : row + 1], expected, atol=1e-5, rtol=1e-4
        )


def test_ppo_does_not_use_the_stored_state_of_an_episode_within_the_burn_in(
    scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    """Updates agree though one has wrong states; without burn-in they differ."""
    results = {}
    for burn_in in (0, 1):
        for is_damaged in (False, True):
            policy = make_policy()
            sampler = Sampler(scripted_envs(4), policy, 6, burn_in_segments=1)
            sampler.collect()
            segment = sampler.collect()
            if is_damaged:
                segment.state = {key: torch.full_like(value, 3.0) for key, value in segment.state.items()}
            learner = PPO(policy, PPOConfig(epochs=3, num_minibatches=2, burn_in_segments=burn_in))
            results[burn_in, is_damaged] = learner.update(segment), policy.state_dict()
    assert results[0, False][0] != results[0, True][0]
    assert results[1, False][0] == results[1, True][0]
    assert all(torch.equal(results[1, False][1][key], value) for key, value in results[1, True][1].items())
    # Later epochs see other states than the stored ones.
    assert results[1, False][0] != results[0, False][0]


def test_ratios_start_at_one_after_a_burn_in(scripted_envs: Envs, make_policy: Callable[..., Policy]) -> None:
    """The state at the start of the segment comes from other weights than those that are updated."""
    divergences = []
    for burn_in in (0, 1):
        policy = make_policy()
        sampler = Sampler(scripted_envs(4), policy, 6, burn_in_segments=1)
        sampler.collect()
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.mul_(1.5)
        segment = sampler.collect()
        if burn_in:
            state = policy.replay(segment.burn_in) if segment.burn_in is not None else {}
            assert any(not torch.equal(state[name], value) for name, value in segment.state.items())
        learner = PPO(policy, PPOConfig(epochs=1, num_minibatches=1, burn_in_segments=burn_in))
        divergences.append(learner.update(segment)["losses/approx_kl"])
    assert max(divergences) < 1e-9


def test_a_restored_sampler_has_the_same_burn_in(
    scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy()
    sampler = Sampler(scripted_envs(3), policy, 4, burn_in_segments=2)
    for _ in range(3):
        sampler.collect()
    state = sampler.get_state()
    expected = [sampler.collect(), sampler.collect(), sampler.collect()]
    other_sampler = Sampler(scripted_envs(3), policy, 4, burn_in_segments=2)
    other_sampler.set_state(state)
    for segment in expected:
        one, other = leaves(other_sampler.collect()), leaves(segment)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    with pytest.raises(ValueError, match="burn_in_segments=2; this sampler has 1"):
        Sampler(scripted_envs(3), policy, 4, burn_in_segments=1).set_state(state)
    state["history"][1]["starts"] = state["history"][1]["starts"][:, :2]
    with pytest.raises(ValueError, match="burn_in_segments have other shapes"):
        other_sampler.set_state(state)


def test_burn_in_is_refused_where_it_cannot_be_had(
    scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy()
    with pytest.raises(ValueError, match="burn_in_segments=-1"):
        Sampler(scripted_envs(2), policy, 4, burn_in_segments=-1)
    with pytest.raises(ValueError, match="burn_in_segments=-1"):
        PPOConfig(burn_in_segments=-1)
    segment = Sampler(scripted_envs(4), policy, 4).collect()
    with pytest.raises(ValueError, match="pass burn_in_segments to its Sampler"):
        PPO(policy, PPOConfig(burn_in_segments=1)).update(segment)
