"""Recipes of POPGym's easy tasks (Morad et al. 2023, arXiv 2303.01859), each with one config for all
memories. The configs of two tasks differ only in the discount factor. It is 0.9 for the card tasks, whose
answers do not affect later steps, and 0.99 for the cart-pole task, whose pushes do. Use the recipes with a
search of settings: `scrubjay compare --search --recipes popgym-autoencode ...`."""

from __future__ import annotations

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments.experiment_types.reinforcement import TrainConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.recipes.tasks import TWO_LAYERS
from scrubjay.experiments.tasks.environments import EnvConfig
from scrubjay.experiments.tasks.kwargs import KwargValue
from scrubjay.memory import make_config


def _popgym_config(env_id: str, kwargs: dict[str, KwargValue], gamma: float) -> TrainConfig:
    return TrainConfig(
        env=EnvConfig(env_id, kwargs, num_envs=64),
        policy=PolicyConfig(memory=make_config("gru", dim=64)),
        learner=PPOConfig(learning_rate=1e-3, anneal=True, gamma=gamma),
        total_steps=1_000_000,
        segment_length=64,
    )


@recipe("popgym-repeat-previous", settings=TWO_LAYERS)
def popgym_repeat_previous() -> TrainConfig:
    """POPGym's RepeatPreviousEasy: name the suit of the card shown four steps ago."""
    return _popgym_config("scrubjay/RepeatPrevious-v0", {"k": 4}, gamma=0.9)


@recipe("popgym-autoencode", settings=TWO_LAYERS)
def popgym_autoencode() -> TrainConfig:
    """POPGym's AutoencodeEasy: watch 52 cards, then name their suits in reverse order."""
    return _popgym_config("scrubjay/Autoencode-v0", {"num_cards": 52}, gamma=0.9)


@recipe("popgym-count-recall", settings=TWO_LAYERS)
def popgym_count_recall() -> TrainConfig:
    """POPGym's CountRecallEasy: count the cards of the queried color among up to 52."""
    return _popgym_config("scrubjay/CountRecall-v0", {"num_cards": 52, "num_values": 2}, gamma=0.9)


@recipe("popgym-cartpole", settings=TWO_LAYERS)
def popgym_cartpole() -> TrainConfig:
    """POPGym's PositionOnlyCartPoleEasy: balance a pole; only position and angle are observed."""
    return _popgym_config("popgym:popgym-PositionOnlyCartPoleEasy-v0", {}, gamma=0.99)
