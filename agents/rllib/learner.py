"""RLlib learner that delegates updates to a scrubjay learner."""

from __future__ import annotations

import os
from typing import Any

import torch
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData

from scrubjay.agents.rl.learner import Peers, SingleProcess


class SegmentLearner(TorchLearner):
    """RLlib learner that updates the module's policy with the learner of the `SegmentConfig`."""

    config: Any

    def build(self) -> None:
        """Build module and learner; called by RLlib."""
        if self.config.num_learners:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        super().build()
        peers = Peers() if self.config.num_learners > 1 else SingleProcess()
        self.learner = self.config.learner.build(self.policy, self.config.learner_seed, peers)

    @property
    def policy(self) -> Any:
        """The policy inside the module."""
        module: Any = self.module[DEFAULT_MODULE_ID].unwrapped()
        return module.policy

    def configure_optimizers(self) -> None:
        """Do nothing: the scrubjay learner has its own optimizers."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """Do nothing: the scrubjay learner has its own optimizers, also for this module."""

    def compute_loss_for_module(self, **_: Any) -> Any:
        """Raise NotImplementedError: RLlib's update is overridden and never calls this method."""
        raise NotImplementedError("SegmentLearner does not use RLlib's losses; call `update`")

    def update(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, *, training_data: TrainingData, return_state: bool = False, **_: Any
    ) -> dict[str, Any]:
        """Update on the segment `training_data.batch` and return metrics.

        If `return_state` is True, the result also has the policy's weights and the learner's state.
        """
        segment: Any = training_data.batch
        metrics = self.learner.update(segment.to(self.policy.device))
        return {"metrics": metrics, "parts": self.get_parts() if return_state else None}

    def get_parts(self) -> dict[str, Any]:
        """Return the policy's weights and the learner's state, on the CPU."""
        return {
            "policy": _on_cpu(self.policy.state_dict()),
            "learner": _on_cpu(self.learner.get_state()),
        }

    def set_parts(self, parts: dict[str, Any]) -> None:
        """Restore the policy's weights and the learner's state that `get_parts` returned."""
        self.policy.load_state_dict(parts["policy"])
        if parts["learner"] is not None:
            self.learner.set_state(parts["learner"])

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the states of RLlib's and scrubjay's learner, and the policy's weights."""
        return {**super().get_state(*args, **kwargs), "parts": self.get_parts()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Restore a state that `get_state` returned."""
        super().set_state({name: value for name, value in state.items() if name != "parts"})
        if "parts" in state:
            self.set_parts(state["parts"])


def _on_cpu(part: Any) -> Any:
    """Return a copy of nested data with every tensor on the CPU."""
    if isinstance(part, dict):
        return {key: _on_cpu(value) for key, value in part.items()}
    if isinstance(part, list):
        return [_on_cpu(value) for value in part]
    return part.detach().cpu().clone() if isinstance(part, torch.Tensor) else part
