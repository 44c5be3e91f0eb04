from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from scrubjay.envs.uav import teams
from scrubjay.experiments.viz.coverage import compute_coverage, plot_coverage


@pytest.fixture
def city():
    env = teams(2, "city", user_mobility="static", drop_probability=0, max_height_m=100.0)
    env.reset(seed=4)
    env.world.alive[1, 3:7] = False
    return env


def test_users_get_what_the_map_says(city):
    """Users at cell centers measure the SINR and rate of the map in the next slot."""
    cells, config = 30, city.config
    place = np.random.default_rng(0).integers(cells, size=(2, config.num_users, 2))
    city.world.user_position_m = ((place + 0.5) * (config.area_m / cells)).astype(np.float32)
    city.step(np.zeros((2, config.num_uavs, 3), dtype=np.int64) + np.array([1, 0, 1]))
    for row in range(2):
        coverage_map, server = compute_coverage(city.world, row, cells), city.world.association[row]
        east, north = place[row].T
        np.testing.assert_array_equal(coverage_map.server[north, east], server)
        np.testing.assert_allclose(
            coverage_map.sinr_db[north, east], _db(city.world.efficiency[row]), atol=0.02
        )
        load = np.bincount(server, minlength=config.num_uavs)[server]
        np.testing.assert_allclose(
            coverage_map.rate_bps[north, east] * (load + 1) / load, city.world.rate_bps[row], rtol=1e-3
        )


def _db(efficiency):
    return 10 * np.log10(2.0 ** efficiency.astype(float) - 1)


def test_nobody_flies_nobody_gets_anything(city, tmp_path):
    city.world.alive[0] = False
    coverage_map = compute_coverage(city.world, 0, 5)
    assert (coverage_map.sinr_db == -np.inf).all()
    assert (coverage_map.rate_bps == 0).all()
    assert (coverage_map.server == -1).all()
    plot_coverage(city.world, tmp_path / "nobody.png")


@pytest.mark.slow
def test_a_picture_of_each_row(city, tmp_path):
    pictures = [
        np.asarray(Image.open(plot_coverage(city.world, tmp_path / "maps" / f"{row}.png", row)))
        for row in range(2)
    ]
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any()


def test_a_map_has_cells(city):
    with pytest.raises(ValueError, match="cells=1"):
        compute_coverage(city.world, cells=1)
