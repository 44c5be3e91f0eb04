"""Sampler, which steps a vector environment with a policy and returns segments."""

from __future__ import annotations

import itertools
import logging
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, TimeLimit
from torch import Tensor

from scrubjay.agents.rl.observations import (
    check_finite,
    check_rewards,
    find_outside,
    from_leaves,
    leaf_dtype,
    to_leaves,
)
from scrubjay.agents.rl.policy import Policy
from scrubjay.agents.rl.rollout import (
    ActorInput,
    Environments,
    EpisodeCounter,
    EpisodeStats,
    PolicyActor,
    VectorEnvs,
    rollout,
)
from scrubjay.agents.rl.segment import BaseSegment, EarlierSteps, Segment

_log = logging.getLogger(__name__)


class BaseSampler(ABC):
    """Base class of samplers, which hold environments with their last observations and memory states.

    Raises ValueError if `segment_length` is below 1.
    """

    segment_class: ClassVar[type[BaseSegment]]

    def __init__(self, env: Any, envs: Environments, policy: Any, segment_length: int, seed: int = 0) -> None:
        if segment_length < 1:
            raise ValueError(f"segment_length={segment_length}: must be at least 1")
        self.env, self.envs = env, envs
        self.policy = policy
        self.segment_length = segment_length
        self.num_envs = envs.num_envs
        self.seconds = {"env": 0.0, "policy": 0.0}
        """Total wall time in seconds, in the environment and in everything else."""
        self._rows = (envs.num_envs,) if envs.num_agents is None else (envs.num_envs, envs.num_agents)
        self._generator = torch.Generator(device=policy.device).manual_seed(seed)
        self._episodes: list[EpisodeStats] = []
        self._has_warned = False
        self._begin(seed)

    @torch.no_grad()
    def collect(self) -> Any:
        """Collect and return the next segment. Later calls do not change its tensors."""
        start_time = time.perf_counter()
        env_seconds = 0.0
        length, num_envs, device = self.segment_length, self.num_envs, self.policy.device
        # Buffers have the time axis first, so that each step is contiguous. They are written through numpy
        # views, which is faster for small arrays, and read as tensors.
        observations = self._empty_leaves(length + 1, *self._rows)
        arrays = {key: leaf.numpy() for key, leaf in observations.items()}
        alive = np.empty((length + 1, *self._rows), dtype=np.bool_)
        self._inputs.write(arrays, alive, 0)
        rewards = np.empty((length, *self._rows), dtype=np.float32)
        terminated = np.empty((length, *self._rows), dtype=np.bool_)
        starts, truncated = (np.empty((length, num_envs), dtype=np.bool_) for _ in range(2))
        bootstrap_values = torch.zeros(length, *self._rows, device=device)
        outputs = []
        first_state = self._state
        actor = self._build_actor()
        for t, step in enumerate(itertools.islice(rollout(self.envs, actor, self._inputs), length)):
            result = step.result
            starts[t] = step.inputs.starts
            outputs.append(step.choice.output)
            env_seconds += step.env_seconds
            result.following.write(arrays, alive, t + 1)
            rewards[t], terminated[t], truncated[t] = result.rewards, result.terminated, result.truncated
            self._inputs = result.following
            if not (episodes := self._counter.count(result)):
                continue
            self._episodes += [episode for _, episode in episodes]
            if truncated[t].any():
                # The truncated episode of a single agent may also have reached a terminal state.
                is_cut = truncated[t] if self.envs.num_agents is not None else truncated[t] & ~terminated[t]
                if len(cut := np.flatnonzero(is_cut)):
                    rows, final = torch.from_numpy(cut), result.final(cut)
                    values = actor.value(final, actor.state(rows.to(device)))
                    if final.alive is not None:
                        values = values.masked_fill(~torch.from_numpy(final.alive).to(device), 0)
                    bootstrap_values[t, rows] = values
        check_rewards(rewards)
        if not self._has_warned:
            mask = None if self.envs.num_agents is None else alive
            if (text := find_outside(self.envs.leaves, arrays, mask)) is not None:
                self._has_warned = True
                _log.warning("%s; training continues, and later ones are not reported", text)
        log_probs = torch.stack([output.log_prob for output in outputs], dim=1)
        # NaN is caused by the observations or by diverged weights. A normalized inf is clipped.
        if self.policy.normalizer is not None or not log_probs.isfinite().all():
            check_finite(self.envs.leaves, arrays, None if self.envs.num_agents is None else alive)
        self._state = actor.state()
        self._inputs = ActorInput(
            {key: leaf[length].copy() for key, leaf in arrays.items()},
            self._inputs.starts.copy(),
            None if self._inputs.alive is None else alive[length].copy(),
        )
        living = torch.from_numpy(alive).to(device)
        values, last_values = self._values(actor, outputs, observations, living)
        batch = {key: leaf[:length].to(device).transpose(0, 1) for key, leaf in observations.items()}
        build_segment: Any = self.segment_class
        segment = build_segment(
            observations=from_leaves(batch),
            actions=torch.stack([output.action for output in outputs], dim=1),
            log_probs=log_probs,
            values=torch.stack(values, dim=1),
            rewards=_batch_first(rewards, device),
            starts=_batch_first(starts, device),
            terminated=_batch_first(terminated, device),
            truncated=_batch_first(truncated, device),
            bootstrap_values=bootstrap_values.transpose(0, 1),
            last_values=last_values,
            state=first_state,
            **({} if self._inputs.alive is None else {"alive": living[:length].transpose(0, 1)}),
        )
        self.seconds["env"] += env_seconds
        self.seconds["policy"] += time.perf_counter() - start_time - env_seconds
        return segment

    def restart(self, seed: int) -> None:
        """Reset every environment, and seed all random number generators with `seed`."""
        self._generator.manual_seed(seed)
        self._begin(seed)

    def pop_episodes(self) -> list[Any]:
        """Return the episodes that ended since the last call, in order, and clear the list."""
        episodes, self._episodes = self._episodes, []
        return episodes

    def get_state(self) -> dict[str, Any]:
        """Return the sampler's state: tensors, plain values and, if available, the environment's state."""
        state = {
            "generator": self._generator.get_state(),
            "device": self.policy.device.type,
            "memory": {key: value.clone() for key, value in self._state.items()},
            "observation": {
                key: torch.from_numpy(value.copy()) for key, value in self._inputs.observations.items()
            },
            "starts": self._inputs.starts.tolist(),
            "returns": self._counter.returns.tolist(),
            "lengths": self._counter.lengths.tolist(),
            "episodes": [asdict(episode) for episode in self._episodes],
            "env": self._save_env() if self.restores_env else None,
        }
        if self._inputs.alive is not None:
            measures = {name: total.tolist() for name, total in self._counter.measures.items()}
            state |= {"alive": self._inputs.alive.tolist(), "measures": measures}
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned. If `restores_env` is False, every environment is reset.

        The policy's weights must be restored first. Raises ValueError if `state` is from a sampler with
        another number of environments.
        """
        if len(state["lengths"]) != self.num_envs:
            raise ValueError(
                f"the state has {len(state['lengths'])} environments; this sampler has {self.num_envs}"
            )
        self._restore_generator(state)
        self._episodes = [self._build_episode(fields) for fields in state["episodes"]]
        if state["env"] is None or not self.restores_env:
            # The seed depends on the progress of the run, so that the first episodes are not repeated.
            self._begin(
                seed=int(torch.randint(2**31, (), generator=self._generator, device=self.policy.device))
            )
            return
        self._load_env(state["env"])
        self._state = {key: value.to(self.policy.device) for key, value in state["memory"].items()}
        self._inputs = ActorInput(
            {key: value.cpu().numpy().copy() for key, value in state["observation"].items()},
            np.array(state["starts"], dtype=np.bool_),
            np.array(state["alive"], dtype=np.bool_) if "alive" in state else None,
        )
        self._counter.returns = np.array(state["returns"], dtype=np.float64)
        self._counter.lengths = np.array(state["lengths"], dtype=np.int64)
        self._counter.measures = {name: np.array(total) for name, total in state.get("measures", {}).items()}

    @property
    @abstractmethod
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""

    @abstractmethod
    def _build_actor(self) -> Any:
        """Return an actor that continues from the memory states of the last step."""

    def _values(
        self, actor: Any, outputs: list[Any], observations: dict[str, Tensor], alive: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """Return the values of every step, and of the observations that follow the segment."""
        return [output.value for output in outputs], actor.value(self._inputs, self._state)

    @abstractmethod
    def _save_env(self) -> Any:
        """Return the state of the environment."""

    @abstractmethod
    def _load_env(self, state: Any) -> None:
        """Restore a state of the environment."""

    def _begin(self, seed: int) -> None:
        """Reset every environment and the memory states."""
        inputs = self.envs.reset(seed=seed)
        leaves = {key: leaf.numpy() for key, leaf in self._empty_leaves(*self._rows).items()}
        for key, leaf in leaves.items():
            leaf[...] = inputs.observations[key]
        self._inputs = inputs._replace(observations=leaves)
        self._state = self.policy.initial_state(self.num_envs)
        self._counter = EpisodeCounter(self.num_envs, self.envs.num_agents)

    def _build_episode(self, fields: dict[str, Any]) -> EpisodeStats:
        return EpisodeStats(**fields)

    def _empty_leaves(self, *leading: int) -> dict[str, Tensor]:
        return {
            key: torch.empty(*leading, *(leaf.shape or ()), dtype=leaf_dtype(leaf))
            for key, leaf in self.envs.leaves.items()
        }

    def _restore_generator(self, state: dict[str, Any]) -> None:
        if state["device"] == self.policy.device.type:
            self._generator.set_state(state["generator"])
        else:
            _log.warning(
                "checkpoint was saved on %s, resuming on %s: results will differ",
                state["device"],
                self.policy.device.type,
            )
            self._generator.manual_seed(int(state["generator"].sum()))


class Sampler(BaseSampler):
    """Sampler of segments, which have `segment_length` steps of every environment.

    Each segment continues from the memory states at the end of the segment before. It has the steps of
    `burn_in_segments` earlier segments as `burn_in`. Everything except the environment is computed on the
    policy's device.

    Args:
        env: Vector environment with the autoreset mode `AutoresetMode.SAME_STEP`.
        policy: Policy that acts.
        segment_length: Steps of a segment.
        seed: Seed of the environments and of the sampled actions.
        burn_in_segments: Number of earlier segments whose steps a segment has as `burn_in`.

    Raises:
        ValueError: If the autoreset mode of `env` is not `AutoresetMode.SAME_STEP` or if `segment_length` is
            below 1.
        EnvFaultError: If an index in an observation is not in its space, or if a number in an observation or
            a reward is not finite.
    """

    segment_class = Segment

    def __init__(
        self, env: VectorEnv, policy: Policy, segment_length: int, seed: int = 0, burn_in_segments: int = 0
    ) -> None:
        # Gymnasium's vector environments modify shared metadata, so their attribute is read first.
        mode = getattr(env, "autoreset_mode", env.metadata.get("autoreset_mode"))
        if mode != AutoresetMode.SAME_STEP:
            raise ValueError(
                f"autoreset_mode={getattr(mode, 'value', mode)} of the environment: must be SAME_STEP. For "
                "environments with a vector entry point, such as scrubjay's, use gymnasium.make_vec(..., "
                "autoreset_mode='SameStep'). For all others use gymnasium.make_vec(..., "
                "vectorization_mode='sync', vector_kwargs={'autoreset_mode': 'SameStep'})"
            )
        if burn_in_segments < 0:
            raise ValueError(f"burn_in_segments={burn_in_segments}: must not be negative")
        self._history: deque[EarlierSteps] = deque(maxlen=burn_in_segments)
        super().__init__(env, VectorEnvs(env, policy.action_masks), policy, segment_length, seed)

    def collect(self) -> Segment:
        """Collect and return the next segment. Later calls do not change its tensors."""
        segment: Segment = super().collect()
        if self._history:
            segment.burn_in = _join_steps(self._history)
            self._history.append(EarlierSteps(segment.observations, segment.starts, segment.state))
        return segment

    def get_state(self) -> dict[str, Any]:
        """Return the sampler's state: tensors, plain values and, if available, the environment's state."""
        history = [asdict(steps) for steps in self._history]
        return super().get_state() | ({"history": history} if history else {})

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned. If `restores_env` is False, every environment is reset.

        The policy's weights must be restored first.

        Raises:
            ValueError: If `state` is from a sampler with another number of environments or of
                `burn_in_segments`.
        """
        history = state.get("history", [])
        if len(history) != len(self._history):
            raise ValueError(
                f"the state has burn_in_segments={len(history)}; this sampler has {len(self._history)}"
            )
        earlier = [EarlierSteps(**steps) for steps in history]
        if any(_shapes(steps) != _shapes(own) for steps, own in zip(earlier, self._history, strict=True)):
            raise ValueError("the steps for burn_in_segments have other shapes than those of this sampler")
        super().set_state(state)
        if state["env"] is not None and self.restores_env:
            self._history.extend(steps.to(self.policy.device) for steps in earlier)

    def _begin(self, seed: int) -> None:
        super()._begin(seed)
        shape, device = (self.num_envs, self.segment_length), self.policy.device
        # Each of these steps starts an episode, as does the first step after them: they change no state.
        steps = EarlierSteps(
            from_leaves({key: leaf.zero_() for key, leaf in self._empty_leaves(*shape).items()}),
            torch.ones(shape, dtype=torch.bool),
            self._state,
        ).to(device)
        self._history.extend([steps] * (self._history.maxlen or 0))

    @property
    def restores_env(self) -> bool:
        """True if `set_state` also restores the environment, so that a resumed run continues exactly."""
        return can_restore(self.env)

    def _build_actor(self) -> PolicyActor:
        return PolicyActor(self.policy, self._state, self._generator)

    def _save_env(self) -> Any:
        return save_env(self.env)

    def _load_env(self, state: Any) -> None:
        load_env(self.env, state)


