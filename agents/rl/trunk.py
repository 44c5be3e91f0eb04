"""Trunk of a policy: the layers from observations to the features that action and value heads receive."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from scrubjay.agents.rl.segment import Observation
from scrubjay.memory import MemoryConfig, State, detach_state
from scrubjay.memory.contract.base import add_affixes
from scrubjay.memory.contract.stepper import Stepper

ACTOR, CRITIC = "actor/", "critic/"
"""Prefixes of the memory states of a policy with separate trunks for actor and critic."""


class Trunk(nn.Module):
    """Encoder, memory and optional skip connection around the memory.

    Args:
        make_encoder: Function that returns a new encoder of observations.
        memory: Config of the memory, whose width is the width of the features.
        skip: Add the output of a second encoder to the output of the memory.
    """

    def __init__(
        self, make_encoder: Callable[[], nn.Module], memory: MemoryConfig, skip: bool = False
    ) -> None:
        super().__init__()
        self.encoder = make_encoder()
        # A separate encoder: the memory and the heads may need different features of an observation.
        self.view = make_encoder() if skip else None
        self.memory = memory.build()

    def add_skip(
        self, memory_output: Float[Tensor, "batch dim"], observation: Observation
    ) -> Float[Tensor, "batch dim"]:
        """Return the input of the heads: the memory's output plus the skip connection, if configured."""
        return memory_output if self.view is None else memory_output + self.view(observation)

    def step_features(
        self, observation: Observation, state: State, start: Bool[Tensor, " batch"] | None
    ) -> tuple[Float[Tensor, "batch dim"], State]:
        """Return the features of one observation per row, and the next memory state."""
        encoding = self.encoder(observation).unsqueeze(1)
        memory_output, state = self.memory(encoding, state, None if start is None else start.unsqueeze(1))
        return self.add_skip(memory_output.squeeze(1), observation), state

    def advance_features(
        self, observation: Observation, stepper: Stepper, start: Bool[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch dim"]:
        """Return the features of one observation per row; the stepper holds the memory state."""
        return self.add_skip(stepper.step(self.encoder(observation), start), observation)

    def segment_features(
        self,
        observations: Observation,
        shape: tuple[int, int],
        state: State,
        starts: Bool[Tensor, "batch time"] | None,
    ) -> tuple[Float[Tensor, "batch time dim"], State]:
        """Return the features of `shape` steps, `[batch, time]`, and the memory state after them.

        Observations have one leading axis, of size `batch * time`. No gradient flows into `state`.
        """
        encodings = self.encoder(observations).unflatten(0, shape)
        memory_output, state = self.memory(encodings, detach_state(state), starts)
        return self.add_skip(memory_output.flatten(0, 1), observations).unflatten(0, shape), state


class SeparateSteppers(NamedTuple):
    """Steppers of the memories of separate trunks."""

    actor: Stepper
    critic: Stepper

    def state(self, rows: Int[Tensor, " rows"] | None = None) -> State:
        """Return a copy of the memory states of the batch rows `rows`, or of all rows."""
        return join_states(self.actor.state(rows), self.critic.state(rows))


def join_states(actor: State, critic: State) -> State:
    """Return one state with the memory states of separate trunks."""
    return {**add_affixes(actor, prefix=ACTOR), **add_affixes(critic, prefix=CRITIC)}
