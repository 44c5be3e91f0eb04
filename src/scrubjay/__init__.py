"""Scrubjay: one long-context memory core for reinforcement-learning and language agents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scrubjay._lazy import lazy_exports
from scrubjay._version import __version__ as __version__

if TYPE_CHECKING:
    from scrubjay import agents as agents
    from scrubjay import envs as envs
    from scrubjay import experiments as experiments
    from scrubjay import kernels as kernels
    from scrubjay import memory as memory
    from scrubjay.experiments.viz.look import look as look

# `import scrubjay; scrubjay.memory.make("hcam", dim=64)` loads no package except `scrubjay.memory`.
__all__, __getattr__, __dir__ = lazy_exports(
    __name__,
    {"experiments.viz.look": ["look"]},
    packages=("agents", "envs", "experiments", "kernels", "memory"),
)
