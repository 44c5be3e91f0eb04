"""Conversion of a `UAVWorld` environment to a `Scene` for rendering."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scrubjay.envs.uav.observation import MAX_BPS_HZ
from scrubjay.envs.uav.rendering import Scene
from scrubjay.envs.uav.world import UAVWorld


def build_scene(world: UAVWorld, row: int, trail_m: Float[np.ndarray, "steps uavs 2"] | None = None) -> Scene:
    """Build the scene of environment `row`; `trail_m` holds past UAV positions (see `Scene`).

    A user's color shows the rate of the user. The brightest color stands for rates of at least
    20 bit/s/Hz * `bandwidth_hz` * `num_uavs` / `num_users`.
    """
    config, alive = world.config, world.alive[row]
    server = world.association[row]
    is_served = (server >= 0) & alive[server]
    fair_share = config.bandwidth_hz * config.num_uavs / config.num_users
    return Scene(
        area_m=config.area_m,
        uav_position_m=world.position_m[row].copy(),
        alive=alive.copy(),
        sub_channel=world.channel[row].copy(),
        power_w=world.power_w[row],
        user_position_m=world.user_position_m[row].copy(),
        rate_bps=world.rate_bps[row].copy(),
        server=np.where(is_served, server, -1),
        full_rate_bps=MAX_BPS_HZ * fair_share,
        step=int(world.time[row]),
        episode_steps=config.max_steps,
        in_collision=world.collisions[row] > 0,
        trail_m=np.zeros((0, config.num_uavs, 2)) if trail_m is None else trail_m,
    )
