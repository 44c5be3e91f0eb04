"""UAV base stations that serve ground users: multi-agent control of motion, sub-channel and transmit power.

    from scrubjay.envs import uav

    env = uav.parallel_env("small", render_mode="rgb_array")     # PettingZoo
    teams = uav.teams(256, "paper", num_uavs=3)                  # 256 environments in one batch

Importing this package registers `scrubjay/UAV-v0` with PettingZoo, as parallel and as AEC environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from scrubjay.envs.uav.config import PRESETS, UAVConfig, resolve_config

if TYPE_CHECKING:
    from pettingzoo import AECEnv

    from scrubjay.envs.uav.batch import ObservationFormat, UAVTeams
    from scrubjay.envs.uav.parallel import UAVDownlink

__all__ = ["PRESETS", "UAVConfig", "env", "parallel_env", "resolve_config", "teams"]


def parallel_env(
    preset: str | UAVConfig = "small",
    *,
    render_mode: str | None = None,
    observation: ObservationFormat = "parts",
    **overrides: Any,
) -> UAVDownlink:
    """Create a PettingZoo ParallelEnv.

    Args:
        preset: Name of a preset (small, paper, city), or a config.
        render_mode: "rgb_array" to render pictures, else None.
        observation: "parts" for a dict of sets, or "flat" for one vector of
            `scrubjay.envs.uav.observation.flat_space`.
        overrides: Fields of `UAVConfig` with other values.

    Raises:
        ValueError: For an unknown preset or field and for an invalid value.
    """
    from scrubjay.envs.uav.parallel import UAVDownlink

    return UAVDownlink(resolve_config(preset, **overrides), render_mode, observation)


def env(
    preset: str | UAVConfig = "small",
    *,
    render_mode: str | None = None,
    observation: ObservationFormat = "parts",
    **overrides: Any,
) -> AECEnv[str, Any, Any]:
    """Create a PettingZoo AECEnv, in which agents act one after another; arguments as for `parallel_env`."""
    from pettingzoo.utils import parallel_to_aec

    parallel = parallel_env(preset, render_mode=render_mode, observation=observation, **overrides)
    return parallel_to_aec(parallel)


def teams(
    num_envs: int,
    preset: str | UAVConfig = "small",
    *,
    observation: ObservationFormat = "parts",
    **overrides: Any,
) -> UAVTeams:
    """Create a batch of `num_envs` environments that step together.

    Args:
        num_envs: Number of environments.
        preset: Name of a preset (small, paper, city), or a config.
        observation: "parts" for a dict of sets, or "flat" for one vector of
            `scrubjay.envs.uav.observation.flat_space`.
        overrides: Fields of `UAVConfig` with other values.
    """
    from scrubjay.envs.uav.batch import UAVTeams

    return UAVTeams(num_envs, resolve_config(preset, **overrides), observation)


def _register() -> None:
    import pettingzoo

    if "scrubjay/UAV-v0" not in pettingzoo.parallel_registry:
        pettingzoo.register("parallel", "scrubjay/UAV-v0", "scrubjay.envs.uav:parallel_env")
        pettingzoo.register("aec", "scrubjay/UAV-v0", "scrubjay.envs.uav:env")


_register()
