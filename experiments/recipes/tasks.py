"""Recipes of small tasks, each of which tests one ability of a memory."""

from __future__ import annotations

import dataclasses

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.experiment_types.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.memory import make_config

# Counting, and recall at a distance that depends on the current step, need a second layer. GTrXL has two by
# default.
TWO_LAYERS = {"hcam": {"num_layers": 2}}


@recipe("tmaze", longer=("corridor_length", (1, 2, 5, 10, 100)))
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
        # `least_deviation`: once all turns are correct, advantages scaled to deviation 1 would be noise.
        learner=PPOConfig(
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


# All slots are written during training, as else their selection is not learned; blend=0 keeps first contents.
_SLOT_SETTINGS = {"elmur": {"chunk_size": 4, "num_slots": 2, "blend": 0.0}}


@recipe("tmaze-20", longer=("corridor_length", (1, 25, 500)), settings=_SLOT_SETTINGS)
def tmaze_20() -> TrainConfig:
    """T-maze, corridor of 20 steps, with the settings of tmaze; tested at lengths up to 10,000."""
    config = tmaze()
    return dataclasses.replace(
        config,
        env=dataclasses.replace(config.env, kwargs={"corridor_length": 20}),
        total_steps=500_000,
        segment_length=64,
    )


@recipe("tmaze-demo", longer=("corridor_length", (1, 2, 5, 10)))
def tmaze_demo() -> TrainConfig:
    """T-maze, corridor of 20 steps: trains in one to two minutes on a laptop."""
    return TrainConfig(
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        learner=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.03),
        total_steps=240_000,
        segment_length=32,
    )


@recipe("repeat-previous", longer=("num_decks", (1, 2, 5, 10)))
def repeat_previous() -> TrainConfig:
    """Name the suit of the card shown four steps ago."""
    return TrainConfig(
        env=EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 4, "num_decks": 1}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        learner=PPOConfig(learning_rate=1e-3),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("recall-demo")
def recall_demo() -> TrainConfig:
    """Name the suit of the card shown four steps ago; the short training of `scrubjay demo`."""
    return dataclasses.replace(repeat_previous(), total_steps=250_000)


@recipe("autoencode", longer=("num_cards", (1, 2, 4)), settings=TWO_LAYERS)
def autoencode() -> TrainConfig:
    """Watch 8 cards, then name their suits in reverse order."""
    return TrainConfig(
        env=EnvConfig("scrubjay/Autoencode-v0", {"num_cards": 8}, num_envs=64),
        # The distance to the queried card depends on the step, hence the clock.
        policy=PolicyConfig(memory=make_config("gru", dim=64), clock=True),
        # Answers do not affect later steps, so a short horizon only reduces noise in the advantages.
        learner=PPOConfig(learning_rate=1e-3, gamma=0.9),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("memory-planning", settings=TWO_LAYERS)
def memory_planning() -> TrainConfig:
    """Explore an unknown 2 x 2 torus and walk to a sequence of goals."""
    return TrainConfig(
        env=EnvConfig("scrubjay/MemoryPlanning-v0", {"size": 2, "max_steps": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        learner=PPOConfig(learning_rate=2e-3, gamma=0.95),
        total_steps=600_000,
        segment_length=20,
    )


@recipe("key-to-door", longer=("distract_steps", (1, 2, 5, 10)), settings=TWO_LAYERS)
def key_to_door() -> TrainConfig:
    """Pick up a colored key, wait, then enter the door of the same color."""
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
        learner=PPOConfig(learning_rate=2e-3, gamma=0.98, entropy_coefficient=0.03),
        total_steps=600_000,
        segment_length=64,
    )


@recipe("count-recall", settings=TWO_LAYERS)
def count_recall() -> TrainConfig:
    """Count how often the queried card has occurred among up to 12 cards."""
    return TrainConfig(
        env=EnvConfig("scrubjay/CountRecall-v0", {"num_cards": 12, "num_values": 2}, num_envs=64),
        # Attention yields the share of matching cards; the clock turns it into a count.
        policy=PolicyConfig(memory=make_config("gru", dim=64), clock=True),
        learner=PPOConfig(learning_rate=2e-3, anneal=True, gamma=0.5),
        total_steps=600_000,
        segment_length=64,
    )
