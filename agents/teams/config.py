"""Settings of `GAMATR` as its modes read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from scrubjay.agents.rl.trust_region import TrustRegionConfig

KLBudget = Literal["equal", "allocated"]
Advantage = Literal["own", "team"]


@dataclass(frozen=True)
class GAMATRSettings(TrustRegionConfig):
    """Settings of `GAMATR`, those of its trust regions included. Raises ValueError on an impossible one."""

    mode: str = "sequential"
    """How the actors move: sequential, independent, consensus, metagame, clip or clip_sequential, see
    `scrubjay.agents.teams.gamatr`."""
    kl_limit: float = 0.01
    """How far an update may take any agent from the policy that sampled, in nats, as a mean over its
    steps."""
    kl_budget: KLBudget = "equal"
    """Whether each agent has `kl_limit`, or all share N times as much by what they can gain with it."""
    advantage: Advantage = "own"
    """Whether an agent improves its own reward, or the mean of all living agents' rewards, which is
    noisier."""
    normalize_advantage: bool = True
    """Whether to bring each agent's advantages to mean 0 and deviation 1."""
    gamma: float = 0.97
    """Discount per step; 1 for episodes that end by themselves."""
    gae_lambda: float = 0.95
    """Trust in rewards (1) over the critic (0) when estimating advantages."""
    entropy_coefficient: float = 0.0
    """Weight of the bonus for undecided policies."""
    critic_learning_rate: float = 3e-3
    """Adam's step size for the critic."""
    curvature_share: float = 0.25
    """Part of the batch's rows that the Fisher information is averaged over; gradient and divergence take
    all."""
    critic_epochs: int = 5
    """The critic's passes over each batch."""
    minibatches: int = 4
    """Gradient steps per pass, of the critic and of clipped actors; a minibatch is a set of whole rows."""
    normalize_values: bool = True
    """Whether the critic works on returns of mean 0 and deviation 1, by running moments of what was seen."""
    max_grad_norm: float = 1.0
    """Norm to which longer gradients of the critic, and of clipped actors, are shortened."""
    learning_rate: float = 5e-4
    """Adam's step size for clipped actors."""
    epochs: int = 5
    """Passes over each batch of clipped actors."""
    clip: float = 0.2
    """How far clipped actors let an action's probability move, as a ratio, before its gradient is cut."""
    consensus_rounds: int = 10
    """How often agents that seek consensus move and compare."""
    consensus_penalty: float = 1.0
    """Weight of what separates neighbours, as in the augmented Lagrangian."""

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
