"""sb3-contrib's RecurrentPPO on the environments, steps, batches and test episodes of a run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from torch import Tensor, nn

from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.rl.rollout import ActorInput, Choice
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.reinforcement import TrainConfig


def make_arguments(config: TrainConfig, with_defaults: bool = False) -> dict[str, Any]:
    """Return the arguments of RecurrentPPO that correspond to a config of Scrubjay.

    The network is that of Scrubjay's policy with the memory `lstm`: one layer as encoder, an LSTM, and linear
    heads of actor and critic.

    `with_defaults` leaves the learner's settings at sb3's defaults. Sizes of network and batch, and the
    discount factor, are those of the config in both cases. A pair of numbers is a linear schedule. Settings
    that only Scrubjay has, such as the schedule of the entropy bonus, have no counterpart. Raises TypeError
    if the learner is not PPO.
    """
    learner = config.learner
    if not isinstance(learner, PPOConfig):
        raise TypeError(f"learner={type(learner).__name__}: RecurrentPPO corresponds to PPOConfig")
    dim = config.memory.dim
    arguments: dict[str, Any] = {
        "n_steps": config.segment_length,
        "batch_size": config.steps_per_update // learner.num_minibatches,
        "gamma": learner.gamma,
        "seed": derive_seed(config.seed, "weights"),
        "device": "cpu",
        "policy_kwargs": {
            "lstm_hidden_size": dim,
            "shared_lstm": True,
            "enable_critic_lstm": False,
            "net_arch": [],
            "features_extractor_kwargs": {"features_dim": dim},
        },
    }
    if not with_defaults:
        arguments |= {
            "learning_rate": (learner.learning_rate, 0.0) if learner.anneal else learner.learning_rate,
            "gae_lambda": learner.gae_lambda,
            "clip_range": learner.clip if learner.clip_end is None else (learner.clip, learner.clip_end),
            "n_epochs": learner.epochs,
            "ent_coef": learner.entropy_coefficient,
            "vf_coef": learner.value_coefficient,
            "max_grad_norm": learner.max_grad_norm,
            "normalize_advantage": learner.normalize_advantage,
            "target_kl": learner.target_kl,
        }
    return arguments


class RecurrentPPOActor:
    """Actor of a RecurrentPPO model, with the LSTM state of every environment."""

    def __init__(self, model: Any, deterministic: bool) -> None:
        self._model, self._deterministic = model, deterministic
        self._state: Any = None

    def act(self, inputs: ActorInput) -> Choice:
        """Choose the actions in all environments."""
        observations = inputs.observations[""]
        if (normalizer := self._model.get_vec_normalize_env()) is not None:
            observations = normalizer.normalize_obs(observations)  # unchanged if only rewards are scaled
        actions, self._state = self._model.predict(
            observations, self._state, inputs.starts, self._deterministic
        )
        return Choice(actions)


def _interpolate(start: float, end: float, remaining: float) -> float:
    """Return the value of a linear schedule; `remaining` falls from 1 to 0."""
    return end + remaining * (start - end)


def train_peer(
    config: TrainConfig, arguments: dict[str, Any], on_step: Callable[[], object]
) -> tuple[Any, float]:
    """Train RecurrentPPO; return the model and the mean return of the last 100 training episodes.

    The encoder is that of Scrubjay for vectors. Training starts in the same episodes as Scrubjay's run.
    Rewards are scaled and observations normalized if the config says so.
    `on_step` is called after every vector step.
    """
    # Needs the `bench` extra.
    from sb3_contrib import RecurrentPPO  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.callbacks import BaseCallback  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.monitor import Monitor  # pyright: ignore[reportMissingImports]
    from stable_baselines3.common.preprocessing import (  # pyright: ignore[reportMissingImports]
        get_flattened_obs_dim,
    )
    from stable_baselines3.common.torch_layers import (  # pyright: ignore[reportMissingImports]
        BaseFeaturesExtractor,
    )
    from stable_baselines3.common.vec_env import (  # pyright: ignore[reportMissingImports]
        DummyVecEnv,
        VecNormalize,
    )

    class Encoder(BaseFeaturesExtractor):
        def __init__(self, observation_space: gymnasium.Space[Any], features_dim: int) -> None:
            super().__init__(observation_space, features_dim)
            self.linear = nn.Linear(get_flattened_obs_dim(observation_space), features_dim)

        def forward(self, observations: Tensor) -> Tensor:
            return nn.functional.silu(self.linear(observations.flatten(1)))

    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            on_step()
            return True

    def make_env() -> gymnasium.Env[Any, Any]:
        return Monitor(config.env.make())

    envs: Any = DummyVecEnv([make_env] * config.env.num_envs)
    assert isinstance(config.learner, PPOConfig)
    scales_rewards = config.learner.scale_rewards
    is_normalized = config.policy.normalize_observations and isinstance(envs.observation_space, spaces.Box)
    if scales_rewards or is_normalized:
        envs = VecNormalize(
            envs, norm_obs=is_normalized, norm_reward=scales_rewards, gamma=config.learner.gamma
        )
    policy_kwargs = {**arguments["policy_kwargs"], "features_extractor_class": Encoder}
    schedules = {
        name: partial(_interpolate, *value) for name, value in arguments.items() if isinstance(value, tuple)
    }
    model = RecurrentPPO("MlpLstmPolicy", envs, **{**arguments, **schedules, "policy_kwargs": policy_kwargs})
    envs.seed(derive_seed(config.seed, "sampling"))  # the model has seeded them with its own seed
    model.learn(config.planned_steps, callback=Callback())
    returns = [episode["r"] for episode in model.ep_info_buffer or ()]
    envs.close()
    return model, float(np.mean(returns)) if returns else float("nan")
