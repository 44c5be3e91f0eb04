"""Normalization of observations: as in Stable-Baselines3, frozen outside updates, equal on all learners."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers.utils import RunningMeanStd

from scrubjay.agents import PPO, Policy, PolicyConfig, PPOConfig, Sampler
from scrubjay.agents.rl.learner import Peers, SingleProcess, minibatches
from scrubjay.agents.rl.normalization import ObservationNormalizer
from scrubjay.agents.rl.observations import EnvFaultError, to_leaves
from scrubjay.memory import make_config

from .test_learner import in_processes

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
MIXED = spaces.Dict(
    {
        "action_mask": spaces.Box(0, 1, (2,), np.float32),
        "adjacency": spaces.Box(0, 1, (4, 4), np.float32),
        "bits": spaces.MultiBinary(3),
        "bytes": spaces.Box(0, 255, (5,), np.uint8),
        "card": spaces.Discrete(4),
        "image": spaces.Box(0, 1, (8, 8, 3), np.float32),
        "objects": spaces.Box(-np.inf, np.inf, (4, 2), np.float32),
        "objects_mask": spaces.MultiBinary(4),
        "speed": spaces.Box(-np.inf, np.inf, (), np.float32),
        "walls": spaces.Box(-np.inf, np.inf, (2, 3), np.float32),
    }
)
CONFIG = PPOConfig(epochs=2, num_minibatches=3)


def stream(steps: int, rows: int = 5, seed: int = 0) -> torch.Tensor:
    """Return observations with far means, different scales and outliers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(steps, rows, 3, generator=generator) * torch.tensor([1e-3, 1.0, 40.0])
    values = values + torch.tensor([0.0, -7.0, 1e4])
    return torch.where(torch.rand(values.shape, generator=generator) < 0.02, values * 30, values)


class Wandering(gymnasium.Env):
    """Environment whose observations are far from mean 0 and variance 1."""

    observation_space = BOX
    action_space = spaces.Discrete(2)
    number = 50.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.time = 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        return self._observe(), float(action), False, self.time == 6, {}

    def _observe(self) -> np.ndarray:
        noise = self.np_random.normal(size=3)
        return (noise * [0.01, 3, 1] + [self.number, self.time, 0]).astype(np.float32)


def sampler_for(**fields: Any) -> tuple[Policy, Sampler]:
    torch.manual_seed(0)
    config = PolicyConfig(make_config("gru", dim=8), normalize_observations=True, **fields)
    policy = Policy(Wandering.observation_space, Wandering.action_space, config)
    actor: Any = policy.actor
    torch.nn.init.normal_(actor.linear.weight, std=0.7)
    envs = SyncVectorEnv([Wandering] * 6, autoreset_mode=AutoresetMode.SAME_STEP)
    return policy, Sampler(envs, policy, 8, seed=3)


def statistics(policy: Policy) -> list[torch.Tensor]:
    assert policy.normalizer is not None
    return [value.clone() for value in policy.normalizer.state_dict().values()]


def test_statistics_are_those_of_gymnasium() -> None:
    normalizer, reference = ObservationNormalizer(BOX), RunningMeanStd(shape=(3,))
    for batch in stream(60):
        normalizer.update(batch, SingleProcess())
        reference.update(batch.double().numpy())
    np.testing.assert_allclose(normalizer.mean.numpy(), reference.mean, rtol=1e-12)
    np.testing.assert_allclose(normalizer.variance.numpy(), reference.var, rtol=1e-10)
    np.testing.assert_allclose(normalizer.count.numpy(), reference.count)
    parts = ObservationNormalizer(BOX)
    parts.update(stream(60), SingleProcess())  # all at once
    torch.testing.assert_close(parts.variance, normalizer.variance, rtol=1e-10, atol=0)


