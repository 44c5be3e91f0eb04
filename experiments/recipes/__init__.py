"""Recipes: functions that return a full config. The first line of each docstring is its description."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig
from scrubjay.agents.teams.policy import TeamPolicyConfig
from scrubjay.experiments.kinds.ballet_probe import BalletProbeConfig
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.kinds.sequence import SequenceTaskConfig
from scrubjay.experiments.kinds.team import TeamTaskConfig
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.suites import MQAR, Induction, Needle, SelectiveCopy
from scrubjay.experiments.tasks.teams import TeamEnvConfig
from scrubjay.memory import MemoryConfig, make_config

AnyExperiment = TypeVar("AnyExperiment", bound=Experiment)


def tmaze() -> TrainConfig:
    """T-maze, corridor of 50: a cue at the start tells where to turn at the end."""
    return TrainConfig(
        recipe="tmaze",
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 50}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64), reconstruction=True),
        # The one step that pays comes at the junction. With a smaller bonus for trying things out, or with fewer
        # junctions in a batch, a policy settles on one turn before it has learned to heed the cue.
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.02, reconstruction_coefficient=1.0),
        total_steps=800_000,
        segment_length=64,
    )


def tmaze_demo() -> TrainConfig:
    """T-maze, corridor of 20: learned in a minute or two on a laptop."""
    return TrainConfig(
        recipe="tmaze-demo",
        env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.03),
        total_steps=240_000,
        segment_length=32,
    )


def repeat_previous() -> TrainConfig:
    """Say which suit was shown four cards ago."""
    return TrainConfig(
        recipe="repeat-previous",
        env=EnvConfig("scrubjay/RepeatPrevious-v0", {"k": 4, "num_decks": 1}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3),
        total_steps=600_000,
        segment_length=64,
    )


def recall_demo() -> TrainConfig:
    """Say which suit was shown four cards ago; the short training that `scrubjay demo` shows."""
    return dataclasses.replace(repeat_previous(), recipe="recall-demo", total_steps=250_000)


def autoencode() -> TrainConfig:
    """Watch 8 cards go by, then name their suits backwards."""
    return TrainConfig(
        recipe="autoencode",
        env=EnvConfig("scrubjay/Autoencode-v0", {"num_cards": 8}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        # Answers change nothing that comes later, so a short horizon only takes noise from the advantages.
        ppo=PPOConfig(learning_rate=1e-3, gamma=0.9),
        total_steps=600_000,
        segment_length=64,
    )


def memory_planning() -> TrainConfig:
    """Learn an unknown torus of 2 x 2 places and walk to one goal after another."""
    return TrainConfig(
        recipe="memory-planning",
        env=EnvConfig("scrubjay/MemoryPlanning-v0", {"size": 2, "max_steps": 20}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=2e-3, gamma=0.95),
        total_steps=600_000,
        segment_length=20,
    )


def key_to_door() -> TrainConfig:
    """Take a coloured key, wait, enter the door of its colour."""
    return TrainConfig(
        recipe="key-to-door",
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


def count_recall() -> TrainConfig:
    """Say how often a card was seen among up to 12."""
    return TrainConfig(
        recipe="count-recall",
        env=EnvConfig("scrubjay/CountRecall-v0", {"num_cards": 12, "num_values": 2}, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=2e-3, gamma=0.5),
        total_steps=600_000,
        segment_length=64,
    )


def ballet() -> TrainConfig:
    """Ballet from symbols: watch 2 dancers, walk up to the one whose dance is named."""
    return TrainConfig(
        recipe="ballet",
        env=EnvConfig(
            "scrubjay/Ballet-v0", {"num_dancers": 2, "delay": 2, "observation": "symbolic"}, num_envs=64
        ),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3, entropy_coefficient=0.02),
        total_steps=2_000_000,
        segment_length=64,
    )


def ballet_reconstruction() -> TrainConfig:
    """Ballet from symbols, with HCAM's loss that redraws what is seen."""
    plain = ballet()
    return dataclasses.replace(
        plain,
        recipe="ballet-reconstruction",
        policy=dataclasses.replace(plain.policy, reconstruction=True),
        ppo=dataclasses.replace(plain.ppo, reconstruction_coefficient=1.0),
    )


