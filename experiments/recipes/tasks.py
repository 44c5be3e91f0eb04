"""Recipes of tasks for one agent, each of which tests one ability of a memory."""

from __future__ import annotations

import dataclasses
from typing import Any

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.runs.ballet_probe import BalletProbeConfig
from scrubjay.experiments.runs.reinforcement import TrainConfig
from scrubjay.experiments.tasks.environments import EnvConfig, KwargValue
from scrubjay.memory import make_config

# Counting, and recall at a distance that depends on the current step, need a second layer. GTrXL has two by
# default.
TWO_LAYERS = {"hcam": {"num_layers": 2}}


@recipe(
    "tmaze",
    title="T-maze, corridor of 50 steps",
    longer=("corridor_length", (1, 2, 5, 10, 100)),
    episode_steps=51,
)
def tmaze() -> TrainConfig:
    """T-maze, corridor of 50 steps: a cue at the start shows where to turn at the end."""
    return TrainConfig(
        # After a lost step, every later step is penalized and actions no longer matter. Only the reward input
        # distinguishes these steps from others: observations are the same.
        env=EnvConfig(
            "scrubjay/TMaze-v0", {"corridor_length": 50}, num_envs=64, inputs=("observation", "reward")
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True, skip=True),
        # The barrier restores exploration if the policy settles on one turn before it uses the cue.
        learner=PPOConfig(
            anneal=True,
            barrier_coefficient=0.01,
            num_minibatches=8,
            reconstruction_coefficient=1.0,
        ),
        total_steps=1_500_000,
        segment_length=128,
    )


# All slots are written during training, as else their selection is not learned; blend=0 keeps first contents.
_SLOT_SETTINGS = {"elmur": {"chunk_size": 4, "num_slots": 2, "blend": 0.0}}


@recipe(
    "tmaze-20",
    title="T-maze, corridor of 20 steps",
    longer=("corridor_length", (1, 25, 500)),
    settings=_SLOT_SETTINGS,
    episode_steps=21,
)
def tmaze_20() -> TrainConfig:
    """T-maze, corridor of 20 steps, with the settings of tmaze; tested at lengths up to 10,000."""
    config = tmaze()
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, kwargs={"corridor_length": 20}),
        total_steps=500_000,
        segment_length=64,
    )


def _gru_config(
    env_id: str,
    kwargs: dict[str, KwargValue],
    learner: PPOConfig,
    total_steps: int = 600_000,
    segment_length: int = 64,
    **policy: Any,
) -> TrainConfig:
    """Return the config of a policy with a GRU of width 64 in 64 environments.

    `kwargs` are settings of the environment, and `policy` are other fields of the policy.
    """
    return TrainConfig(
        env=EnvConfig(env_id, kwargs, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64), **policy),
        learner=learner,
        total_steps=total_steps,
        segment_length=segment_length,
    )


@recipe(
    "tmaze-demo",
    title="T-maze, corridor of 20 steps, short training",
    longer=("corridor_length", (1, 2, 5, 10)),
    episode_steps=21,
)
def tmaze_demo() -> TrainConfig:
    """T-maze, corridor of 20 steps: trains in one to two minutes on a laptop."""
    return _gru_config(
        "scrubjay/TMaze-v0",
        {"corridor_length": 20},
        # With a constant learning rate, 2 of 40 runs of hcam lost the solved task for good.
        PPOConfig(entropy_coefficient=0.03, anneal=True),
        total_steps=240_000,
        segment_length=32,
    )


@recipe(
    "repeat-previous",
    title="RepeatPrevious, 4 steps back",
    longer=("num_decks", (1, 2, 5, 10)),
    episode_steps=51,
)
def repeat_previous() -> TrainConfig:
    """Name the suit of the card shown four steps ago."""
    return _gru_config("scrubjay/RepeatPrevious-v0", {"k": 4, "num_decks": 1}, PPOConfig())


@recipe("recall-demo", title="RepeatPrevious, short training", episode_steps=51)
def recall_demo() -> TrainConfig:
    """Name the suit of the card shown four steps ago; the short training of `scrubjay demo`."""
    return dataclasses.replace(repeat_previous(), total_steps=250_000)


@recipe(
    "autoencode",
    title="Autoencode, 8 cards",
    longer=("num_cards", (1, 2, 4)),
    settings=TWO_LAYERS,
    episode_steps=15,
)
def autoencode() -> TrainConfig:
    """Watch 8 cards, then name their suits in reverse order."""
    return _gru_config(
        "scrubjay/Autoencode-v0",
        {"num_cards": 8},
        # Answers do not affect later steps, so a short horizon only reduces noise in the advantages.
        PPOConfig(gamma=0.9),
        clock=True,  # the distance to the queried card depends on the step
    )


@recipe("memory-planning", title="MemoryPlanning, 2 x 2 grid", settings=TWO_LAYERS, episode_steps=20)
def memory_planning() -> TrainConfig:
    """Explore an unknown 2 x 2 torus and walk to a sequence of goals."""
    return _gru_config(
        "scrubjay/MemoryPlanning-v0",
        {"size": 2, "max_steps": 20},
        PPOConfig(learning_rate=2e-3, gamma=0.95),
        segment_length=20,
    )


@recipe(
    "key-to-door",
    title="KeyToDoor",
    longer=("distract_steps", (1, 2, 5, 10)),
    settings=TWO_LAYERS,
    episode_steps=31,
)
def key_to_door() -> TrainConfig:
    """Pick up a colored key, wait, then enter the door of the same color."""
    return _gru_config(
        "scrubjay/KeyToDoor-v0",
        {
            "num_colours": 2,
            "explore_steps": 6,
            "distract_steps": 10,
            "apple_reward": 0.0,
            "shuffle_doors": False,
        },
        PPOConfig(learning_rate=2e-3, gamma=0.98, entropy_coefficient=0.03),
    )


