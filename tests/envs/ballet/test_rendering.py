"""Images and texts of Ballet: places, events and the target."""

from __future__ import annotations

from typing import Any

import numpy as np

from scrubjay.envs.ballet import world
from scrubjay.envs.ballet.env import Ballet


def test_images_show_places_and_the_target():
    env = Ballet(2, 2, "symbolic", render_mode="rgb_array")
    env.reset(seed=4)
    batch: Any = env._batch

    def cells():
        frame = env.render()
        return frame[-396:].reshape(11, 36, 11, 36, 3).swapaxes(1, 2)

    def looks_like_a_dancer(cell, dancer):
        tile = np.round(world.draw_tile(batch.shape[0, dancer], batch.colour[0, dancer]) * 255)
        return (cell[2::4, 2::4] == tile).all(axis=2).mean() > 0.7  # the letter may cover the rest

    for step in range(34):
        room = cells()
        for dancer in range(2):
            place = batch.place[0, dancer]
            if step // 17 == dancer and step % 17 < 16:
                place = place + world.DANCE_OFFSETS[batch.dance[0, dancer], step % 17]
            assert looks_like_a_dancer(room[tuple(place)], dancer)
        assert (room[5, 5, 18, 18] == 255).all()
        env.step(0)
    target, other = batch.place[0, batch.target[0]], batch.place[0, 1 - batch.target[0]]
    green = cells()[..., 1] > cells()[..., 0] + 60
    assert green[target[0] - 1, target[1], 0].all()
    assert not green[other[0] - 1, other[1], 0].any()


def test_texts_show_the_room_and_the_event():
    env = Ballet(2, 2, "symbolic", render_mode="ansi")
    env.reset(seed=4)
    batch: Any = env._batch
    lines = env.render().split("\n")
    assert lines[0] == "step 0 of at most 1024"
    assert lines[1] == f'"watch"   B dances {world.DANCE_NAMES[batch.dance[0, 0]]}, move 1 of 16'
    for _ in range(34):
        env.step(0)
    lines = env.render().split("\n")
    assert lines[1] == f'"{world.DANCE_NAMES[batch.dance[0, batch.target[0]]]}"   the agent chooses'
    assert lines[2] == lines[12] == "#" * 11
    assert lines[2 + 5][5] == "A"
    for letter, (row, column) in zip("BC", batch.place[0], strict=True):
        assert lines[2 + row][column] == letter
