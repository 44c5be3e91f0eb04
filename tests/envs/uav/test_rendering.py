from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from scrubjay.envs.uav.rendering import Scene, channel_colour, draw, rate_colour

SIZE = (860, 620)


def make_scene(**changes) -> Scene:
    default = Scene(
        area_m=1000.0,
        uav_position_m=np.array([[250, 250, 100], [750, 750, 120.0]]),
        alive=np.array([True, True]),
        sub_channel=np.array([0, 1]),
        power_w=np.array([0.1, 0.2]),
        user_position_m=np.array([[250, 750], [750, 250], [500, 500.0]]),
        rate_bps=np.array([1e6, 2e6, 0]),
        server=np.array([0, 1, -1]),
        full_rate_bps=2e6,
        step=3,
        episode_steps=50,
    )
    return dataclasses.replace(default, **changes)


def pixel(place, size=SIZE):
    """Return the pixel (row, column) of a position on the map; its corner and side follow from `size`."""
    side = min(size[0] - 290, size[1] - 52)
    return round(16 + side * (1 - place[1] / 1000)), round(24 + side * place[0] / 1000)


def colours(picture):
    return {tuple(colour) for colour in picture.reshape(-1, 3).tolist()}


@pytest.mark.parametrize("size", [SIZE, (640, 420), (1200, 900)])
def test_things_are_where_they_are(size):
    picture = draw(make_scene(), size)
    assert picture.shape == (size[1], size[0], 3)
    assert picture.dtype == np.uint8
    assert tuple(picture[pixel((250, 750), size)]) == rate_colour(0.5)
    assert tuple(picture[pixel((750, 250), size)]) == rate_colour(1.0)
    assert tuple(picture[pixel((500, 500), size)]) == (255, 255, 255)  # a hollow ring
    for uav in (0, 1):
        row, column = pixel(make_scene().uav_position_m[uav], size)
        assert tuple(picture[row, column]) == channel_colour(uav)


def differing(one, other):
    return (one != other).any(axis=-1)


def test_interference_shows_only_between_uavs_on_the_same_sub_channel_that_send():
    alarm = (214, 39, 40)
    box = slice(228, 258), slice(350, 380)  # on the line between the UAVs, away from everything else
    apart, together = (
        make_scene(server=np.full(3, -1)),
        make_scene(server=np.full(3, -1), sub_channel=np.array([1, 1])),
    )
    silent = dataclasses.replace(together, power_w=np.array([0.1, 0]))
    dead = dataclasses.replace(together, alive=np.array([True, False]))

    def reddish(picture):
        return (np.abs(picture[box].astype(int) - alarm).sum(-1) < 150).any()

    assert reddish(draw(together))
    assert not any(reddish(draw(other)) for other in (apart, silent, dead))


def test_dead_uavs_collisions_trails_and_links_are_seen():
    plain = draw(make_scene())
    trail = np.array([[[100, 250], [700, 900]], [[250, 250], [np.nan, np.nan]]], dtype=float)
    place = pixel((150, 250))
    with_trail = draw(make_scene(trail_m=trail))
    assert differing(plain, with_trail)[place[0] - 1 : place[0] + 2, place[1]].any()
    assert not differing(plain, with_trail)[pixel((725, 830))]  # NaN: the UAV was not flying
    for changes in (
        {"alive": np.array([True, False])},
        {"in_collision": np.array([True, True])},
        {"server": np.array([1, 1, -1])},
        {"step": 4},
    ):
        assert differing(plain, draw(make_scene(**changes))).sum() > 20
    assert not differing(plain, draw(make_scene())).any()


def test_a_row_that_does_not_fit_is_counted():
    many = make_scene(
        uav_position_m=np.full((40, 3), 500.0),
        alive=np.ones(40, bool),
        sub_channel=np.arange(40),
        power_w=np.full(40, 0.1),
    )
    picture = draw(many, (640, 420))
    assert picture.shape == (420, 640, 3)
    assert len({channel_colour(number) for number in range(18)}) == 18


@pytest.mark.slow
def test_no_users_and_no_uavs():
    empty = make_scene(
        uav_position_m=np.zeros((0, 3)),
        alive=np.zeros(0, bool),
        sub_channel=np.zeros(0, int),
        power_w=np.zeros(0),
        user_position_m=np.zeros((0, 2)),
        rate_bps=np.zeros(0),
        server=np.zeros(0, int),
    )
    assert (255, 255, 255) in colours(draw(empty))


def test_errors():
    with pytest.raises(ValueError, match=r"user_position_m.*\(2, 2\).*\(3, 2\)"):
        make_scene(user_position_m=np.zeros((2, 2)))
    with pytest.raises(ValueError, match="area_m=0"):
        make_scene(area_m=0)
    with pytest.raises(ValueError, match="100"):
        draw(make_scene(), (100, 100))
