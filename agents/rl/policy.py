"""A policy that remembers: encoder, memory, and heads for action and value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl import pretrained
from scrubjay.agents.rl.auxiliary import HEADS, Auxiliary
from scrubjay.agents.rl.auxiliary.reconstruction import Reconstruction
from scrubjay.agents.rl.card import Origin
from scrubjay.agents.rl.distributions import Distribution, make_action_head
from scrubjay.agents.rl.encoders.entities import Pooling, make_encoder
from scrubjay.agents.rl.encoders.image import ImageKind
from scrubjay.agents.rl.observations import from_leaves, is_batched, to_leaves, to_tensors
from scrubjay.agents.rl.segment import Observation, Segment
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory import MemoryConfig, State, detach_state, make_config
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.positional import PositionalConfig
from scrubjay.memory.serialization import LATER
from scrubjay.memory.stack import StackConfig


@dataclass(frozen=True)
class PolicyConfig:
    """What a policy is built from, its spaces aside; every layer has the memory's width."""

    memory: MemoryConfig = dataclasses.field(default_factory=lambda: make_config("none"))
    """The memory between encoder and heads."""
    reconstruction: bool = False
    """Whether to add the head that redraws observations, for learners that use its loss."""
    auxiliary: tuple[Auxiliary, ...] = dataclasses.field(default=(), metadata=LATER)
    """Heads with losses of their own, for learners that weigh them: what is seen, and what will be."""
    skip: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether what is seen reaches the heads beside memory, too, by an encoder of its own."""
    pooling: Pooling = dataclasses.field(default="attention", metadata=LATER)
    """How sets in observations (a leaf NAME with a sibling NAME_mask) become one vector."""
    images: ImageKind = dataclasses.field(default="convolution", metadata=LATER)
    """How images in observations become one vector: by convolutions, or by attention between regions, too."""
    clock: bool = dataclasses.field(default=False, metadata=LATER)
    """Whether memory is told how old an episode is: what weighs steps to a sum of one cannot count else."""

    def __post_init__(self) -> None:
        given = [*self.auxiliary, *(["reconstruction"] if self.reconstruction else [])]
        if not set(given) <= set(HEADS) or len(set(given)) < len(given):
            raise ValueError(
                f"auxiliary={self.auxiliary!r}, reconstruction={self.reconstruction}: choose from "
                f"{', '.join(HEADS)}, each at most once"
            )

    @property
    def remembering(self) -> MemoryConfig:
        """The memory as it is built, told the time if it is to be."""
        if not self.clock:
            return self.memory
        parts = (PositionalConfig(self.memory.dim), self.memory)
        return StackConfig(self.memory.dim, parts, residual=False)

    def build(self, spaces: Spaces) -> Policy:
        """Return a new policy; raises TypeError on a space that is not supported, or on a team's spaces."""
        if spaces.num_agents is not None:
            raise TypeError(f"a team of {spaces.num_agents} needs a TeamPolicyConfig, not a PolicyConfig")
        return Policy(spaces.observation, spaces.action, self)


class PolicyStep(NamedTuple):
    """What a policy did with one observation per row, and what it remembers afterwards."""

    action: Tensor
    """Zero-based indices or unbounded numbers; `Policy.env_actions` makes them ready for an environment."""
    log_prob: Float[Tensor, "batch"]
    value: Float[Tensor, "batch"]
    state: State


class Choice(NamedTuple):
    """What a policy did with one observation per row, where somebody else remembers for it."""

    action: Tensor
    """As in `PolicyStep`."""
    log_prob: Float[Tensor, "batch"]
    value: Float[Tensor, "batch"]


class Evaluation(NamedTuple):
    """What a policy thinks today of a segment it may have lived through under older weights."""

    log_probs: Float[Tensor, "batch time"]
    entropy: Float[Tensor, "batch time"]
    values: Float[Tensor, "batch time"]
    reconstruction_loss: Float[Tensor, ""]
    """Zero unless the policy has the head for it."""
    auxiliary_losses: dict[str, Float[Tensor, ""]]
    """Of each head that `PolicyConfig.auxiliary` names."""
    distribution: Distribution
    """Of the actions, `[batch, time]`."""


