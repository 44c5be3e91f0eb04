"""From the state of a world to the picture of one of its rows."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from scrubjay.envs.uav.observation import MOST_BPS_HZ
from scrubjay.envs.uav.rendering import Scene
from scrubjay.envs.uav.world import UAVWorld


def scene_of(world: UAVWorld, row: int, trail_m: Float[np.ndarray, "moments uavs 2"] | None = None) -> Scene:
    """Return what there is to see of a row, of which the UAVs came along `trail_m` (see `Scene`).

    The brightest colour is the rate of a fair share of all sub-channels' time at 20 bit/s/Hz.
    """
    config, alive = world.config, world.alive[row]
    server = world.association[row]
    served = (server >= 0) & alive[server]
    fair_share = config.bandwidth_hz * config.num_uavs / config.num_users
    return Scene(
        area_m=config.area_m,
        uav_position_m=world.position_m[row].copy(),
        alive=alive.copy(),
        sub_channel=world.channel[row].copy(),
        power_w=world.power_w[row],
        user_position_m=world.user_position_m[row].copy(),
        rate_bps=world.rate_bps[row].copy(),
        server=np.where(served, server, -1),
        full_rate_bps=MOST_BPS_HZ * fair_share,
        step=int(world.time[row]),
        episode_steps=config.max_steps,
        collided=world.collisions[row] > 0,
        trail_m=np.zeros((0, config.num_uavs, 2)) if trail_m is None else trail_m,
    )
