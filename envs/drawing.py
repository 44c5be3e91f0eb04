"""Frames, colors and card suits shared by the images of several environments."""

from __future__ import annotations

from typing import Any

from PIL import Image, ImageDraw, ImageFont

BACKGROUND, INK, PALE = (250, 250, 248), (40, 40, 40), (130, 130, 125)
FLOOR, WALL = (225, 225, 220), (120, 120, 115)
GOOD, BAD = (60, 150, 75), (205, 95, 85)
CARD, HIGHLIGHT = (255, 255, 255), (245, 200, 70)
SUITS = "♣♦♥♠"
_RED = (190, 40, 45)


def make_frame(
    width: int, height: int, caption: str, corner: tuple[int, int] = (16, 10)
) -> tuple[Image.Image, ImageDraw.ImageDraw, Any]:
    """Return an image with `caption` at `corner`, its pen and the font of the caption."""
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size=16)
    draw.text(corner, caption, fill=INK, font=font)
    return image, draw, font


def draw_suit(draw: ImageDraw.ImageDraw, x: int, y: int, suit: int) -> None:
    """Draw suit number `suit` of `SUITS` from polygons and ellipses, because PIL's fonts lack the suits.

    The center of the suit is (x, y).
    """
    colour = _RED if suit in (1, 2) else INK
    if suit == 1:
        draw.polygon([(x, y - 14), (x + 10, y), (x, y + 14), (x - 10, y)], fill=colour)
        return
    if suit == 2:
        lobes, flank = [(-6, -4), (6, -4)], [(-12, -1), (12, -1), (0, 14)]
    elif suit == 3:
        lobes, flank = [(-6, 4), (6, 4)], [(-12, 1), (12, 1), (0, -14)]
    else:
        lobes, flank = [(0, -7), (-7, 4), (7, 4)], [(-2, 0), (2, 0), (0, 5)]
    for dx, dy in lobes:
        draw.ellipse((x + dx - 6, y + dy - 6, x + dx + 6, y + dy + 6), fill=colour)
    draw.polygon([(x + dx, y + dy) for dx, dy in flank], fill=colour)
    if suit != 2:
        draw.polygon([(x, y), (x + 5, y + 15), (x - 5, y + 15)], fill=colour)
