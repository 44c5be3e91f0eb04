"""Memory tasks registered with gymnasium: `gymnasium.make("scrubjay.envs:scrubjay/TMaze-v0")`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports
from scrubjay.envs.registration import register

if TYPE_CHECKING:
    from scrubjay.envs.previous_step import PreviousStep as PreviousStep
    from scrubjay.envs.previous_step import PreviousSteps as PreviousSteps
    from scrubjay.envs.registration import list_environments as list_environments
    from scrubjay.envs.text import TextObservation as TextObservation

__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {
        "previous_step": ["PreviousStep", "PreviousSteps"],
        "registration": ["list_environments"],
        "text": ["TextObservation"],
    },
    packages=("uav",),
)

register()