def ballet_probe() -> BalletProbeConfig:
    """Supervised: watch 2 dancers, then say who danced what; `ballet-probe-4` and `-8` have more."""
    return BalletProbeConfig()


def ballet_probe_4() -> BalletProbeConfig:
    """Supervised: watch 4 dancers, then say who danced what."""
    return BalletProbeConfig(recipe="ballet-probe-4", num_dancers=4)


def ballet_probe_8() -> BalletProbeConfig:
    """Supervised: watch 8 dancers, then say who danced what."""
    return BalletProbeConfig(recipe="ballet-probe-8", num_dancers=8)


def mqar() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 keys and their values, then each key again: say its value."""
    return SequenceTaskConfig(suite=MQAR())


def needle() -> SequenceTaskConfig:
    """Supervised, as a sequence model: one key and its value hidden in hay."""
    return SequenceTaskConfig(recipe="needle", suite=Needle(), eval_items=(), eval_rows=256)


def multikey_needle() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 keys and their values hidden in hay, one asked for."""
    return SequenceTaskConfig(recipe="multikey-needle", suite=Needle(vocab_size=80, num_items=8))


def selective_copy() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 tokens among noise, to be said again in order."""
    return SequenceTaskConfig(recipe="selective-copy", suite=SelectiveCopy())


def induction() -> SequenceTaskConfig:
    """Supervised, as a sequence model: say what followed the trigger the first time."""
    return SequenceTaskConfig(recipe="induction", suite=Induction(), eval_items=(), eval_rows=256)


def ppo() -> TrainConfig:
    """Any gymnasium environment: `scrubjay train ppo --env ID|module:callable`."""
    return TrainConfig(
        recipe="ppo", env=EnvConfig(""), policy=PolicyConfig(memory=make_config("gru", dim=64))
    )


def uav_small() -> TeamTaskConfig:
    """Two flying base stations learn where to fly and on which sub-channel to serve users below."""
    return TeamTaskConfig(
        recipe="uav-small",
        env=TeamEnvConfig(kwargs={"preset": "small"}, num_envs=64),
        # Actors of their own: two that share one take long to find out that one should go left and the other right.
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


def uav_paper() -> TeamTaskConfig:
    """The same with four base stations, of the size that papers use."""
    return TeamTaskConfig(
        recipe="uav-paper",
        env=TeamEnvConfig(kwargs={"preset": "paper"}, num_envs=64),
        policy=TeamPolicyConfig(shared=False),
        total_steps=200_000,
    )


def uav_three() -> TeamTaskConfig:
    """Three base stations with one common actor, which then flies in teams of two to ten."""
    return TeamTaskConfig(
        recipe="uav-three",
        method="gamatr-shared",
        env=TeamEnvConfig(kwargs={"preset": "paper", "num_uavs": 3}, num_envs=64),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


def uav_city() -> TeamTaskConfig:
    """Ten base stations with one common actor over a hundred users and three hot spots."""
    return TeamTaskConfig(
        recipe="uav-city",
        method="gamatr-shared",
        env=TeamEnvConfig(kwargs={"preset": "city"}, num_envs=32),
        learner=GAMATRConfig(mode="independent"),
        total_steps=200_000,
    )


def spread() -> TeamTaskConfig:
    """Three agents cover three landmarks without bumping into each other: simple_spread_v3 (extra `mpe`)."""
    return TeamTaskConfig(
        recipe="spread",
        method="hatrpo",
        env=TeamEnvConfig("mpe2.simple_spread_v3:parallel_env", {"N": 3, "max_cycles": 25}, num_envs=40),
        policy=TeamPolicyConfig(
            memory=make_config("none", dim=64), graph_rounds=0, critic="pooled", shared=False
        ),
        learner=GAMATRConfig(mode="sequential", advantage="team"),
        total_steps=200_000,
    )


RECIPES: dict[str, Callable[[], TrainConfig | BalletProbeConfig | SequenceTaskConfig | TeamTaskConfig]] = {
    "tmaze": tmaze,
    "tmaze-demo": tmaze_demo,
    "repeat-previous": repeat_previous,
    "recall-demo": recall_demo,
    "autoencode": autoencode,
    "memory-planning": memory_planning,
    "key-to-door": key_to_door,
    "count-recall": count_recall,
    "ballet": ballet,
    "ballet-reconstruction": ballet_reconstruction,
    "ballet-probe": ballet_probe,
    "ballet-probe-4": ballet_probe_4,
    "ballet-probe-8": ballet_probe_8,
    "mqar": mqar,
    "needle": needle,
    "multikey-needle": multikey_needle,
    "selective-copy": selective_copy,
    "induction": induction,
    "uav-small": uav_small,
    "uav-paper": uav_paper,
    "uav-three": uav_three,
    "uav-city": uav_city,
    "spread": spread,
    "ppo": ppo,
}

LONGER: dict[str, tuple[str, tuple[int, ...]]] = {
    "tmaze": ("corridor_length", (1, 2, 5, 10)),
    "tmaze-demo": ("corridor_length", (1, 2, 5, 10)),
    "repeat-previous": ("num_decks", (1, 2, 5, 10)),
    "autoencode": ("num_cards", (1, 2, 4)),
    "key-to-door": ("distract_steps", (1, 2, 5, 10)),
}
"""What makes a recipe's task longer, and how many times longer a trained policy is tested."""