@recipe("count-recall", title="CountRecall, 12 cards", settings=TWO_LAYERS, episode_steps=11)
def count_recall() -> TrainConfig:
    """Count how often the queried card has occurred among up to 12 cards."""
    return _gru_config(
        "scrubjay/CountRecall-v0",
        {"num_cards": 12, "num_values": 2},
        PPOConfig(learning_rate=2e-3, anneal=True, gamma=0.5),
        clock=True,  # attention yields the share of matching cards; the clock turns it into a count
    )


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


@recipe("ballet", title="Ballet, 2 dancers", settings={"hcam": _hcam_settings(4)}, episode_steps=66)
def ballet() -> TrainConfig:
    """Ballet: watch 2 dancers, then walk to the one whose dance is named; see also ballet-4 and -8."""
    return _ballet_config({"num_dancers": 2, "delay": 2}, 4, num_envs=192, segment_length=64)


@recipe(
    "ballet-4",
    title="Ballet, 2 to 4 dancers",
    settings={"hcam": _hcam_settings(10), "landmark": {"top_k": 10}},
    episode_steps=160,
)
def ballet_4() -> TrainConfig:
    """Ballet with 2 to 4 dancers and 16 steps between dances."""
    return _ballet_config(
        {"num_dancers": 4, "min_dancers": 2, "delay": 16}, 10, num_envs=96, segment_length=160
    )


@recipe(
    "ballet-8",
    title="Ballet, 2 to 8 dancers",
    settings={"hcam": _hcam_settings(18), "landmark": {"top_k": 18}},
    episode_steps=288,
)
def ballet_8() -> TrainConfig:
    """Ballet with 2 to 8 dancers and 16 steps between dances."""
    return _ballet_config(
        {"num_dancers": 8, "min_dancers": 2, "delay": 16}, 18, num_envs=64, segment_length=288
    )


@recipe("ballet-reconstruction", title="Ballet, with HCAM's reconstruction loss")
def ballet_reconstruction() -> TrainConfig:
    """Ballet with symbolic observations and HCAM's reconstruction loss."""
    return _gru_config(
        "scrubjay/Ballet-v0",
        {"num_dancers": 2, "delay": 2, "observation": "symbolic"},
        PPOConfig(entropy_coefficient=0.02, reconstruction_coefficient=1.0),
        total_steps=2_000_000,
        reconstruction=True,
    )


@recipe("ballet-probe", title="Ballet, supervised, 2 dancers", settings=_PROBE_SETTINGS)
def ballet_probe() -> BalletProbeConfig:
    """Supervised: watch 2 dancers, then name the dancer of each dance; see also ballet-probe-4 and -8."""
    return BalletProbeConfig()


@recipe("ballet-probe-4", title="Ballet, supervised, 4 dancers", settings=_PROBE_SETTINGS)
def ballet_probe_4() -> BalletProbeConfig:
    """Supervised: watch 4 dancers, then name the dancer of each dance."""
    return BalletProbeConfig(num_dancers=4)


@recipe("ballet-probe-8", title="Ballet, supervised, 8 dancers", settings=_PROBE_SETTINGS)
def ballet_probe_8() -> BalletProbeConfig:
    """Supervised: watch 8 dancers, then name the dancer of each dance."""
    return BalletProbeConfig(num_dancers=8)


# POPGym's easy tasks (Morad et al. 2023, arXiv 2303.01859), each with one config for all memories. Two
# configs differ only in the discount factor. It is 0.9 for the card tasks, whose answers do not affect later
# steps, and 0.99 for the cart-pole task, whose pushes do. Use the recipes with a search of settings:
# `scrubjay compare --search --recipes popgym-autoencode ...`.
def _popgym_config(env_id: str, kwargs: dict[str, KwargValue], gamma: float) -> TrainConfig:
    learner = PPOConfig(anneal=True, gamma=gamma)
    return _gru_config(env_id, kwargs, learner, total_steps=1_000_000)


@recipe("popgym-repeat-previous", title="POPGym RepeatPreviousEasy", settings=TWO_LAYERS, episode_steps=51)
def popgym_repeat_previous() -> TrainConfig:
    """POPGym's RepeatPreviousEasy: name the suit of the card shown four steps ago."""
    return _popgym_config("scrubjay/RepeatPrevious-v0", {"k": 4}, gamma=0.9)


@recipe("popgym-autoencode", title="POPGym AutoencodeEasy", settings=TWO_LAYERS, episode_steps=103)
def popgym_autoencode() -> TrainConfig:
    """POPGym's AutoencodeEasy: watch 52 cards, then name their suits in reverse order."""
    return _popgym_config("scrubjay/Autoencode-v0", {"num_cards": 52}, gamma=0.9)


@recipe("popgym-count-recall", title="POPGym CountRecallEasy", settings=TWO_LAYERS, episode_steps=51)
def popgym_count_recall() -> TrainConfig:
    """POPGym's CountRecallEasy: count the cards of the queried color among up to 52."""
    return _popgym_config("scrubjay/CountRecall-v0", {"num_cards": 52, "num_values": 2}, gamma=0.9)


@recipe("popgym-cartpole", title="POPGym PositionOnlyCartPoleEasy", settings=TWO_LAYERS, episode_steps=200)
def popgym_cartpole() -> TrainConfig:
    """POPGym's PositionOnlyCartPoleEasy: balance a pole; only position and angle are observed."""
    return _popgym_config("popgym:popgym-PositionOnlyCartPoleEasy-v0", {}, gamma=0.99)
