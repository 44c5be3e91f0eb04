"""Recipes of Ballet: reinforcement learning in the environment, and supervised probes of the memory."""

from __future__ import annotations

from typing import Any

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.experiment_types.ballet_probe import BalletProbeConfig
from scrubjay.experiments.experiment_types.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config

# 8 dances span 16 chunks. With a smaller top_k the relevant chunk would often be left out before the
# selection is learned. Gradients flow into the memory, since no reconstruction loss trains its contents.
_PROBE_SETTINGS = {"hcam": {"top_k": 16, "stop_memory_gradient": False}, "landmark": {"top_k": 16}}


def _hcam_settings(chunks: int) -> dict[str, Any]:
    """Return HCAM settings for reinforcement learning on episodes that fill `chunks` chunks.

    HCAM reads all chunks. Gradients flow through the stored chunks back to the steps of the dances, since no
    separate loss trains the contents of the memory.
    """
    return {"top_k": chunks, "stop_memory_gradient": False}


def _ballet_config(dancers: dict[str, Any], chunks: int, num_envs: int, segment_length: int) -> TrainConfig:
    """Return a reinforcement-learning config for Ballet; `dancers` has settings such as num_dancers."""
    return TrainConfig(
        # With the original's 1,024 steps a random walk also arrives, so success would not require learning.
        env=EnvConfig(
            "scrubjay/Ballet-v0", {**dancers, "observation": "set", "walk_steps": 32}, num_envs=num_envs
        ),
        policy=PolicyConfig(
            memory=make_config("hcam", dim=64, **_hcam_settings(chunks)),
            # Walking needs the current observation, not memory.
            skip=True,
            # Predicting the next observation requires knowing the dance.
            auxiliary=("next_observation",),
        ),
        learner=PPOConfig(
            learning_rate=2e-3, anneal=True, gamma=0.97, gae_lambda=0.9, epochs=3, auxiliary_coefficient=0.5
        ),
        total_steps=3_000_000,
        segment_length=segment_length,
    )


@recipe("ballet", settings={"hcam": _hcam_settings(4)})
def ballet() -> TrainConfig:
    """Ballet: watch 2 dancers, then walk to the one whose dance is named; see also ballet-4 and -8."""
    return _ballet_config({"num_dancers": 2, "delay": 2}, 4, num_envs=192, segment_length=64)


@recipe("ballet-4", settings={"hcam": _hcam_settings(10), "landmark": {"top_k": 10}})
def ballet_4() -> TrainConfig:
    """Ballet with 2 to 4 dancers and 16 steps between dances."""
    return _ballet_config(
        {"num_dancers": 4, "min_dancers": 2, "delay": 16}, 10, num_envs=96, segment_length=160
    )


@recipe("ballet-8", settings={"hcam": _hcam_settings(18), "landmark": {"top_k": 18}})
def ballet_8() -> TrainConfig:
    """Ballet with 2 to 8 dancers and 16 steps between dances."""
    return _ballet_config(
        {"num_dancers": 8, "min_dancers": 2, "delay": 16}, 18, num_envs=64, segment_length=288
    )


@recipe("ballet-reconstruction")
def ballet_reconstruction() -> TrainConfig:
    """Ballet with symbolic observations and HCAM's reconstruction loss."""
    return TrainConfig(
        env=EnvConfig(
            "scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 2, "observation": "symbolic"}, num_envs=64
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True),
        learner=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.02, reconstruction_coefficient=1.0),
        total_steps=2_000_000,
        segment_length=64,
    )


@recipe("ballet-probe", settings=_PROBE_SETTINGS)
def ballet_probe() -> BalletProbeConfig:
    """Supervised: watch 2 dancers, then name the dancer of each dance; see also ballet-probe-4 and -8."""
    return BalletProbeConfig()


@recipe("ballet-probe-4", settings=_PROBE_SETTINGS)
def ballet_probe_4() -> BalletProbeConfig:
    """Supervised: watch 4 dancers, then name the dancer of each dance."""
    return BalletProbeConfig(num_dancers=4)


@recipe("ballet-probe-8", settings=_PROBE_SETTINGS)
def ballet_probe_8() -> BalletProbeConfig:
    """Supervised: watch 8 dancers, then name the dancer of each dance."""
    return BalletProbeConfig(num_dancers=8)