def test_normalized_observations_are_those_of_stable_baselines() -> None:
    vec_env = pytest.importorskip("stable_baselines3.common.vec_env")
    venv = vec_env.VecNormalize(vec_env.DummyVecEnv([lambda: gymnasium.make("CartPole-v1")]))
    venv.obs_rms = type(venv.obs_rms)(shape=(3,))
    normalizer = ObservationNormalizer(BOX)
    for batch in stream(60):
        venv.obs_rms.update(batch.double().numpy())
        normalizer.update(batch, SingleProcess())
    after = stream(40, seed=1) * 2
    expected, actual = venv.normalize_obs(after.numpy()), normalizer(after)
    assert isinstance(actual, torch.Tensor)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-6, atol=1e-6)
    assert (np.abs(expected) == 10).any()
    assert actual.dtype == torch.float32


def test_only_floating_point_vectors_are_normalized_and_padding_does_not_count() -> None:
    normalizer, generator = ObservationNormalizer(MIXED), torch.Generator().manual_seed(0)
    shapes = {key: leaf.shape or () for key, leaf in MIXED.spaces.items()}
    batch = {key: torch.rand(7, *shape, generator=generator) * 9 for key, shape in shapes.items()}
    mask = torch.rand(7, 4, generator=generator) < 0.5
    batch |= {"objects_mask": mask.float(), "card": torch.arange(7) % 4}
    batch["objects"][~mask] = torch.nan
    normalizer.update(batch, SingleProcess())
    normalized = to_leaves(normalizer(batch))
    names = [key for key in batch if not torch.equal(normalized[key].nan_to_num(), batch[key].nan_to_num())]
    assert names == ["objects", "speed", "walls"] == list(normalizer.shapes)
    elements = batch["objects"][mask].double()
    torch.testing.assert_close(normalizer.mean[:2], elements.mean(0), rtol=1e-3, atol=0)  # of 1e-4 + n
    count = torch.full((2,), int(mask.sum()) + 1e-4, dtype=torch.float64)
    torch.testing.assert_close(normalizer.count[:2], count)
    torch.testing.assert_close(normalizer.count[2:], torch.full((7,), 7 + 1e-4, dtype=torch.float64))
    assert normalized["objects"][mask].isfinite().all()


def test_absent_agents_do_not_count() -> None:
    one, other = ObservationNormalizer(BOX), ObservationNormalizer(BOX)
    values, alive = stream(9), torch.rand(9, 5, generator=torch.Generator().manual_seed(0)) < 0.4
    one.update(values.masked_fill(~alive[..., None], torch.nan), SingleProcess(), alive)
    other.update(values[alive], SingleProcess())
    assert all(torch.equal(*pair) for pair in zip(one.buffers(), other.buffers(), strict=True))
    before = [value.clone() for value in one.buffers()]
    one.update(values, SingleProcess(), torch.zeros_like(alive))
    for value, old in zip(one.buffers(), before, strict=True):
        torch.testing.assert_close(value, old)


