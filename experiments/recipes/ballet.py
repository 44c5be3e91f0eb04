"""Recipes of Ballet: acting in it, and answering about it what was seen."""

from __future__ import annotations

from typing import Any

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.kinds.ballet_probe import BalletProbeConfig
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config

# 8 dances lie in 16 chunks; a choice of fewer would leave out the asked one too often, before it is learned
# which that is. And there is no reconstruction loss here that would teach what to store.
_PROBING = {"hcam": {"top_k": 16, "stop_memory_gradient": False}, "landmark": {"top_k": 16}}


def _reading(chunks: int) -> dict[str, Any]:
    """Return what HCAM gets where reward teaches it, and ballets are so many chunks long.

    What a dance is worth keeping for is learned only by gradients that reach the step in which it was seen.
    """
    return {"top_k": chunks, "stop_memory_gradient": False}


def _by_reward(dancers: dict[str, Any], chunks: int, num_envs: int, segment_length: int) -> TrainConfig:
    """Return a training by ballets of these dancers."""
    return TrainConfig(
        # In the original's 1,024 steps a random walk arrives, too, and hides that walking was never learned.
        env=EnvConfig(
            "scrubjay/Ballet-v0", {**dancers, "observation": "set", "walk_steps": 32}, num_envs=num_envs
        ),
        policy=PolicyConfig(
            memory=make_config("hcam", dim=64, **_reading(chunks)),
            # Where to walk is to be seen, not remembered.
            skip=True,
            # Whoever knows the dance knows the next move.
            auxiliary=("next_observation",),
        ),
        ppo=PPOConfig(
            learning_rate=2e-3, anneal=True, gamma=0.97, gae_lambda=0.9, epochs=3, auxiliary_coefficient=0.5
        ),
        total_steps=3_000_000,
        segment_length=segment_length,
    )


@recipe("ballet", settings={"hcam": _reading(4)})
def ballet() -> TrainConfig:
    """Ballet: watch 2 dancers, walk up to the one whose dance is named; `ballet-4` and `-8` have more."""
    return _by_reward({"num_dancers": 2, "delay": 2}, 4, num_envs=192, segment_length=64)


@recipe("ballet-4", settings={"hcam": _reading(10), "landmark": {"top_k": 10}})
def ballet_4() -> TrainConfig:
    """Ballet with 2 to 4 dancers and 16 steps between dances."""
    return _by_reward({"num_dancers": 4, "min_dancers": 2, "delay": 16}, 10, num_envs=96, segment_length=160)


@recipe("ballet-8", settings={"hcam": _reading(18), "landmark": {"top_k": 18}})
def ballet_8() -> TrainConfig:
    """Ballet with 2 to 8 dancers and 16 steps between dances."""
    return _by_reward({"num_dancers": 8, "min_dancers": 2, "delay": 16}, 18, num_envs=64, segment_length=288)


@recipe("ballet-reconstruction")
def ballet_reconstruction() -> TrainConfig:
    """Ballet from symbols in a flat vector, with HCAM's loss that redraws what is seen."""
    return TrainConfig(
        env=EnvConfig(
            "scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 2, "observation": "symbolic"}, num_envs=64
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True),
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.02, reconstruction_coefficient=1.0),
        total_steps=2_000_000,
        segment_length=64,
    )


@recipe("ballet-probe", settings=_PROBING)
def ballet_probe() -> BalletProbeConfig:
    """Supervised: watch 2 dancers, then say who danced what; `ballet-probe-4` and `-8` have more."""
    return BalletProbeConfig()


@recipe("ballet-probe-4", settings=_PROBING)
def ballet_probe_4() -> BalletProbeConfig:
    """Supervised: watch 4 dancers, then say who danced what."""
    return BalletProbeConfig(num_dancers=4)


@recipe("ballet-probe-8", settings=_PROBING)
def ballet_probe_8() -> BalletProbeConfig:
    """Supervised: watch 8 dancers, then say who danced what."""
    return BalletProbeConfig(num_dancers=8)
