"""Dances, colors, shapes and places of Ballet, and its images: the agent's view and rendered frames."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int, Int64, UInt8
from PIL import Image

from scrubjay.envs.drawing import INK, PALE, make_frame

ROOM = 11
"""Cells per side of the room, including the walls."""
CELL = 9
"""Pixels per side of a cell in the agent's view."""
CENTRE = ROOM // 2
"""Row and column where the agent starts, and of the agent in its own view."""
MOVES_PER_DANCE = 16
NO_MOVE = 8
"""Index for no move, after the eight moves."""

MOVES: Int64[np.ndarray, "move axis"] = np.array(
    [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
)
"""Row and column offsets of the moves N, NE, E, SE, S, SW, W, NW."""

PLACES: Int64[np.ndarray, "place axis"] = np.array(
    [(2, 2), (2, 5), (2, 8), (5, 2), (5, 8), (8, 2), (8, 5), (8, 8)]
)
"""Rows and columns of dancers; each dancer has its own block of 3 x 3 cells."""

_DANCES = {
    "circle_cw": "0244660022446602",
    "circle_ccw": "0644220066442206",
    "up_and_down": "0440044004400440",
    "left_and_right": "2662266226622662",
    "diagonal_uldr": "7337733773377337",
    "diagonal_urdl": "1551155115511551",
    "plus_cw": "0426406204264062",
    "plus_ccw": "0462402604624026",
    "times_cw": "1537517315375173",
    "times_ccw": "7351371573513715",
    "zee": "1662251552266151",
    "chevron_down": "7431051514570373",
    "chevron_up": "3075415150134737",
}
DANCE_NAMES = tuple(_DANCES)
DANCE_MOVES: Int64[np.ndarray, "dance step"] = np.array([[int(move) for move in d] for d in _DANCES.values()])
DANCE_OFFSETS: Int64[np.ndarray, "dance step axis"] = MOVES[DANCE_MOVES].cumsum(axis=1)
"""Offset of a dancer from its place after each move; the last is (0, 0)."""

INSTRUCTIONS = ("watch", *DANCE_NAMES)
"""Texts of the values of the instruction."""

COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "purple": (128, 0, 128),
    "orange": (255, 165, 0),
    "yellow": (255, 255, 0),
    "brown": (128, 64, 0),
    "pink": (255, 64, 255),
    "cyan": (0, 255, 255),
    "dark_green": (0, 100, 0),
    "dark_red": (100, 0, 0),
    "dark_blue": (0, 0, 100),
    "olive": (100, 100, 0),
    "teal": (0, 100, 100),
    "lavender": (215, 200, 255),
    "peach": (255, 210, 170),
    "rose": (255, 205, 230),
    "light_green": (200, 255, 200),
    "light_yellow": (255, 255, 200),
}

# Nine rows of nine bits, the highest bit on the left.
_SHAPES = {
    "triangle": "010 010 038 038 07c 07c 0fe 0fe 1ff",
    "empty_square": "1ff 1ff 183 183 183 183 183 1ff 1ff",
    "plus": "038 038 038 1ff 1ff 1ff 038 038 038",
    "inverse_plus": "1c7 1c7 1c7 000 000 000 1c7 1c7 1c7",
    "ex": "183 1c7 0ee 07c 038 07c 0ee 1c7 183",
    "inverse_ex": "07c 038 111 183 1c7 183 111 038 07c",
    "circle": "010 07c 0fe 0fe 1ff 0fe 0fe 07c 010",
    "empty_circle": "07c 0c6 183 101 101 101 183 0c6 07c",
    "tee": "1ff 1ff 1ff 038 038 038 038 038 038",
    "upside_down_tee": "038 038 038 038 038 038 1ff 1ff 1ff",
    "h": "1c7 1c7 1c7 1ff 1ff 1ff 1c7 1c7 1c7",
    "u": "1c7 1c7 1c7 1c7 1c7 1c7 1ff 1ff 1ff",
    "upside_down_u": "1ff 1ff 1ff 1c7 1c7 1c7 1c7 1c7 1c7",
    "vertical_stripes": "155 155 155 155 155 155 155 155 155",
    "horizontal_stripes": "1ff 000 1ff 000 1ff 000 1ff 000 1ff",
}
SHAPE_NAMES = tuple(_SHAPES)
COLOUR_NAMES = tuple(COLOURS)

_WALL = 40


Picture = Float32[np.ndarray, "height width 3"] | UInt8[np.ndarray, "height width 3"]


def draw_tile(shape: int, colour: int, dtype: str = "float32") -> Picture:
    """Return the RGB image of a dancer's cell, `[9, 9, 3]`: float32 from 0 to 1, or uint8 from 0 to 255."""
    return _tiles(dtype)[shape, colour]


