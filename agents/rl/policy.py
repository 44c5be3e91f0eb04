"""Single-agent policy: encoder, memory, and action and value heads."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self

import torch
from gymnasium import spaces
from jaxtyping import Bool, Float
from torch import Tensor, nn

from scrubjay.agents.rl.auxiliary import HEADS, Auxiliary, Reconstruction
from scrubjay.agents.rl.composite import check_deviation, make_action_head, select_row
from scrubjay.agents.rl.distributions import Deviation, Distribution
from scrubjay.agents.rl.encoders.choice import (
    HIDDEN_SIZES,
    UntrustedName,
    build_encoder,
    check_encoder,
    is_factory,
)
from scrubjay.agents.rl.encoders.observation import ImageEncoderType, Pooling, linear
from scrubjay.agents.rl.learner import SingleProcess
from scrubjay.agents.rl.masks.action_masks import drop_mask, select_mask
from scrubjay.agents.rl.normalization import ObservationNormalizer
from scrubjay.agents.rl.observations import from_leaves, is_batched, to_leaves, to_tensors
from scrubjay.agents.rl.pretrained import PretrainedPolicy
from scrubjay.agents.rl.segment import EarlierSteps, Observation, Segment
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.agents.rl.trunk import ACTOR, CRITIC, SeparateSteppers, Trunk, join_states
from scrubjay.memory import MemoryConfig, State, make_config
from scrubjay.memory.contract.base import select_part
from scrubjay.memory.contract.stepper import Stepper
from scrubjay.memory.positional import PositionalConfig
from scrubjay.memory.stack import StackConfig


@dataclass(frozen=True)
class PolicyConfig:
    """Config of `Policy`; every layer has the width of the memory."""

    memory: MemoryConfig = dataclasses.field(default_factory=lambda: make_config("none"))
    """Memory between the encoder and the heads."""
    reconstruction: bool = False
    """Add a head that reconstructs observations, for learners with a reconstruction loss."""
    auxiliary: tuple[Auxiliary, ...] = ()
    """Auxiliary heads to add: reconstruction, next_observation, verifier. Only learners with an auxiliary
    loss use these heads."""
    skip: bool = False
    """Add a skip connection: the output of a second encoder is added to the output of the memory."""
    pooling: Pooling = "attention"
    """Pooling of sets in observations: attention or sum. A set is a leaf NAME with a sibling NAME_mask."""
    images: ImageEncoderType = "auto"
    """Image encoder: convolution; routing to add attention between image regions; or cells for grids whose
    numbers are codes. auto is cells for integer images below 32 pixels, else convolution.
    Only with the encoders linear and mlp."""
    encoder: str = "linear"
    """Encoder of observations: linear has one layer per part of the observation and the image encoder
    `images`; mlp adds the layers `encoder_sizes`; nature and impala are convolutional networks for images; or
    module:factory for a function of your own, called as factory(observation_space, dim)."""
    encoder_sizes: tuple[int, ...] = HIDDEN_SIZES
    """Widths of the hidden layers of the encoder mlp. A last layer has the width of the memory."""
    clock: bool = False
    """Add an encoding of the time since episode start to the memory's input. Without it, memories with
    normalized attention weights cannot count steps."""
    deviation: Deviation = "constant"
    """Standard deviation of Box actions: constant for a parameter that is the same in all states, or state
    for an output of the network."""
    separate_critic: bool = False
    """Give the critic an encoder and a memory of its own. The value loss then does not change the features of
    the actor. Auxiliary heads belong to the actor."""
    normalize_observations: bool = False
    """Normalize floating-point vectors in observations by their running mean and standard deviation, and clip
    them to [-10, 10]. The statistics change after each update in training, and are part of the weights.
    Images, indices and integers are not normalized."""

    def __post_init__(self) -> None:
        check_deviation(self.deviation)
        check_encoder(self.encoder, self.encoder_sizes, self.images, self.pooling)
        heads = [*self.auxiliary, *(["reconstruction"] if self.reconstruction else [])]
        if not set(heads) <= set(HEADS) or len(set(heads)) < len(heads):
            raise ValueError(
                f"auxiliary={self.auxiliary!r}, reconstruction={self.reconstruction}: choose from "
                f"{', '.join(HEADS)}, each at most once; reconstruction=True counts as 'reconstruction'"
            )

    @property
    def memory_with_clock(self) -> MemoryConfig:
        """Config of `memory`, preceded by a positional encoding if `clock` is set."""
        if not self.clock:
            return self.memory
        parts = (PositionalConfig(self.memory.dim), self.memory)
        return StackConfig(self.memory.dim, parts, residual=False)

    def build_encoder(self, space: spaces.Space) -> nn.Module:
        """Return a new encoder of observations of `space`.

        Raises:
            TypeError: If the encoder does not fit the space.
            ValueError: If the encoder does not fit the space.
        """
        options = self.encoder_sizes, self.pooling, self.images
        return build_encoder(self.encoder, space, self.memory.dim, *options)

    def as_untrusted(self) -> Self:
        """Return a copy whose encoder, if it is a `module:factory`, is marked as untrusted."""
        is_own = is_factory(self.encoder)
        return dataclasses.replace(self, encoder=UntrustedName(self.encoder)) if is_own else self

    def build(self, spaces: Spaces) -> Policy:
        """Return a new policy.

        Raises:
            TypeError: If a space is not supported or `spaces` belongs to a team.
            ValueError: If `deviation` needs a Box action and there is none.
        """
        if spaces.num_agents is not None:
            raise TypeError(
                f"a team of {spaces.num_agents} agents needs a TeamPolicyConfig, not a PolicyConfig"
            )
        return Policy(spaces.observation, spaces.action, self, spaces.action_masks)


class PolicyStep(NamedTuple):
    """Actions of a policy for a batch of observations, and the next memory state."""

    action: Tensor
    """Sampled actions: zero-based indices or unbounded numbers; `Policy.env_actions` converts them for an
    environment. Actions of a Dict or Tuple space are vectors of the numbers of all parts."""
    log_prob: Float[Tensor, "batch"]
    """Log probability of each action."""
    value: Float[Tensor, "batch"]
    """Value of each observation."""
    state: State
    """Next memory state."""


class PolicyOutput(NamedTuple):
    """Actions of a policy for a batch of observations, without the memory state."""

    action: Tensor
    """Sampled actions, as in `PolicyStep`."""
    log_prob: Float[Tensor, "batch"]
    value: Float[Tensor, "batch"]


class Evaluation(NamedTuple):
    """Outputs of a policy for a segment under its current weights, with gradients."""

    log_probs: Float[Tensor, "batch time"]
    """Log probability of each action of the segment."""
    entropy: Float[Tensor, "batch time"]
    """Entropy of the distribution at each step."""
    values: Float[Tensor, "batch time"]
    """Value of each observation."""
    reconstruction_loss: Float[Tensor, ""]
    """Loss of the reconstruction head; 0 if the policy has none."""
    auxiliary_losses: dict[str, Float[Tensor, ""]]
    """Loss of each auxiliary head, by name."""
    distribution: Distribution
    """Action distribution, `[batch, time]`."""


class Policy(Trunk, PretrainedPolicy):
    """Actor-critic policy with any memory, for any supported observation and action spaces.

    The policy itself is the trunk of the actor. The critic shares this trunk, unless the config has
    `separate_critic=True`.

    A leaf `action_mask` of the observations is not encoded as a feature: it restricts the actions. With
    `action_masks=True` the environment offers the masks in its infos or by the method `action_masks`.

    Args:
        observation_space: Space of the observations of one environment.
        action_space: Space of its actions.
        config: Memory, encoder and heads; the defaults without one.
        action_masks: The environment offers action masks outside its observations.

    Raises:
        TypeError: If a space is not supported.
        ValueError: If there is nothing to normalize.
        EnvFaultError: If a mask does not match the action space.
    """

    config_class = PolicyConfig
    normalizer: ObservationNormalizer | None
    """Running statistics of observations; None if observations are not normalized."""

    def __init__(
        self,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        config: PolicyConfig | None = None,
        action_masks: bool = False,
    ) -> None:
        config = config if config is not None else PolicyConfig()
        dim = config.memory.dim
        masks = Spaces(observation_space, action_space, action_masks=action_masks).masks
        visible_space = drop_mask(observation_space)
        make_encoder = partial(config.build_encoder, visible_space)
        options = make_encoder, config.memory_with_clock, config.skip
        super().__init__(*options)
        self.config = config
        self.observation_space = observation_space
        self.action_space = action_space
        self.action_masks, self._masks = action_masks, masks
        self.actor = make_action_head(action_space, dim, config.deviation)
        self.critic = linear(dim, 1, gain=1.0)
        self.reconstruction = Reconstruction(visible_space, dim) if self.config.reconstruction else None
        heads = {name: HEADS[name](visible_space, action_space, dim) for name in self.config.auxiliary}
        self.auxiliary = nn.ModuleDict(heads)
        self.critic_trunk = Trunk(*options) if config.separate_critic else None
        self.normalizer = ObservationNormalizer(visible_space) if config.normalize_observations else None

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.critic.weight.device

    def initial_state(self, batch_size: int) -> State:
        """Return the memory state at episode start."""
        actor = self.memory.initial_state(batch_size)
        if self.critic_trunk is None:
            return actor
        return join_states(actor, self.critic_trunk.memory.initial_state(batch_size))

    def split_state(self, state: State) -> tuple[State, State]:
        """Return the memory states of actor and critic; both are `state` if they share a trunk."""
        if self.critic_trunk is None:
            return state, state
        return select_part(state, prefix=ACTOR), select_part(state, prefix=CRITIC)

    def stepper(self, state: State) -> Stepper | SeparateSteppers:
        """Return a stepper for `advance` that continues from `state`.

        The stepper is valid until the weights change.
        """
        if self.critic_trunk is None:
            return self.memory.stepper(state)
        actor, critic = self.split_state(state)
        return SeparateSteppers(self.memory.stepper(actor), self.critic_trunk.memory.stepper(critic))

    def normalize(self, observation: Observation) -> Observation:
        """Return the observation that the encoders receive: normalized, if configured."""
        return observation if self.normalizer is None else self.normalizer(observation)

    def update_statistics(self, segment: Segment, peers: SingleProcess | None = None) -> None:
        """Update the running mean and variance of observations; learners call this after each update.

        With `peers`, the statistics are those of the segments of all learners together.
        """
        if self.normalizer is not None:
            self.normalizer.update(segment.observations, peers if peers is not None else SingleProcess())

    @torch.no_grad()
    def step(
        self,
        observation: Observation,
        state: State,
        start: Bool[Tensor, "batch"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> PolicyStep:
        """Select one action per environment.

        Args:
            observation: Batch of observations, one for each environment.
            state: Memory state of each environment.
            start: True for environments in which an episode starts; None for no environment.
            generator: Generator of random numbers; by default that of torch.
            deterministic: Take the most likely actions instead of samples.
        """
        observation = self.normalize(observation)
        own, critics = self.split_state(state)
        features, own = self.step_features(observation, own, start)
        if self.critic_trunk is None:
            return PolicyStep(
                *self._select_action(features, features, observation, generator, deterministic), own
            )
        critic_features, critics = self.critic_trunk.step_features(observation, critics, start)
        output = self._select_action(features, critic_features, observation, generator, deterministic)
        return PolicyStep(*output, join_states(own, critics))

    @torch.no_grad()
    def advance(
        self,
        observation: Observation,
        stepper: Stepper | SeparateSteppers,
        start: Bool[Tensor, "batch"] | None = None,
        generator: torch.Generator | None = None,
        deterministic: bool = False,
    ) -> PolicyOutput:
        """Select one action per environment, as `step` does, but faster.

        Args:
            observation: Batch of observations, one for each environment.
            stepper: Result of the method `stepper`. It holds the memory state and updates it.
            start: True for environments in which an episode starts; None for no environment.
            generator: Generator of random numbers; by default that of torch.
            deterministic: Take the most likely actions instead of samples.
        """
        observation = self.normalize(observation)
        if isinstance(stepper, SeparateSteppers):
            assert self.critic_trunk is not None  # it has made the steppers
            features = self.advance_features(observation, stepper.actor, start)
            critic_features = self.critic_trunk.advance_features(observation, stepper.critic, start)
        else:
            features = critic_features = self.advance_features(observation, stepper, start)
        return self._select_action(features, critic_features, observation, generator, deterministic)

    @torch.no_grad()
    def value(
        self, observation: Observation, state: State, start: Bool[Tensor, "batch"] | None = None
    ) -> Float[Tensor, "batch"]:
        """Return the values of a batch of observations; the memory state is not updated.

        Args:
            observation: Batch of observations, one for each environment.
            state: Memory state of each environment.
            start: True for environments in which an episode starts; None for no environment.
        """
        trunk = self if self.critic_trunk is None else self.critic_trunk
        features, _ = trunk.step_features(self.normalize(observation), self.split_state(state)[1], start)
        return self.critic(features).squeeze(-1)

    def act(
        self,
        observation: Any,
        state: State | None = None,
        start: Any = None,
        deterministic: bool = True,
        action_mask: Any = None,
    ) -> tuple[Any, State]:
        """Return an action for the environment, and the state to pass with the next observation.

        Accepts one observation or a batch, as arrays or tensors. For a single observation, a scalar action is
        returned as a NumPy scalar, which can be used as an index or as a key of a dict. Actions of Dict and
        Tuple spaces are dicts and tuples, with a batch axis in every part for a batch.

        Args:
            observation: One observation, or a batch of them.
            state: State that the last call returned; None starts an episode in every environment.
            start: True for environments in which an episode starts; None for no environment.
            deterministic: Take the most likely actions instead of samples.
            action_mask: Mask that the environment offers beside the observation, such as
                `info["action_mask"]`. A policy that was trained with such masks requires it.

        Raises:
            ValueError: If the observation's shape does not match the space, or on a missing or invalid mask.
        """
        leaves = to_tensors(self.observation_space, observation, self.device)
        batched = is_batched(self.observation_space, leaves)
        if not batched:
            leaves = from_leaves({key: leaf[None] for key, leaf in to_leaves(leaves).items()})
        leaves = from_leaves(self.spaces.with_mask(to_leaves(leaves), action_mask, batched))
        batch_size = next(iter(to_leaves(leaves).values())).shape[0]
        if state is None:
            state = self.initial_state(batch_size)
        if start is not None:
            start = torch.as_tensor(start, dtype=torch.bool, device=self.device).reshape(batch_size)
        step = self.step(leaves, state, start, deterministic=deterministic)
        actions = self.env_actions(step.action)
        return (actions if batched else select_row(actions, 0)), step.state

    def env_actions(self, actions: Tensor) -> Any:
        """Convert a batch of sampled actions to the environment's action space: bounds, shape and dtype.

        For Dict and Tuple spaces the result is a dict or tuple of arrays, as in gymnasium's vector
        environments.
        """
        return self.actor.to_env(actions)

    def evaluate(self, segment: Segment) -> Evaluation:
        """Compute log-probabilities, entropies and values of a segment, with gradients, in one forward pass.

        Gradients stop at the start of the segment: the memory state before its first step is a constant.
        """
        batch, time = segment.starts.shape
        if self.normalizer is not None:  # also for the targets of the auxiliary heads
            segment = dataclasses.replace(segment, observations=self.normalizer(segment.observations))
        leaves = {key: leaf.flatten(0, 1) for key, leaf in to_leaves(segment.observations).items()}
        observations = from_leaves(leaves)
        features, critic_features, _ = self.head_inputs(
            observations, (batch, time), segment.state, segment.starts
        )
        distribution = self.distribution(features, segment.observations)
        values = self.critic(critic_features).squeeze(-1)
        if self.reconstruction is None:
            reconstruction_loss = values.new_zeros(())
        else:
            reconstruction_loss = self.reconstruction(features.flatten(0, 1), observations)
        log_probs, entropy = distribution.log_prob(segment.actions), distribution.entropy()
        auxiliary = {name: head(features, segment) for name, head in self.auxiliary.items()}
        return Evaluation(log_probs, entropy, values, reconstruction_loss, auxiliary, distribution)

    @torch.no_grad()
    def replay(self, burn_in: EarlierSteps) -> State:
        """Return the memory state after the steps of `burn_in` under the current weights."""
        leaves = to_leaves(self.normalize(burn_in.observations))
        observations = from_leaves({key: leaf.flatten(0, 1) for key, leaf in leaves.items()})
        shape = (burn_in.starts.shape[0], burn_in.starts.shape[1])
        return self.head_inputs(observations, shape, burn_in.state, burn_in.starts)[-1]

    def head_inputs(
        self,
        observations: Observation,
        shape: tuple[int, int],
        state: State,
        starts: Bool[Tensor, "batch time"] | None,
    ) -> tuple[Float[Tensor, "batch time dim"], Float[Tensor, "batch time dim"], State]:
        """Return the inputs of the heads of actor and critic for a segment, and the next memory state.

        Args:
            observations: Normalized observations, with one leading axis of size `batch * time`.
            shape: Sizes of batch and time.
            state: Memory state before the segment.
            starts: True for the first step of an episode; None if no episode starts.
        """
        own, critics = self.split_state(state)
        features, own = self.segment_features(observations, shape, own, starts)
        if self.critic_trunk is None:
            return features, features, own
        critic_features, critics = self.critic_trunk.segment_features(observations, shape, critics, starts)
        return features, critic_features, join_states(own, critics)

    def distribution(self, features: Float[Tensor, "*leading dim"], observation: Observation) -> Distribution:
        """Return the action distribution from the input of the heads; the observation may have a mask."""
        mask = self.select_mask(observation)
        return self.actor(features) if mask is None else self.actor(features, mask)

    def select_mask(self, observation: Observation) -> Bool[Tensor, "*leading actions"] | None:
        """Return the action mask among the leaves of an observation; None without masks."""
        return select_mask(observation, self._masks, self.action_masks)

    def _select_action(
        self,
        features: Tensor,
        critic_features: Tensor,
        observation: Observation,
        generator: torch.Generator | None,
        deterministic: bool,
    ) -> PolicyOutput:
        distribution = self.distribution(features, observation)
        action = distribution.mode() if deterministic else distribution.sample(generator)
        return PolicyOutput(action, distribution.log_prob(action), self.critic(critic_features).squeeze(-1))