# 8 dances lie in 16 chunks; a choice of fewer would leave out the asked one too often, before it is learned which that
# is. And only gradients teach the first layer what the second can ask for: there is no reconstruction loss here.
_PROBING = {"hcam": {"num_layers": 2, "top_k": 16, "stop_memory_gradient": False}}
# To count, or to find what lies as far back as the answer is away, takes a second layer; GTrXL has two by default.
_TWO_LAYERS = {"hcam": {"num_layers": 2}}
# 8 chunks in the sequences trained on, of which 4 are read: so choosing is learned. The longest test's all are kept. One
# layer a block, for all memories alike.
_SEQUENCES = {
    "hcam": {"chunk_size": 8, "num_chunks": 128},
    "sink": {"num_layers": 1},
    "gtrxl": {"num_layers": 1},
}
MEMORY_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    "autoencode": _TWO_LAYERS,
    "memory-planning": _TWO_LAYERS,
    "key-to-door": _TWO_LAYERS,
    "count-recall": _TWO_LAYERS,
    "ballet-probe": _PROBING,
    "ballet-probe-4": _PROBING,
    "ballet-probe-8": _PROBING,
    "mqar": _SEQUENCES,
    "needle": _SEQUENCES,
    "multikey-needle": _SEQUENCES,
    "selective-copy": _SEQUENCES,
    "induction": _SEQUENCES,
}
"""What single memories get on a recipe beside their defaults when only their name is given."""


def describe(recipe: Callable[[], Experiment]) -> str:
    """Return the first line of a recipe's docstring."""
    return (recipe.__doc__ or "").strip().partition("\n")[0]


def with_memory(config: AnyExperiment, memory: str | MemoryConfig) -> AnyExperiment:
    """Return the same experiment with another memory, of the same width if only its name is given.

    Raises ValueError on an unknown name.
    """
    if isinstance(memory, str):
        settings = MEMORY_SETTINGS.get(config.recipe, {}).get(memory, {})
        memory = make_config(memory, dim=config.memory.dim, **settings)
    return config.with_memory(memory)