def _shapes(steps: EarlierSteps) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Return shape and type of each tensor."""
    tensors = {"starts": steps.starts, **steps.state, **to_leaves(steps.observations)}
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _join_steps(history: Sequence[EarlierSteps]) -> EarlierSteps:
    """Return the steps of consecutive segments as one, with the memory state before the first of them."""
    leaves = [to_leaves(steps.observations) for steps in history]
    return EarlierSteps(
        from_leaves({key: torch.cat([leaf[key] for leaf in leaves], dim=1) for key in leaves[0]}),
        torch.cat([steps.starts for steps in history], dim=1),
        history[0].state,
    )


def _batch_first(array: np.ndarray, device: torch.device) -> Tensor:
    """Convert an array with the time axis first to a tensor with the batch axis first."""
    return torch.from_numpy(array).to(device).transpose(0, 1)


def can_restore(env: VectorEnv) -> bool:
    """Return True if `env` supports `save_env` and `load_env`.

    `env` must have the methods `get_state` and `set_state`, or be a `SyncVectorEnv` of environments with both
    methods. The only allowed wrappers are those that `gymnasium.make` adds and those with a class attribute
    `stateless = True`.
    """
    env = _unwrap_stateless(env)
    if _offers_state(env):
        return True
    return type(env) is SyncVectorEnv and all(_layers(sub_env) is not None for sub_env in env.envs)


def save_env(env: VectorEnv) -> Any:
    """Return the state of `env`. Raises TypeError if `env` does not support this."""
    env = _unwrap_stateless(env)
    if _offers_state(env):
        return env.get_state()  # type: ignore[attr-defined]
    return [_save_layers(layers) for layers in _all_layers(env)]


def load_env(env: VectorEnv, state: Any) -> None:
    """Restore a state that `save_env` returned; `env` must have been reset once.

    Raises TypeError if `env` does not support this.
    """
    env = _unwrap_stateless(env)
    if _offers_state(env):
        env.set_state(state)  # type: ignore[attr-defined]
        return
    for layers, layer_state in zip(_all_layers(env), state, strict=True):
        for limit, steps in zip(layers[:-1], layer_state["elapsed_steps"], strict=True):
            limit._elapsed_steps = steps
        layers[-1].set_state(layer_state["env"])


def _unwrap_stateless(env: Any) -> Any:
    """Remove stateless wrappers."""
    while getattr(type(env), "stateless", False):
        env = env.env
    return env


def _offers_state(env: Any) -> bool:
    return callable(getattr(env, "get_state", None)) and callable(getattr(env, "set_state", None))


def _layers(env: gymnasium.Env) -> list[Any] | None:
    """Return the layers of `env` whose state is saved: all `TimeLimit` wrappers, then the environment itself.

    The environment itself is the outermost layer with `get_state` and `set_state`. Returns None if there is
    no such layer, or if a wrapper around this layer could have its own state.
    """
    limits: list[Any] = []
    while not _offers_state(env := _unwrap_stateless(env)):
        if not isinstance(env, (TimeLimit, OrderEnforcing, PassiveEnvChecker)):
            return None
        if isinstance(env, TimeLimit):
            limits.append(env)
        env = env.env
    return [*limits, env]


def _all_layers(env: VectorEnv) -> list[list[Any]]:
    env_layers = [_layers(sub_env) for sub_env in env.envs] if type(env) is SyncVectorEnv else [None]
    complete = [layers for layers in env_layers if layers is not None]
    if len(complete) != len(env_layers):
        raise TypeError(
            f"{env} cannot save its state: use a SyncVectorEnv of environments that have get_state and "
            "set_state; wrappers must come from gymnasium.make or have stateless = True"
        )
    return complete


def _save_layers(layers: list[Any]) -> dict[str, Any]:
    return {"elapsed_steps": [limit._elapsed_steps for limit in layers[:-1]], "env": layers[-1].get_state()}
