"""Learners in two processes make the same update as one learner on the whole batch."""

from __future__ import annotations

import copy
import dataclasses
import multiprocessing

import gymnasium
import pytest
import torch
from torch import distributed

from scrubjay.agents import PPO, Policy, PolicyConfig, PPOConfig, Sampler, Segment
from scrubjay.agents.rl.learner import Peers, SingleProcess
from scrubjay.memory import list_memories, make_config

CONFIG = PPOConfig(epochs=2, num_minibatches=3)


def sample_segment(memory, num_envs=7):
    envs = gymnasium.make_vec(
        "scrubjay.envs:scrubjay/TMaze-v0",
        num_envs,
        vectorization_mode="vector_entry_point",
        autoreset_mode="SameStep",
        corridor_length=4,
    )
    torch.manual_seed(0)
    config = PolicyConfig(memory=make_config(memory, dim=16), reconstruction=True)
    policy = Policy(envs.single_observation_space, envs.single_action_space, config)
    sampler = Sampler(envs, policy, 12, seed=3)
    sampler.collect()
    return policy, sampler.collect()


def in_processes(size, function, folder):
    """Run `function(rank)` in forked processes of one process group; return their results."""

    def child(rank):
        torch.set_num_threads(1)
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=size
        )
        torch.save(function(rank), folder / f"{rank}.pt")
        distributed.destroy_process_group()

    processes = [
        multiprocessing.get_context("fork").Process(target=child, args=(rank,)) for rank in range(size)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * size
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(size)]


def compute_updates(policy, segment, config, peers):
    learner = PPO(copy.deepcopy(policy), config, seed=5, peers=peers)
    metrics = [learner.update(segment) for _ in range(2)]
    return metrics, learner.policy.state_dict()


# CI covers each type of gradient: steps, chunks, a window, weights that learn.
FEW = {"gru": [], "hcam": pytest.mark.slow, "sink": pytest.mark.slow, "titans": pytest.mark.slow}


@pytest.mark.parametrize(
    "memory", [pytest.param(name, marks=FEW.get(name, pytest.mark.matrix)) for name in list_memories()]
)
def test_two_learners_update_as_one(memory, tmp_path):
    policy, segment = sample_segment(memory)
    config = dataclasses.replace(CONFIG, reconstruction_coefficient=0.5, scale_rewards=True)
    expected_metrics, expected = compute_updates(policy, segment, config, SingleProcess())
    # So uneven that some minibatches have no row of the second learner.
    shares = [torch.arange(6), torch.tensor([6])]
    results = in_processes(
        2, lambda rank: compute_updates(policy, segment.rows(shares[rank]), config, Peers()), tmp_path
    )
    for metrics, weights in results:
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=2e-6)
        for own, whole in zip(metrics, expected_metrics, strict=True):
            assert own == pytest.approx(whole, rel=1e-3, abs=1e-5)
    assert all(torch.equal(results[0][1][name], results[1][1][name]) for name in expected)


def test_learners_stop_together_at_the_target_divergence(tmp_path):
    policy, segment = sample_segment("gru")
    config = dataclasses.replace(CONFIG, epochs=50, learning_rate=0.01, target_kl=0.01)
    (metrics, _), expected = compute_updates(policy, segment, config, SingleProcess()), []
    results = in_processes(
        2, lambda rank: compute_updates(policy, _half(segment, rank), config, Peers()), tmp_path
    )
    for own, _ in results:
        expected.append(own)
        assert own[0] == pytest.approx(metrics[0], rel=1e-3, abs=1e-4)
    assert expected[0] == expected[1]


def _half(segment: Segment, rank: int) -> Segment:
    return segment.rows(torch.arange(7)[:3] if rank == 0 else torch.arange(7)[3:])


def test_moments_are_those_of_all_values_together(tmp_path):
    values = torch.randn(9, dtype=torch.float64)
    results = in_processes(3, lambda rank: Peers().moments(values[3 * rank : 3 * rank + 3]), tmp_path)
    for mean, deviation in results:
        torch.testing.assert_close(mean, values.mean())
        torch.testing.assert_close(deviation, values.std(correction=0))


def test_a_peer_that_is_gone_is_an_error_soon(tmp_path):
    def one_leaves(rank):
        peers = Peers(timeout_seconds=10.0)
        peers.sum(torch.ones(1))  # the group is connected; before, connecting would fail
        if rank == 1:
            return
        with pytest.raises(RuntimeError):
            peers.sum(torch.ones(1))
        return

    in_processes(2, one_leaves, tmp_path)
