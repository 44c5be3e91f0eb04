"""Layers with a state of their own, linear, convolutional or recurrent: the model's, passed through."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import LinearAttentionLayer

from scrubjay.memory.context.layers.policy import LayeredCache, PolicyLayer
from scrubjay.memory.context.policies.base import ContextPolicy


class StateLayer(LinearAttentionLayer):
    """The states of one layer, which the model reads and writes, and a cache keeps, saves and reorders."""

    def __init__(self, cache: LayeredCache, number_of_states: int = 1) -> None:
        LinearAttentionLayer.__init__(self, number_of_states)
        self._cache = cache

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Take the model's new state of a convolution."""
        self._cache.touched = True
        return super().update_conv_state(conv_states, state_idx, **options)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Take the model's new state of a recurrence."""
        self._cache.touched = True
        return super().update_recurrent_state(recurrent_states, state_idx, **options)

    def saved(self) -> dict[str, Tensor]:
        """Return the states that there are, by name."""
        kinds = {"conv": self.conv_states, "recurrent": self.recurrent_states}
        return {
            f"{kind} {number}": state
            for kind, states in kinds.items()
            for number, state in states.items()
            if state is not None and self.has_previous_state[number]
        }

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned."""
        for name, state in saved.items():
            kind, number = name.split()
            states: Any = {f"{kind}_states": state, "state_idx": int(number)}
            LinearAttentionLayer.lazy_initialization(self, **states)
            (self.conv_states if kind == "conv" else self.recurrent_states)[int(number)] = state
            self.has_previous_state[int(number)] = True
            self.dtype, self.device = state.dtype, state.device

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of the states, which are with the model."""
        return 0 if place else sum(state.nbytes for state in StateLayer.saved(self).values())


class StateAndPolicyLayer(StateLayer, PolicyLayer):
    """A layer that has a state and attends as well, as Falcon-H1's do."""

    def __init__(
        self, cache: LayeredCache, index: int, policy: ContextPolicy, alike: int, number_of_states: int = 1
    ) -> None:
        PolicyLayer.__init__(self, cache, index, policy, alike)
        StateLayer.__init__(self, cache, number_of_states)

    def lazy_initialization(self, *args: Any, **options: Any) -> None:
        """Make room for states; a memory allocates as it sees tokens."""
        if options:
            StateLayer.lazy_initialization(self, **options)

    def reset(self) -> None:
        """Forget everything."""
        PolicyLayer.reset(self)
        if hasattr(self, "conv_states"):
            StateLayer.reset(self)

    def reorder_cache(self, beam_idx: Int[Tensor, " chosen"]) -> None:
        """Keep the given rows, in their order."""
        PolicyLayer.reorder_cache(self, beam_idx)
        StateLayer.reorder_cache(self, beam_idx)  # pyright: ignore[reportArgumentType]

    def saved(self) -> dict[str, Tensor]:
        """Return all that `restore` needs to go on."""
        return PolicyLayer.saved(self) | StateLayer.saved(self)

    def restore(self, saved: dict[str, Tensor]) -> None:
        """Take up what `saved` returned."""
        own = {name: tensor for name, tensor in saved.items() if " " in name}
        StateLayer.restore(self, own)
        PolicyLayer.restore(self, {name: tensor for name, tensor in saved.items() if name not in own})

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of both."""
        return PolicyLayer.nbytes(self, place) + StateLayer.nbytes(self, place)
