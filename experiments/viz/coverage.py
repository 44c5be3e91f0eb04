"""Coverage map: SINR and rate of a user at every position, for the current UAV positions and powers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from scrubjay.envs.uav import channel
from scrubjay.envs.uav.rendering import channel_colour
from scrubjay.envs.uav.world import UAVWorld
from scrubjay.experiments.viz.curves import save_figure


@dataclass(frozen=True)
class Coverage:
    """Radio coverage at the center of every cell of a square grid. Rows go north, columns go east."""

    sinr_db: Float[np.ndarray, "cells cells"]
    """Signal-to-interference-and-noise ratio of each cell in dB, for the signal of the UAV with the strongest
    mean gain in that cell. -inf if there are no UAVs."""
    rate_bps: Float[np.ndarray, "cells cells"]
    """Rate in bit/s of an additional user in the cell, who shares the UAV with its present users."""
    server: Int[np.ndarray, "cells cells"]
    """Index of the UAV with the strongest mean gain in the cell; -1 without UAVs."""


def compute_coverage(world: UAVWorld, row: int = 0, cells: int = 160) -> Coverage:
    """Return the coverage of one of the world's parallel environments, on a grid of `cells` x `cells`.

    `row` is the index of the environment. Raises ValueError if `cells` is below 2.
    """
    if cells < 2:
        raise ValueError(f"cells={cells}: must be at least 2")
    config = world.config
    middle = (np.arange(cells) + 0.5) * (config.area_m / cells)
    flying = np.flatnonzero(world.alive[row])
    if not flying.size:
        nothing = np.zeros((cells, cells))
        return Coverage(nothing - np.inf, nothing, np.full((cells, cells), -1))
    uavs = world.position_m[row, flying].astype(float)
    ground = np.hypot(middle - uavs[:, 0, None, None], middle[:, None] - uavs[:, 1, None, None]).reshape(
        len(uavs), -1
    )
    gain = channel.mean_gain(ground, uavs[:, 2, None], config.frequency_hz, config.environment)
    noise = channel.noise_w(config.bandwidth_hz, config.noise_dbm_per_hz)
    ratios = channel.sinr(world.power_w[row, flying].astype(float), gain, world.channel[row, flying], noise)
    server = gain.argmax(axis=0)
    ratio = ratios[server, np.arange(server.size)]
    num_served = (world.association[row] == flying[:, None]).sum(axis=1)
    rate = channel.rate_bps(ratio, config.bandwidth_hz) / (num_served[server] + 1)
    shape = (cells, cells)
    return Coverage(
        channel.linear_to_db(ratio).reshape(shape), rate.reshape(shape), flying[server].reshape(shape)
    )


def plot_coverage(world: UAVWorld, out: Path | str, row: int = 0) -> Path:
    """Draw two maps with UAVs and users: SINR, and rate of one additional user. Return the path."""
    coverage_map = compute_coverage(world, row)
    figure = Figure(figsize=(11, 4.9), dpi=120, layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    kilometres = world.config.area_m / 1000
    extent = (0.0, kilometres, 0.0, kilometres)
    heat = left.imshow(
        coverage_map.sinr_db,
        origin="lower",
        extent=extent,
        cmap="RdYlBu",
        vmin=-30,
        vmax=30,
        interpolation="bilinear",
    )
    figure.colorbar(heat, ax=left, label="SINR in dB", extend="both", shrink=0.85)
    left.set_title("signal-to-interference-and-noise ratio", fontsize=10)
    best = max(float(coverage_map.rate_bps.max()) / 1e3, 1.0)
    heat = right.imshow(
        np.maximum(coverage_map.rate_bps / 1e3, best / 300),
        origin="lower",
        extent=extent,
        cmap="viridis",
        norm=LogNorm(best / 300, best),
        interpolation="bilinear",
    )
    figure.colorbar(heat, ax=right, label="rate in kbit/s", shrink=0.85)
    right.set_title("rate of one additional user", fontsize=10)
    left.set_ylabel("north in km")
    for axes in (left, right):
        axes.set_xlabel("east in km")
        _draw_world(axes, world, row, coverage_map.server, extent)
    return save_figure(figure, out)


def _draw_world(
    axes: Axes,
    world: UAVWorld,
    row: int,
    server: Int[np.ndarray, "cells cells"],
    extent: tuple[float, float, float, float],
) -> None:
    """Draw users, UAVs in the color of their sub-channel, and borders between the areas that UAVs serve."""
    cells = len(server)
    middle = (np.arange(cells) + 0.5) * (extent[1] / cells)
    for uav in np.unique(server):
        axes.contour(middle, middle, server == uav, levels=[0.5], colors="white", linewidths=0.7)
    users = world.user_position_m[row] / 1000
    axes.scatter(users[:, 0], users[:, 1], s=9, c="black", linewidths=0.4, edgecolors="white", label="users")
    for uav in np.flatnonzero(world.alive[row]):
        east, north = world.position_m[row, uav, :2] / 1000
        colour = np.array(channel_colour(int(world.channel[row, uav]))) / 255
        axes.scatter(east, north, s=150, color=colour, marker="X", edgecolors="black", linewidths=1, zorder=3)
        axes.annotate(
            f"{uav}: channel {world.channel[row, uav]}",
            (east, north),
            xytext=(8, 6),
            textcoords="offset points",
            fontsize=7,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.8, "linewidth": 0},
        )
    axes.set_xlim(extent[:2])
    axes.set_ylim(extent[2:])
