"""Cache layers for the linear, convolutional and recurrent states of a model."""

from __future__ import annotations

from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DummyLayer, LinearAttentionLayer

from scrubjay.memory.context.layers.policy import LayeredCache, PolicyLayer
from scrubjay.memory.context.policies.base import ContextPolicy
from scrubjay.memory.context.policies.buffers import count_bytes, find_tensors


class StateLayer(LinearAttentionLayer):
    """Recurrent or convolutional states of one layer.

    The model computes the states; the cache stores, saves and reorders the states.
    """

    def __init__(self, cache: LayeredCache, number_of_states: int = 1) -> None:
        LinearAttentionLayer.__init__(self, number_of_states)
        self._cache = cache

    def update_conv_state(self, conv_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Store the new state of a convolution."""
        self._cache.call_started = True
        return super().update_conv_state(conv_states, state_idx, **options)

    def update_recurrent_state(self, recurrent_states: Tensor, state_idx: int = 0, **options: Any) -> Tensor:
        """Store the new state of a recurrence."""
        self._cache.call_started = True
        return super().update_recurrent_state(recurrent_states, state_idx, **options)

    def increase_count(self, state_idx: int) -> None:
        """Note that the model has updated a state in place."""
        self._cache.call_started = True
        super().increase_count(state_idx)

    def get_seq_length(self) -> int:
        """Return the number of tokens that the first layer with attention has read.

        A saved state has no count of its own.
        """
        return self._cache.attention_layers[0].get_seq_length()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the existing states by name."""
        kinds = {"conv": self.conv_states, "recurrent": self.recurrent_states}
        return {
            f"{kind} {number}": state
            for kind, states in kinds.items()
            for number, state in states.items()
            if state is not None and self.has_previous_state[number]
        }

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        for name, state in state_dict.items():
            kind, number = name.split()
            states: Any = {f"{kind}_states": state, "state_idx": int(number)}
            LinearAttentionLayer.lazy_initialization(self, **states)
            (self.conv_states if kind == "conv" else self.recurrent_states)[int(number)] = state
            self.has_previous_state[int(number)] = True
            self.dtype, self.device = state.dtype, state.device

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of the states on the model's device.

        If `place` is "cpu" or "disk", return 0, since states are never offloaded.
        """
        if place or self.device is None:
            return 0
        states = [self.conv_states, self.recurrent_states, self.cumulative_length_linear]
        return count_bytes(find_tensors(states))


class StateAndPolicyLayer(StateLayer, PolicyLayer):
    """Cache layer with both states and attention, as in Falcon-H1."""

    def __init__(
        self,
        cache: LayeredCache,
        index: int,
        policy: ContextPolicy,
        shared_index: int,
        number_of_states: int = 1,
    ) -> None:
        PolicyLayer.__init__(self, cache, index, policy, shared_index)
        StateLayer.__init__(self, cache, number_of_states)

    def lazy_initialization(self, *args: Any, **options: Any) -> None:
        """Allocate the states. The tensors for keys and values are allocated when tokens arrive."""
        if options:
            StateLayer.lazy_initialization(self, **options)

    def get_seq_length(self) -> int:
        """Return the number of tokens read so far, with evicted tokens and padding included."""
        return PolicyLayer.get_seq_length(self)

    def reset(self) -> None:
        """Clear the layer."""
        PolicyLayer.reset(self)
        if hasattr(self, "conv_states"):
            StateLayer.reset(self)

    def reorder_cache(self, beam_idx: Int[Tensor, " selected"]) -> None:
        """Select the batch rows with the indices `beam_idx`, in this order."""
        PolicyLayer.reorder_cache(self, beam_idx)
        StateLayer.reorder_cache(self, beam_idx)  # pyright: ignore[reportArgumentType]

    def state_dict(self) -> dict[str, Tensor]:
        """Return the tensors that `load_state_dict` needs."""
        return PolicyLayer.state_dict(self) | StateLayer.state_dict(self)

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Load the tensors that `state_dict` returned."""
        own_states = {name: tensor for name, tensor in state.items() if " " in name}
        StateLayer.load_state_dict(self, own_states)
        PolicyLayer.load_state_dict(
            self, {name: tensor for name, tensor in state.items() if name not in own_states}
        )

    def nbytes(self, place: str | None = None) -> int:
        """Return the bytes of states, keys and values on the model's device, or offloaded to `place`."""
        return PolicyLayer.nbytes(self, place) + StateLayer.nbytes(self, place)


class StatelessLayer(DummyLayer):
    """Placeholder for a model layer without a cache, so that layer indices match those of the model."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return an empty dict."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Do nothing."""

    def nbytes(self, place: str | None = None) -> int:
        """Return 0."""
        return 0
