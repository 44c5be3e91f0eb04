"""Dances, colours, shapes, places and cell images of Ballet."""

from __future__ import annotations

import hashlib

import numpy as np

from scrubjay.envs.ballet import world

from .looks import digest


def test_tables_are_those_of_the_original():
    """Compare digests of dances, colours, shapes and places, which recordings show only in part."""
    images = [world.draw_tile(shape, 0) for shape in range(15)]
    tables = [world.DANCE_NAMES, world.DANCE_MOVES.tolist(), list(world.COLOURS.items()), world.SHAPE_NAMES]
    table_digest = hashlib.sha256(repr([tables, world.PLACES.tolist(), digest(images)]).encode()).hexdigest()[
        :12
    ]
    assert table_digest == "a48df482bde1"


def test_every_dance_has_16_moves_stays_in_its_block_and_ends_where_it_began():
    assert world.DANCE_MOVES.shape == (13, 16)
    assert np.abs(world.DANCE_OFFSETS).max() == 1
    assert (world.DANCE_OFFSETS[:, -1] == 0).all()
    assert len({tuple(dance) for dance in world.DANCE_MOVES}) == 13


def test_a_dancer_is_its_shape_in_its_colour_on_black():
    for colour, name in enumerate(world.COLOUR_NAMES):
        paint = np.array(world.COLOURS[name], dtype=np.float32) / 255
        for shape in range(len(world.SHAPE_NAMES)):
            cell = world.draw_tile(shape, colour).reshape(-1, 3)
            is_painted = cell.any(axis=1)
            assert 0 < is_painted.sum() < len(cell)
            np.testing.assert_allclose(cell[is_painted], np.broadcast_to(paint, (is_painted.sum(), 3)))
    assert not world.draw_tile(0, 0).flags.writeable


def test_no_two_dancers_look_alike():
    looks = {
        world.draw_tile(shape, colour).tobytes()
        for shape in range(len(world.SHAPE_NAMES))
        for colour in range(len(world.COLOUR_NAMES))
    }
    assert len(looks) == len(world.SHAPE_NAMES) * len(world.COLOUR_NAMES)


def test_an_empty_room_moves_as_the_agent_walks_and_the_agent_stays_in_the_middle():
    def cells(row, column):
        parts = world.draw_background(row, column).reshape(world.ROOM, world.CELL, world.ROOM, world.CELL, 3)
        return parts.max(axis=(1, 3, 4))

    centre = cells(world.CENTRE, world.CENTRE)
    ring = np.zeros((world.ROOM, world.ROOM), dtype=bool)
    ring[[0, -1]] = ring[:, [0, -1]] = True
    assert ((centre > 0) == (ring | (np.indices(ring.shape) == world.CENTRE).all(axis=0))).all()
    for row, column in [(1, 1), (5, 9), (9, 4)]:
        view = cells(row, column)
        assert view[world.CENTRE, world.CENTRE] == 1
        for place in np.ndindex(view.shape):
            there = place[0] + row - world.CENTRE, place[1] + column - world.CENTRE
            if place != (world.CENTRE, world.CENTRE):
                inside = all(0 <= cell < world.ROOM for cell in there)
                assert (view[place] > 0) == (inside and ring[there])
