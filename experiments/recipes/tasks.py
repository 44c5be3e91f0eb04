"""Recipes of small tasks, each of which asks one thing of a memory."""

from __future__ import annotations

import dataclasses

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config

# To count, or to find what lies as far back as the answer is away, takes a second layer; GTrXL has two by
# default.
TWO_LAYERS = {"hcam": {"num_layers": 2}}


@recipe("tmaze", longer=("corridor_length", (1, 2, 5, 10, 100)))
def tmaze() -> TrainConfig:
    """T-maze, corridor of 50: a cue at the start tells where to turn at the end."""
    return TrainConfig(
        # A lost step costs in all later ones, in which actions then matter no more. Only who is told what was
        # paid can tell these from steps in which they do: all else looks alike.
        env=EnvConfig(
            "scrubjay/TMaze-v0", {"corridor_length": 50}, num_envs=64, inputs=("observation", "reward")
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True, skip=True),
        # A policy that settles on one turn, or on none, before it heeds the cue must come to try the other
        # again. Once all turns are right, advantages stretched to deviation 1 are noise, and unlearn.
        ppo=PPOConfig(
            learning_rate=1e-3,
            anneal=True,
            barrier_coefficient=0.01,
            least_deviation=0.1,
            num_minibatches=8,
            reconstruction_coefficient=1.0,
        ),
        total_steps=1_500_000,
        segment_length=128,
    )


# Slots that are all written in training, or none would be chosen there; what they hold first, stays.
_KEEPING = {"elmur": {"chunk_size": 4, "num_slots": 2, "blend": 0.0}}


@recipe("tmaze-20", longer=("corridor_length", (1, 25, 500)), settings=_KEEPING)
def tmaze_20() -> TrainConfig:
    """T-maze, corridor of 20, with what makes that of 50 learned; tested at up to 10,000."""
    config = tmaze()
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, kwargs={"corridor_length": 20}),
        total_steps=500_000,
        segment_length=64,
    )


@recipe("tmaze-demo", longer=("corridor_length", (1, 2, 5, 10)))
def tmaze_demo() -> TrainConfig:
    """T-maze, corridor of 20: learned in a minute or two on a laptop."""
    return TrainConfig(
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.03),
        total_steps=240_000,
        segment_length=32,
    )


@recipe("repeat-previous", longer=("num_decks", (1, 2, 5, 10)))
def repeat_previous() -> TrainConfig:
    """Say which suit was shown four cards ago."""
    return TrainConfig(
        env=EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 4, "num_decks": 1}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("recall-demo")
def recall_demo() -> TrainConfig:
    """Say which suit was shown four cards ago; the short training that `scrubjay demo` shows."""
    return dataclasses.replace(repeat_previous(), total_steps=250_000)


@recipe("autoencode", longer=("num_cards", (1, 2, 4)), settings=TWO_LAYERS)
def autoencode() -> TrainConfig:
    """Watch 8 cards go by, then name their suits backwards."""
    return TrainConfig(
        env=EnvConfig("scrubjay/Autoencode-v0", {"num_cards": 8}, num_envs=64),
        # How far back the card lies that is asked for hangs on how late it is.
        policy=PolicyConfig(memory=make_config("gru", dim=64), clock=True),
        # Answers change nothing that comes later, so a short horizon only takes noise from the advantages.
        ppo=PPOConfig(learning_rate=1e-3, gamma=0.9),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("memory-planning", settings=TWO_LAYERS)
def memory_planning() -> TrainConfig:
    """Learn an unknown torus of 2 x 2 places and walk to one goal after another."""
    return TrainConfig(
        env=EnvConfig("scrubjay/MemoryPlanning-v0", {"size": 2, "max_steps": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=2e-3, gamma=0.95),
        total_steps=600_000,
        segment_length=20,
    )


@recipe("key-to-door", longer=("distract_steps", (1, 2, 5, 10)), settings=TWO_LAYERS)
def key_to_door() -> TrainConfig:
    """Take a coloured key, wait, enter the door of its colour."""
    return TrainConfig(
        env=EnvConfig(
            "scrubjay/KeyToDoor-v0",
            {
                "num_colours": 2,
                "explore_steps": 6,
                "distract_steps": 10,
                "apple_reward": 0.0,
                "shuffle_doors": False,
            },
            num_envs=64,
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=2e-3, gamma=0.98, entropy_coefficient=0.03),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("count-recall", settings=TWO_LAYERS)
def count_recall() -> TrainConfig:
    """Say how often a card was seen among up to 12."""
    return TrainConfig(
        env=EnvConfig("scrubjay/CountRecall-v0", {"num_cards": 12, "num_values": 2}, num_envs=64),
        # Attention finds the share of cards like the one asked for; their number is that by all there were.
        policy=PolicyConfig(memory=make_config("gru", dim=64), clock=True),
        ppo=PPOConfig(learning_rate=2e-3, anneal=True, gamma=0.5),
        total_steps=600_000,
        segment_length=64,
    )
