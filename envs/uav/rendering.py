"""One moment of the downlink as a picture that a person understands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from scrubjay.envs.drawing import BACKGROUND, INK, PALE

Colour = tuple[int, int, int]

_PAPER, _GRID, _ALARM, _LOST = (255, 255, 255), (232, 232, 228), (214, 39, 40), (150, 150, 145)
# Okabe and Ito's colours, which colour-blind people tell apart; further sub-channels take darker ones.
_CHANNELS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (140, 86, 75),
)
# From no rate to the full one: evenly spaced points of the "viridis" colour map.
_RATES = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float)
_SMOOTH = 2  # drawn this many times as large, then shrunk


@dataclass(frozen=True)
class Scene:
    """What there is to see of one row at one step."""

    area_m: float
    """Side of the square that is flown over; positions run from 0 to it."""
    uav_position_m: Float[np.ndarray, "uavs 3"]
    """East, north, up."""
    alive: Bool[np.ndarray, " uavs"]
    """UAVs in the air; the others radiate nothing."""
    sub_channel: Int[np.ndarray, " uavs"]
    """That each UAV sends on, from 0."""
    power_w: Float[np.ndarray, " uavs"]
    """That each UAV radiates."""
    user_position_m: Float[np.ndarray, "users 2"]
    """East, north."""
    rate_bps: Float[np.ndarray, " users"]
    """That each user receives."""
    server: Int[np.ndarray, " users"]
    """Number of the UAV that serves each user; -1: none does."""
    full_rate_bps: float
    """Rate of the brightest colour; the same for a whole episode, or colours could not be compared."""
    step: int
    """Steps taken since the episode began."""
    episode_steps: int
    """Steps after which it is cut off."""
    collided: Bool[np.ndarray, " uavs"] | None = None
    """UAVs that came too close to another; None: none did."""
    trail_m: Float[np.ndarray, "moments uavs 2"] = field(default_factory=lambda: np.zeros((0, 0, 2)))
    """Where the UAVs were, oldest first; NaN where one was not."""

    def __post_init__(self) -> None:
        uavs, users = len(self.alive), len(self.rate_bps)
        shapes = {
            "uav_position_m": (uavs, 3),
            "sub_channel": (uavs,),
            "power_w": (uavs,),
            "user_position_m": (users, 2),
            "server": (users,),
        }
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} has the shape {np.shape(getattr(self, name))}, not {shape}")
        if not (self.area_m > 0 and self.full_rate_bps > 0):
            raise ValueError(
                f"area_m={self.area_m}, full_rate_bps={self.full_rate_bps}: both must be above 0"
            )


def draw(scene: Scene, size: tuple[int, int] = (860, 620)) -> UInt8[np.ndarray, "height width 3"]:
    """Return the scene as a picture of that width and height in pixels.

    Left the map: users coloured by rate and tied to the UAV that serves them in the colour of its
    sub-channel, UAVs with their trails, and a red broken line between UAVs that disturb each other. Right the
    numbers, a row for each UAV and what the colours mean.

    Raises:
        ValueError: if the picture would be narrower than 640 or lower than 420 pixels.
    """
    width, height = size
    if width < 640 or height < 420:
        raise ValueError(f"size={size}: a picture of at least 640 by 420 pixels is needed to be read")
    image = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), BACKGROUND)
    panel = 250
    sheet = _Map(ImageDraw.Draw(image), scene, 24, 16, min(width - panel - 40, height - 52))
    sheet.ground()
    sheet.links()
    sheet.interference()
    sheet.trails()
    sheet.users()
    sheet.uavs()
    _Panel(ImageDraw.Draw(image), scene, sheet.left + sheet.side + 20, 16, height - 16).fill()
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def channel_colour(sub_channel: int) -> Colour:
    """Return the colour that stands for a sub-channel."""
    rounds, place = divmod(sub_channel, len(_CHANNELS))
    red, green, blue = (round(part * 0.6**rounds) for part in _CHANNELS[place])
    return red, green, blue


def rate_colour(share: float) -> Colour:
    """Return the colour of a share, from 0 to 1, of the full rate; by its root, since most rates are low."""
    place = math.sqrt(min(max(share, 0.0), 1.0)) * (len(_RATES) - 1)
    below = min(int(place), len(_RATES) - 2)
    red, green, blue = _RATES[below] + (place - below) * (_RATES[below + 1] - _RATES[below])
    return round(red), round(green), round(blue)


@dataclass(frozen=True)
class _Map:
    paper: ImageDraw.ImageDraw
    scene: Scene
    left: int
    top: int
    side: int

    def ground(self) -> None:
        low, high = self.at((0, self.scene.area_m)), self.at((self.scene.area_m, 0))
        self.paper.rectangle((*low, *high), fill=_PAPER)
        step = _round_number(self.scene.area_m / 5)
        for line in np.arange(step, self.scene.area_m * 0.999, step):
            self.paper.line(
                (*self.at((line, 0)), *self.at((line, self.scene.area_m))), fill=_GRID, width=_SMOOTH
            )
            self.paper.line(
                (*self.at((0, line)), *self.at((self.scene.area_m, line))), fill=_GRID, width=_SMOOTH
            )
        self.paper.rectangle((*low, *high), outline=PALE, width=_SMOOTH)
        x, y = low[0], high[1] + 12 * _SMOOTH
        end = self.at((step, 0))[0]
        self.paper.line((x, y, end, y), fill=INK, width=2 * _SMOOTH)
        for tick in (x, end):
            self.paper.line((tick, y - 4 * _SMOOTH, tick, y + 4 * _SMOOTH), fill=INK, width=_SMOOTH)
        _write(self.paper, (end + 8 * _SMOOTH, y), _metres(step), 12, anchor="lm")

    def links(self) -> None:
        scene = self.scene
        for user in np.flatnonzero(scene.server >= 0):
            uav = scene.server[user]
            ends = *self.at(scene.uav_position_m[uav]), *self.at(scene.user_position_m[user])
            self.paper.line(
                ends, fill=_paler(channel_colour(int(scene.sub_channel[uav])), 0.45), width=_SMOOTH
            )

    def interference(self) -> None:
        scene = self.scene
        sending = np.flatnonzero(scene.alive & (scene.power_w > 0))
        for place, uav in enumerate(sending):
            for other in sending[place + 1 :]:
                if scene.sub_channel[uav] == scene.sub_channel[other]:
                    ends = self.at(scene.uav_position_m[uav]), self.at(scene.uav_position_m[other])
                    _broken_line(self.paper, *ends)

    def trails(self) -> None:
        moments = len(self.scene.trail_m)
        for uav, alive in enumerate(self.scene.alive):
            ink = channel_colour(int(self.scene.sub_channel[uav])) if alive else _LOST
            for moment in range(1, moments):
                ends = self.scene.trail_m[moment - 1 : moment + 1, uav]
                if np.isfinite(ends).all():
                    age = 0.75 * (1 - moment / moments)
                    line = *self.at(ends[0]), *self.at(ends[1])
                    self.paper.line(line, fill=_paler(ink, age), width=round(1.5 * _SMOOTH))

    def users(self) -> None:
        radius = (5 if len(self.scene.server) <= 60 else 4) * _SMOOTH
        for place, rate, server in zip(
            self.scene.user_position_m, self.scene.rate_bps, self.scene.server, strict=True
        ):
            x, y = self.at(place)
            box = x - radius, y - radius, x + radius, y + radius
            if server < 0:
                self.paper.ellipse(box, fill=_PAPER, outline=_ALARM, width=_SMOOTH)
            else:
                self.paper.ellipse(
                    box, fill=rate_colour(float(rate) / self.scene.full_rate_bps), outline=INK, width=_SMOOTH
                )

    def uavs(self) -> None:
        scene = self.scene
        reach = 70 * scene.area_m / self.side  # what a label covers to the right of its UAV, in metres
        for uav, place in enumerate(scene.uav_position_m):
            centre = self.at(place)
            if scene.collided is not None and scene.collided[uav]:
                _ring(self.paper, centre, 20)
            ink = channel_colour(int(scene.sub_channel[uav])) if scene.alive[uav] else _LOST
            _drone(self.paper, centre, ink, bool(scene.alive[uav]))
            label = f"{uav}  {place[2]:.0f} m" if scene.alive[uav] else f"{uav}  down"
            others = np.delete(scene.uav_position_m, uav, axis=0)
            crowded = (np.abs(others[:, 1] - place[1]) < reach / 2) & (
                np.abs(others[:, 0] - place[0] - reach / 2) < reach / 2
            )
            if crowded.any() or place[0] + reach > scene.area_m:
                x, anchor = centre[0] - 16 * _SMOOTH, "rm"
            else:
                x, anchor = centre[0] + 16 * _SMOOTH, "lm"
            _write(self.paper, (x, centre[1] - 11 * _SMOOTH), label, 12, INK, anchor, halo=True)

    def at(self, place: Sequence[float] | np.ndarray) -> tuple[int, int]:
        """Return the pixel of a place: north is up."""
        share_x, share_y = float(place[0]) / self.scene.area_m, float(place[1]) / self.scene.area_m
        x, y = self.left + self.side * share_x, self.top + self.side * (1 - share_y)
        return round(x * _SMOOTH), round(y * _SMOOTH)


@dataclass(frozen=True)
class _Panel:
    paper: ImageDraw.ImageDraw
    scene: Scene
    left: int
    top: int
    bottom: int

    def fill(self) -> None:
        rates = self.scene.rate_bps
        y = self.top
        self.text(0, y, f"step {self.scene.step} of {self.scene.episode_steps}", 16)
        numbers = (
            ("sum rate", _bits(rates.sum())),
            ("5th percentile", _bits(np.percentile(rates, 5)) if len(rates) else "-"),
            ("fairness (Jain)", f"{_jain(rates):.2f}"),
        )
        for line, (name, value) in enumerate(numbers):
            self.text(0, y + 40 + 18 * line, name, 13, PALE, "ls")
            self.text(230, y + 40 + 18 * line, value, 13, anchor="rs")
        self.legend(self.bottom - 118)
        self.table(y + 96, self.bottom - 130)

    def table(self, top: int, bottom: int) -> None:
        scene = self.scene
        for x, name, anchor in (
            (0, "UAV", "ls"),
            (53, "channel", "ms"),
            (118, "power", "rs"),
            (158, "users", "rs"),
            (230, "rate", "rs"),
        ):
            self.text(x, top + 11, name, 11, PALE, anchor)
        line = 24 if len(scene.alive) <= (bottom - top - 18) // 24 else 17
        shown = min(len(scene.alive), max(1, (bottom - top - 18) // line))
        if shown < len(scene.alive):
            shown -= 1
            self.text(0, top + 18 + line * shown, f"and {len(scene.alive) - shown} more", 11, PALE)
        for uav in range(shown):
            y = top + 18 + line * uav + line // 2
            alive, mine = bool(scene.alive[uav]), scene.server == uav
            ink = channel_colour(int(scene.sub_channel[uav])) if alive else _LOST
            self.text(0, y, str(uav), 13, anchor="lm")
            if not alive:
                self.text(36, y, "down", 13, _LOST, "lm")
                continue
            x = (self.left + 36) * _SMOOTH
            box = x, (y - 5) * _SMOOTH, x + 10 * _SMOOTH, (y + 5) * _SMOOTH
            self.paper.rectangle(box, fill=ink)
            self.text(60, y, str(int(scene.sub_channel[uav])), 13, anchor="mm")
            power = float(scene.power_w[uav])
            self.text(
                118, y, f"{10 * math.log10(power) + 30:.0f} dBm" if power > 0 else "off", 13, anchor="rm"
            )
            self.text(158, y, str(int(mine.sum())), 13, anchor="rm")
            self.text(230, y, _bits(scene.rate_bps[mine].sum()), 13, anchor="rm")

    def legend(self, top: int) -> None:
        self.text(0, top, "a user's rate", 11, PALE)
        for pixel in range(230 * _SMOOTH):
            x = self.left * _SMOOTH + pixel
            share = (pixel / (230 * _SMOOTH)) ** 2
            self.paper.line((x, (top + 16) * _SMOOTH, x, (top + 26) * _SMOOTH), fill=rate_colour(share))
        full = self.scene.full_rate_bps
        for x, words, anchor in (
            (0, "0", "ls"),
            (115, _bits(full / 4), "ms"),
            (230, f"{_bits(full)} +", "rs"),
        ):
            self.text(x, top + 39, words, 11, anchor=anchor)
        x = self.left * _SMOOTH
        middle = (top + 58) * _SMOOTH
        self.paper.ellipse(
            (x + 5 * _SMOOTH, middle - 5 * _SMOOTH, x + 15 * _SMOOTH, middle + 5 * _SMOOTH),
            fill=_PAPER,
            outline=_ALARM,
            width=_SMOOTH,
        )
        self.text(30, top + 58, "user without a UAV", 12, anchor="lm")
        middle += 20 * _SMOOTH
        _broken_line(self.paper, (x, middle), (x + 22 * _SMOOTH, middle))
        self.text(30, top + 78, "same sub-channel: they interfere", 12, anchor="lm")
        middle += 20 * _SMOOTH
        _ring(self.paper, (x + 10 * _SMOOTH, middle), 7)
        self.text(30, top + 98, "collision", 12, anchor="lm")

    def text(self, x: float, y: float, words: str, size: int, ink: Colour = INK, anchor: str = "lt") -> None:
        _write(self.paper, ((self.left + x) * _SMOOTH, y * _SMOOTH), words, size, ink, anchor)


def _drone(paper: ImageDraw.ImageDraw, centre: tuple[int, int], ink: Colour, alive: bool) -> None:
    x, y = centre
    arm, rotor, body = 9 * _SMOOTH, 5 * _SMOOTH, 4 * _SMOOTH
    for dx, dy in ((-arm, -arm), (arm, -arm), (-arm, arm), (arm, arm)):
        paper.line((x, y, x + dx, y + dy), fill=INK if alive else _LOST, width=2 * _SMOOTH)
        box = x + dx - rotor, y + dy - rotor, x + dx + rotor, y + dy + rotor
        paper.ellipse(box, fill=_paler(ink, 0.35), outline=INK if alive else _LOST, width=_SMOOTH)
    paper.ellipse((x - body, y - body, x + body, y + body), fill=ink, outline=INK, width=_SMOOTH)
    if not alive:
        paper.line((x - arm, y, x + arm, y), fill=_ALARM, width=2 * _SMOOTH)


def _ring(paper: ImageDraw.ImageDraw, centre: tuple[int, int], radius: int) -> None:
    x, y = centre
    radius *= _SMOOTH
    box = x - radius, y - radius, x + radius, y + radius
    paper.ellipse(box, outline=_ALARM, width=2 * _SMOOTH)


def _broken_line(paper: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int]) -> None:
    length = math.dist(start, end)
    stroke, gap = 6 * _SMOOTH, 5 * _SMOOTH
    for begin in range(0, round(length), stroke + gap):
        first, last = begin / length, min(begin + stroke, length) / length
        points = [
            tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)) for share in (first, last)
        ]
        paper.line(points, fill=_ALARM, width=_SMOOTH)


def _write(
    paper: ImageDraw.ImageDraw,
    place: tuple[float, float],
    words: str,
    size: int,
    ink: Colour = INK,
    anchor: str = "lt",
    halo: bool = False,
) -> None:
    width = 2 * _SMOOTH if halo else 0
    paper.text(place, words, ink, _font(size * _SMOOTH), anchor, stroke_width=width, stroke_fill=_PAPER)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _paler(colour: Colour, share: float) -> Colour:
    red, green, blue = (round(part + share * (255 - part)) for part in colour)
    return red, green, blue


def _jain(rates: np.ndarray) -> float:
    squares = len(rates) * float(np.square(rates).sum())
    return float(rates.sum()) ** 2 / squares if squares else 0.0


def _bits(rate: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}" if rate < 1000 * size else f"{rate / size:.0f} {unit}"
    return f"{rate:.0f} bit/s"


def _metres(distance: float) -> str:
    return f"{distance / 1000:g} km" if distance >= 1000 else f"{distance:g} m"


def _round_number(value: float) -> float:
    """Return the largest of 1, 2 and 5 times a power of ten that is not above it."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value * (1 + 1e-9))