@functools.cache
def _tiles(dtype: str) -> np.ndarray:
    rows = np.array([[int(row, 16) for row in text.split()] for text in _SHAPES.values()])
    masks = ((rows[..., None] >> np.arange(CELL)[::-1]) & 1).astype(np.uint8)
    colours = np.array(list(COLOURS.values()), dtype=np.uint8)
    return _to_dtype(masks[:, None, :, :, None] * colours[:, None, None, :], dtype)


@functools.cache
def draw_background(row: int, column: int, dtype: str = "float32") -> Picture:
    """Return the agent's view `[99, 99, 3]` of an empty room: the walls, and the agent in white."""
    image = np.zeros((ROOM, CELL, ROOM, CELL, 3), dtype=np.uint8)
    inside = np.arange(ROOM)
    rows, columns = inside[:, None] - CENTRE + row, inside[None, :] - CENTRE + column
    in_room = (rows >= 0) & (rows < ROOM) & (columns >= 0) & (columns < ROOM)
    edge = (rows % (ROOM - 1) == 0) | (columns % (ROOM - 1) == 0)
    for i, j in zip(*np.nonzero(in_room & edge), strict=True):
        image[i, :, j] = _WALL
    image[CENTRE, :, CENTRE] = 255
    return _to_dtype(image.reshape(ROOM * CELL, ROOM * CELL, 3), dtype)


def _to_dtype(pixels: UInt8[np.ndarray, "*any 3"], dtype: str) -> np.ndarray:
    """Convert pixels to `dtype`, as a read-only array."""
    image = pixels if dtype == "uint8" else pixels.astype(np.float32) / np.float32(255)
    image.flags.writeable = False
    return image


_ZOOM = 4
_HEADING = 62


@dataclass(frozen=True)
class BalletScene:
    """Content of a rendered frame; places are rows and columns of the room."""

    progress: str
    """Current and last step, as text."""
    event: str
    """Instruction and current event, as text."""
    agent: Int[np.ndarray, "2"]
    homes: Int[np.ndarray, "dancers 2"]
    """Center of the 3 x 3 cells in which each dancer moves."""
    places: Int[np.ndarray, "dancers 2"]
    shapes: Int[np.ndarray, " dancers"]
    colours: Int[np.ndarray, " dancers"]
    target: int | None
    """Index of the target dancer; None before the choice phase."""


def draw_scene(scene: BalletScene) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the room: the agent in white, and a letter for each dancer near its place."""
    size, side = CELL * _ZOOM, ROOM * CELL
    image, pen, font = make_frame(ROOM * size, ROOM * size + _HEADING, scene.progress, (10, 8))
    pixels = Image.fromarray((_draw_room(scene).reshape(side, side, 3) * 255).round().astype(np.uint8))
    image.paste(pixels.resize((side * _ZOOM, side * _ZOOM), Image.Resampling.NEAREST), (0, _HEADING))
    pen.text((10, 34), scene.event, fill=INK, font=font)
    pen.text((264, 8), "white: the agent", fill=PALE, font=font)
    for dancer, (down, across) in enumerate(scene.homes):
        # The letter is drawn on top, in a corner of the dancer's block.
        corner = ((across - 1) * size + 3, _HEADING + (down - 1) * size - 1)
        pen.text(corner, dancer_letter(dancer), fill=(190, 190, 190), font=font)
        if dancer == scene.target:
            top = _HEADING + (down - 1) * size
            box = ((across - 1) * size, top, (across + 2) * size - 1, top + 3 * size - 1)
            pen.rectangle(box, outline=(90, 200, 110), width=3)
    return np.asarray(image)


def format_scene(scene: BalletScene) -> str:
    """Return the scene as text: progress, event, and a map with letters for the dancers and the agent."""
    room = np.full((ROOM, ROOM), " ")
    room[[0, -1]] = room[:, [0, -1]] = "#"
    room[tuple(scene.agent)] = "A"
    for dancer, place in enumerate(scene.places):
        room[tuple(place)] = dancer_letter(dancer)
    return "\n".join([scene.progress, scene.event, *("".join(cells) for cells in room)])


def dancer_letter(dancer: int) -> str:
    """Return the letter of a dancer: B for the first to dance, and so on; A is the agent."""
    return "BCDEFGHI"[dancer]


def _draw_room(scene: BalletScene) -> np.ndarray:
    room = np.zeros((ROOM, CELL, ROOM, CELL, 3), dtype=np.float32)
    room[[0, -1]] = room[:, :, [0, -1]] = 0.35
    room[scene.agent[0], 2:7, scene.agent[1], 2:7] = 1.0
    for (down, across), shape, colour in zip(scene.places, scene.shapes, scene.colours, strict=True):
        room[down, :, across] = draw_tile(shape, colour)
    return room
