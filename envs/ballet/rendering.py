"""One moment of a ballet as a picture or a text that a person understands."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from scrubjay.envs.ballet import world
from scrubjay.envs.drawing import BACKGROUND, INK, PALE

_ZOOM = 4
_HEADING = 62


@dataclass(frozen=True)
class Scene:
    """What is shown: who is where, in rows and columns of the room, in two lines of words."""

    step: str
    """How far the episode is."""
    happens: str
    """What the agent is told, and what happens."""
    agent: Int[np.ndarray, "2"]
    homes: Int[np.ndarray, "dancers 2"]
    """The middles of the blocks in which dancers move."""
    places: Int[np.ndarray, "dancers 2"]
    shapes: Int[np.ndarray, " dancers"]
    colours: Int[np.ndarray, " dancers"]
    target: int | None
    """The dancer to be found, once that is asked."""


def draw(scene: Scene) -> UInt8[np.ndarray, "height width 3"]:
    """Return the room, the agent in white, each dancer's letter in a corner of its block."""
    size, side = world.CELL * _ZOOM, world.ROOM * world.CELL
    image = Image.new("RGB", (world.ROOM * size, world.ROOM * size + _HEADING), BACKGROUND)
    pixels = Image.fromarray((_room(scene).reshape(side, side, 3) * 255).round().astype(np.uint8))
    image.paste(pixels.resize((side * _ZOOM, side * _ZOOM), Image.Resampling.NEAREST), (0, _HEADING))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)
    pen.text((10, 8), scene.step, fill=INK, font=font)
    pen.text((10, 34), scene.happens, fill=INK, font=font)
    pen.text((264, 8), "white: the agent", fill=PALE, font=font)
    for dancer, (down, across) in enumerate(scene.homes):
        # Over all else, where nobody dances.
        corner = ((across - 1) * size + 3, _HEADING + (down - 1) * size - 1)
        pen.text(corner, letter(dancer), fill=(190, 190, 190), font=font)
        if dancer == scene.target:
            top = _HEADING + (down - 1) * size
            box = ((across - 1) * size, top, (across + 2) * size - 1, top + 3 * size - 1)
            pen.rectangle(box, outline=(90, 200, 110), width=3)
    return np.asarray(image)


def write(scene: Scene) -> str:
    """Return the words and the room, a letter for everybody in it."""
    room = np.full((world.ROOM, world.ROOM), " ")
    room[[0, -1]] = room[:, [0, -1]] = "#"
    room[tuple(scene.agent)] = "A"
    for dancer, place in enumerate(scene.places):
        room[tuple(place)] = letter(dancer)
    return "\n".join([scene.step, scene.happens, *("".join(cells) for cells in room)])


def letter(dancer: int) -> str:
    """Return the letter of the dancer that dances as number `dancer`; A is the agent."""
    return "BCDEFGHI"[dancer]


def _room(scene: Scene) -> np.ndarray:
    room = np.zeros((world.ROOM, world.CELL, world.ROOM, world.CELL, 3), dtype=np.float32)
    room[[0, -1]] = room[:, :, [0, -1]] = 0.35
    room[scene.agent[0], 2:7, scene.agent[1], 2:7] = 1.0
    for (down, across), shape, colour in zip(scene.places, scene.shapes, scene.colours, strict=True):
        room[down, :, across] = world.tile(shape, colour)
    return room
