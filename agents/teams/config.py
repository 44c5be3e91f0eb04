"""Config fields of the learner `GAMATR` that its update modes use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scrubjay.agents.rl.trust_region import TrustRegionConfig

KLBudget = Literal["equal", "allocated"]
Advantage = Literal["own", "team"]


@dataclass(frozen=True)
class GAMATRSettings(TrustRegionConfig):
    """Config of `GAMATR`, including its trust regions. Raises ValueError on an invalid value."""

    mode: str = "sequential"
    """Update of the actors: sequential, independent, consensus, metagame, clip or clip_sequential; see
    `scrubjay.agents.teams.gamatr`."""
    kl_limit: float = 0.01
    """Maximum mean KL divergence of each agent from its sampling policy per update, in nats."""
    kl_budget: KLBudget = "equal"
    """Divergence limits of the agents: equal or allocated. With equal, the limit of each agent is `kl_limit`.
    With allocated, the mean of the limits is `kl_limit`, and the limit of each agent is proportional to the
    square of its expected improvement."""
    advantage: Advantage = "own"
    """Advantage that each agent maximizes: own or team. With own, it is the advantage of this agent. With
    team, it is the mean advantage of all living agents, which is noisier."""
    normalize_advantage: bool = True
    """Normalize the advantages of each agent to mean 0 and standard deviation 1."""
    gamma: float = 0.97
    """Discount factor; use 1 only if every episode terminates."""
    gae_lambda: float = 0.95
    """Lambda of generalized advantage estimation: bias-variance trade-off between the critic (0) and returns
    (1)."""
    entropy_coefficient: float = 0.0
    """Coefficient of the entropy bonus."""
    critic_learning_rate: float = 3e-3
    """Learning rate of the critic's Adam optimizer."""
    curvature_share: float = 0.25
    """Fraction of the environments that the Fisher information uses. Gradient and divergence use all."""
    critic_epochs: int = 5
    """Number of training epochs of the critic on each batch."""
    minibatches: int = 4
    """Number of minibatches per epoch, for the critic and, in clip modes, also for the actors. A minibatch
    has the whole segments of some environments."""
    normalize_values: bool = True
    """Normalize the critic's targets by the running mean and standard deviation of returns."""
    max_grad_norm: float = 1.0
    """Maximum norm for gradient clipping, of the critic and of actors in clip modes."""
    learning_rate: float = 5e-4
    """Learning rate of the actors' Adam optimizer in clip modes."""
    epochs: int = 5
    """Epochs of the actors over each batch in clip modes."""
    clip: float = 0.2
    """Clip range in clip modes: policy ratios are clipped to [1 - clip, 1 + clip]."""
    consensus_rounds: int = 10
    """Number of consensus rounds (ADMM iterations) per update in mode consensus."""
    consensus_penalty: float = 1.0
    """Penalty coefficient of the augmented Lagrangian in mode consensus."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("kl_budget", KLBudget), ("advantage", Advantage)):
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"{name}={getattr(self, name)!r}: choose from {', '.join(get_args(choices))}"
                )
        if not 0 <= self.gamma <= 1 or not 0 <= self.gae_lambda <= 1:
            raise ValueError(f"gamma={self.gamma}, gae_lambda={self.gae_lambda}: both must lie in [0, 1]")
        if not 0 < self.curvature_share <= 1:
            raise ValueError(f"curvature_share={self.curvature_share}: must lie in (0, 1]")
        for name in ("critic_epochs", "minibatches", "epochs", "consensus_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        for name in (
            "kl_limit",
            "critic_learning_rate",
            "max_grad_norm",
            "learning_rate",
            "clip",
            "consensus_penalty",
        ):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if not self.entropy_coefficient >= 0:
            raise ValueError(f"entropy_coefficient={self.entropy_coefficient}: must not be negative")