def test_the_ratio_is_1_in_the_first_epoch_of_each_update() -> None:
    policy, sampler = sampler_for(skip=True, auxiliary=("next_observation",), separate_critic=True)
    learner = PPO(policy, replace(CONFIG, auxiliary_coefficient=0.1), seed=1)
    for _ in range(3):
        before = statistics(policy)
        segment = sampler.collect()
        assert all(map(torch.equal, before, statistics(policy))), "sampling changes nothing"
        evaluation = policy.evaluate(segment)
        torch.testing.assert_close(evaluation.log_probs, segment.log_probs, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(evaluation.values, segment.values, atol=1e-5, rtol=1e-5)
        advantages, returns = learner.advantages(segment)
        for index in minibatches(6, 1, 3, torch.Generator()):
            _, metrics = learner.loss(segment.rows(index), advantages[index], returns[index])
            assert metrics["losses/approx_kl"].abs() < 1e-9
        learner.update(segment)
        assert not torch.equal(before[0], statistics(policy)[0])
    mean, variance = statistics(policy)[:2]
    torch.testing.assert_close(mean, torch.tensor([50.0, 2.5, 0.0], dtype=torch.float64), atol=0.6, rtol=0)
    torch.testing.assert_close(variance[0].sqrt(), torch.tensor(0.01, dtype=torch.float64), atol=0.2, rtol=0)


def test_acting_and_evaluating_change_nothing() -> None:
    policy, sampler = sampler_for()
    PPO(policy, CONFIG).update(sampler.collect())
    before = copy.deepcopy(policy.state_dict())
    state = None
    for observation in stream(5):
        _, state = policy.act(observation.numpy(), state)
        policy.value(observation, state)
    policy.train()
    policy.evaluate(sampler.collect())
    assert all(torch.equal(value, policy.state_dict()[name]) for name, value in before.items())


def test_two_learners_have_the_statistics_of_one(tmp_path) -> None:
    policy, sampler = sampler_for()
    segment = sampler.collect()

    def update(peers: SingleProcess, part: Any) -> dict[str, torch.Tensor]:
        learner = PPO(copy.deepcopy(policy), CONFIG, seed=5, peers=peers)
        for _ in range(2):
            learner.update(part)
        return learner.policy.state_dict()

    expected = update(SingleProcess(), segment)
    shares = [torch.arange(5), torch.tensor([5])]
    results = in_processes(2, lambda rank: update(Peers(), segment.rows(shares[rank])), tmp_path)
    for weights in results:
        for name in ("mean", "variance", "count"):
            key = f"normalizer.{name}"
            torch.testing.assert_close(weights[key], expected[key], rtol=1e-10, atol=1e-12)
    assert all(torch.equal(results[0][name], results[1][name]) for name in expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
def test_a_saved_policy_has_its_statistics_in_float64(dtype: torch.dtype, tmp_path) -> None:
    policy, sampler = sampler_for()
    PPO(policy, CONFIG).update(sampler.collect())
    expected = statistics(policy)
    policy.to(dtype).save_pretrained(tmp_path)
    loaded_policy = Policy.from_pretrained(tmp_path)
    assert all(map(torch.equal, statistics(loaded_policy), expected))
    assert {parameter.dtype for parameter in loaded_policy.parameters()} == {dtype}
    observation = stream(1)[0].numpy()
    assert np.array_equal(loaded_policy.act(observation)[0], policy.eval().act(observation)[0])


@pytest.mark.parametrize(("name", "value"), [("variance", -1.0), ("count", -0.5), ("mean", float("nan"))])
def test_impossible_statistics_are_refused(name: str, value: float, tmp_path) -> None:
    policy, _ = sampler_for()
    weights = policy.state_dict() | {f"normalizer.{name}": torch.full((3,), value, dtype=torch.float64)}
    with pytest.raises(RuntimeError, match=rf"normalizer\.{name}: must be finite"):
        sampler_for()[0].load_state_dict(weights)
    policy.normalizer.get_buffer(name).fill_(value)  # pyright: ignore[reportOptionalMemberAccess]
    policy.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"model\.safetensors: .*normalizer\.{name}"):
        Policy.from_pretrained(tmp_path)


def test_a_space_without_such_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match=r"observations=True: .*Discrete\(3\) has no floating-point"):
        Policy(spaces.Discrete(3), spaces.Discrete(2), PolicyConfig(normalize_observations=True))


def test_an_infinite_observation_is_an_error_before_it_reaches_the_statistics() -> None:
    policy, sampler = sampler_for()
    before = statistics(policy)
    sampler.env.envs[2].number = np.inf
    with pytest.raises(EnvFaultError, match="contains inf; observations must be finite"):
        sampler.collect()
    with pytest.raises(ValueError, match="NaN or inf"):
        policy.normalizer.update(torch.full((2, 3), torch.nan), SingleProcess())  # pyright: ignore[reportOptionalMemberAccess]
    assert all(map(torch.equal, before, statistics(policy)))