class Policy(nn.Module):
    """Acts, values and evaluates, for any memory and any supported pair of spaces.

    Raises TypeError, naming the space, if it is not supported.
    """

    def __init__(
        self, observation_space: spaces.Space, action_space: spaces.Space, config: PolicyConfig | None = None
    ) -> None:
        super().__init__()
        self.config = config if config is not None else PolicyConfig()
        self.observation_space = observation_space
        self.action_space = action_space
        dim = self.config.memory.dim
        ways = self.config.pooling, self.config.images
        self.encoder = make_encoder(observation_space, dim, *ways)
        # An encoder of its own: a dance is to be kept, while where to walk is only to be seen.
        self.view = make_encoder(observation_space, dim, *ways) if self.config.skip else None
        self.memory = self.config.remembering.build()
        self.actor = make_action_head(action_space, dim)
        self.critic = nn.Linear(dim, 1)
        nn.init.orthogonal_(self.critic.weight)
        nn.init.zeros_(self.critic.bias)
        self.reconstruction = Reconstruction(observation_space, dim) if self.config.reconstruction else None
        heads = {name: HEADS[name](observation_space, action_space, dim) for name in self.config.auxiliary}
        self.auxiliary = nn.ModuleDict(heads)

    @property
    def device(self) -> torch.device:
        """Where the parameters live."""
        return self.critic.weight.device

    def initial_state(self, batch_size: int) -> State:
        """Return the memory's state at the birth of an episode."""
        return self.memory.initial_state(batch_size)

    @torch.no_grad()
    def step(
        self,
        observation: Observation,
        state: State,
        start: Bool[Tensor, "batch"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> PolicyStep:
        """Act once in every row; `start` marks rows whose observation is the first of an episode."""
        features, state = self._remember(observation, state, start)
        return PolicyStep(*self._choose(features, generator, deterministic), state)

    @torch.no_grad()
    def advance(
        self,
        observation: Observation,
        rows: Stepper,
        start: Bool[Tensor, "batch"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> Choice:
        """Do what `step` does with rows that `memory.stepper` made, and that are quicker for it."""
        remembered = rows.step(self.encoder(observation), start)
        return self._choose(self.with_view(remembered, observation), generator, deterministic)

    @torch.no_grad()
    def value(
        self, observation: Observation, state: State, start: Bool[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch"]:
        """Return the value of one observation per row, of which nothing is remembered."""
        features, _ = self._remember(observation, state, start)
        return self.critic(features).squeeze(-1)

    def act(
        self,
        observation: Any,
        state: State | None = None,
        start: Any = None,
        deterministic: bool = True,
    ) -> tuple[np.ndarray | np.number, State]:
        """Return an action for the environment, and the state to hand back with the next observation.

        Takes one observation or a batch, of arrays or tensors; of one, an action without axes is a NumPy
        scalar, which counts and hashes as a number does. `state=None` begins an episode in every row,
        `start` in the marked ones. Raises ValueError if the observation's shape does not fit the space.
        """
        seen = to_tensors(self.observation_space, observation, self.device)
        batched = is_batched(self.observation_space, seen)
        if not batched:
            seen = from_leaves({key: leaf[None] for key, leaf in to_leaves(seen).items()})
        batch_size = next(iter(to_leaves(seen).values())).shape[0]
        if state is None:
            state = self.initial_state(batch_size)
        if start is not None:
            start = torch.as_tensor(start, dtype=torch.bool, device=self.device).reshape(batch_size)
        step = self.step(seen, state, start, deterministic=deterministic)
        actions = self.env_actions(step.action)
        return (actions if batched else actions[0]), step.state

    def save_pretrained(self, directory: Path | str, origin: Origin | None = None) -> None:
        """Write weights (safetensors), config.json and a model card that tells of `origin` to a folder.

        Raises ValueError if it holds the config of something else, TypeError if a space or memory cannot be
        written.
        """
        spaces = Spaces(self.observation_space, self.action_space)
        pretrained.save(self, self.config, spaces, directory, origin)

    @classmethod
    def from_pretrained(cls, directory: Path | str) -> Self:
        """Return the policy that `save_pretrained` wrote to a folder, on the CPU; no code in it is run.

        Raises ValueError, naming file and place, on whatever is none; OSError.
        """
        return pretrained.load(cls, PolicyConfig, directory)

    def env_actions(self, actions: Tensor) -> np.ndarray:
        """Return a batch of sampled actions as the environment wants them: in bounds, right dtype."""
        return self.actor.to_env(actions)

    def evaluate(self, segment: Segment) -> Evaluation:
        """Return log-probabilities, entropies and values of a segment, with gradients, in one pass.

        Gradients end at the segment's border: the state before it is taken as constant.
        """
        batch, time = segment.starts.shape
        leaves = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        observations = from_leaves(leaves)
        encoded = self.encoder(observations).unflatten(0, (batch, time))
        remembered, _ = self.memory(encoded, detach_state(segment.state), segment.starts)
        features = self.with_view(remembered.flatten(0, 1), observations).unflatten(0, (batch, time))
        distribution: Distribution = self.actor(features)
        values = self.critic(features).squeeze(-1)
        if self.reconstruction is None:
            reconstruction_loss = values.new_zeros(())
        else:
            reconstruction_loss = self.reconstruction(features.flatten(0, 1), observations)
        log_probs, entropy = distribution.log_prob(segment.actions), distribution.entropy()
        auxiliary = {name: head(features, segment) for name, head in self.auxiliary.items()}
        return Evaluation(log_probs, entropy, values, reconstruction_loss, auxiliary, distribution)

    def with_view(
        self, remembered: Float[Tensor, "batch dim"], observation: Observation
    ) -> Float[Tensor, "batch dim"]:
        """Return what the heads are given: what memory gave and, if so configured, what is seen."""
        return remembered if self.view is None else remembered + self.view(observation)

    def _choose(self, features: Tensor, generator: torch.Generator | None, deterministic: bool) -> Choice:
        distribution = self.actor(features)
        action = distribution.mode() if deterministic else distribution.sample(generator)
        return Choice(action, distribution.log_prob(action), self.critic(features).squeeze(-1))

    def _remember(self, observation: Observation, state: State, start: Tensor | None) -> tuple[Tensor, State]:
        encoded = self.encoder(observation).unsqueeze(1)
        remembered, state = self.memory(encoded, state, None if start is None else start.unsqueeze(1))
        return self.with_view(remembered.squeeze(1), observation), state
