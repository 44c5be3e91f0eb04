"""Recipes of POPGym's easy tasks (Morad et al. 2023, arXiv 2303.01859), of one shape for all memories.

What differs by task is the horizon alone: an answer changes nothing that comes later, a push of the cart
does. They are made to be searched: `scrubjay compare --search --recipes popgym-autoencode ...`.
"""

from __future__ import annotations

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.kinds.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.recipes.tasks import TWO_LAYERS
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.settings import KwargValue
from scrubjay.memory import make_config


def _easy(env_id: str, kwargs: dict[str, KwargValue], gamma: float) -> TrainConfig:
    return TrainConfig(
        env=EnvConfig(env_id, kwargs, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        ppo=PPOConfig(learning_rate=1e-3, anneal=True, gamma=gamma),
        total_steps=1_000_000,
        segment_length=64,
    )


@recipe("popgym-repeat-previous", settings=TWO_LAYERS)
def popgym_repeat_previous() -> TrainConfig:
    """POPGym's RepeatPreviousEasy: say which suit was shown four cards ago."""
    return _easy("scrubjay/RepeatPrevious-v0", {"k": 4}, gamma=0.9)


@recipe("popgym-autoencode", settings=TWO_LAYERS)
def popgym_autoencode() -> TrainConfig:
    """POPGym's AutoencodeEasy: watch 52 cards go by, then name their suits backwards."""
    return _easy("scrubjay/Autoencode-v0", {"num_cards": 52}, gamma=0.9)


@recipe("popgym-count-recall", settings=TWO_LAYERS)
def popgym_count_recall() -> TrainConfig:
    """POPGym's CountRecallEasy: say how many of up to 52 cards had the colour asked for."""
    return _easy("scrubjay/CountRecall-v0", {"num_cards": 52, "num_values": 2}, gamma=0.9)


@recipe("popgym-cartpole", settings=TWO_LAYERS)
def popgym_cartpole() -> TrainConfig:
    """POPGym's PositionOnlyCartPoleEasy: balance a pole of which only the place and the angle are seen."""
    return _easy("popgym:popgym-PositionOnlyCartPoleEasy-v0", {}, gamma=0.99)
