"""Rendering of a Ballet environment as an image or a text."""

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
    size, side = world.CELL * _ZOOM, world.ROOM * world.CELL
    image = Image.new("RGB", (world.ROOM * size, world.ROOM * size + _HEADING), BACKGROUND)
    pixels = Image.fromarray((_draw_room(scene).reshape(side, side, 3) * 255).round().astype(np.uint8))
    image.paste(pixels.resize((side * _ZOOM, side * _ZOOM), Image.Resampling.NEAREST), (0, _HEADING))
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=16)
    pen.text((10, 8), scene.progress, fill=INK, font=font)
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
    room = np.full((world.ROOM, world.ROOM), " ")
    room[[0, -1]] = room[:, [0, -1]] = "#"
    room[tuple(scene.agent)] = "A"
    for dancer, place in enumerate(scene.places):
        room[tuple(place)] = dancer_letter(dancer)
    return "\n".join([scene.progress, scene.event, *("".join(cells) for cells in room)])


def dancer_letter(dancer: int) -> str:
    """Return the letter of a dancer: B for the first to dance, and so on; A is the agent."""
    return "BCDEFGHI"[dancer]


def _draw_room(scene: BalletScene) -> np.ndarray:
    room = np.zeros((world.ROOM, world.CELL, world.ROOM, world.CELL, 3), dtype=np.float32)
    room[[0, -1]] = room[:, :, [0, -1]] = 0.35
    room[scene.agent[0], 2:7, scene.agent[1], 2:7] = 1.0
    for (down, across), shape, colour in zip(scene.places, scene.shapes, scene.colours, strict=True):
        room[down, :, across] = world.draw_tile(shape, colour)
    return room
