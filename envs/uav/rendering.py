"""Rendering of one step of the UAV downlink as an RGB image."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image, ImageDraw, ImageFont

from scrubjay.envs.drawing import BACKGROUND, INK, PALE
from scrubjay.envs.uav.observation import MAX_BPS_HZ
from scrubjay.envs.uav.world import UAVWorld

Colour = tuple[int, int, int]
Point = tuple[float, float]
Place = Sequence[float] | np.ndarray

_PAPER, _GRID, _ALARM, _INACTIVE = (255, 255, 255), (232, 232, 228), (214, 39, 40), (150, 150, 145)
# Okabe-Ito palette, safe for color blindness; further sub-channels use darker shades.
_CHANNELS: tuple[Colour, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (140, 86, 75),
)
# Evenly spaced points of the "viridis" color map, from zero rate to the full rate.
_RATES = np.array([(68, 1, 84), (59, 82, 139), (33, 145, 140), (94, 201, 98), (253, 231, 37)], dtype=float)
_SMOOTH = 2  # supersampling factor for anti-aliasing


@dataclass(frozen=True)
class Scene:
    """Data of one environment at one step for rendering."""

    area_m: float
    """Side length of the square area; positions range from 0 to this length."""
    uav_position_m: Float[np.ndarray, "uavs 3"]
    """Positions of UAVs: east, north, up."""
    alive: Bool[np.ndarray, " uavs"]
    """Mask of flying UAVs; the others do not transmit."""
    sub_channel: Int[np.ndarray, " uavs"]
    """Sub-channel of each UAV, from 0."""
    power_w: Float[np.ndarray, " uavs"]
    """Transmit power of each UAV."""
    user_position_m: Float[np.ndarray, "users 2"]
    """Positions of users: east, north."""
    rate_bps: Float[np.ndarray, " users"]
    """Data rate of each user."""
    server: Int[np.ndarray, " users"]
    """Index of the UAV that serves each user; -1 for none."""
    full_rate_bps: float
    """Rate that the brightest color shows; keep it constant over an episode so that colors are comparable."""
    step: int
    """Number of steps since the start of the episode."""
    episode_steps: int
    """Steps after which the episode is truncated."""
    in_collision: Bool[np.ndarray, " uavs"] | None = None
    """Mask of UAVs that collided in this step; None: no collisions."""
    trail_m: Float[np.ndarray, "steps uavs 2"] = field(default_factory=lambda: np.zeros((0, 0, 2)))
    """Past UAV positions, oldest first; NaN where a UAV was not flying."""

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
                raise ValueError(f"{name} has shape {np.shape(getattr(self, name))}; expected {shape}")
        if not (self.area_m > 0 and self.full_rate_bps > 0):
            raise ValueError(
                f"area_m={self.area_m}, full_rate_bps={self.full_rate_bps}: both must be above 0"
            )

    def uav_colour(self, uav: int) -> Colour:
        """Return the color of a UAV, which is the color of its sub-channel; gray if it is not flying."""
        return channel_colour(int(self.sub_channel[uav])) if self.alive[uav] else _INACTIVE


def draw(scene: Scene, size: tuple[int, int] = (860, 620)) -> UInt8[np.ndarray, "height width 3"]:
    """Draw the scene as an image of `size` (width, height) in pixels.

    The left side is the map: users colored by rate, lines from users to their UAV in the color of its
    sub-channel, UAVs with trails, and red dashed lines between UAVs that interfere. The right side shows
    metrics, a table of UAVs and the legend.

    Raises:
        ValueError: if the width is below 640 or the height below 420 pixels.
    """
    width, height = size
    if width < 640 or height < 420:
        raise ValueError(f"size={size}: must be at least 640 by 420 pixels")
    image = Image.new("RGB", (width * _SMOOTH, height * _SMOOTH), BACKGROUND)
    canvas = _Canvas(ImageDraw.Draw(image))
    left, top, side = 24, 16, min(width - 290, height - 52)
    _Map(canvas, scene, left, top, side).draw()
    _Panel(_Canvas(canvas.pen, left + side + 20), scene).draw(top, height - 16)
    return np.asarray(image.resize(size, Image.Resampling.BOX))


def channel_colour(sub_channel: int) -> Colour:
    """Return the color of a sub-channel."""
    rounds, place = divmod(sub_channel, len(_CHANNELS))
    red, green, blue = (round(part * 0.6**rounds) for part in _CHANNELS[place])
    return red, green, blue


def rate_colour(share: float) -> Colour:
    """Return the color of a data rate.

    `share` is the rate divided by the rate of the brightest color. The color scale follows the square root of
    `share`, because most rates are low.
    """
    place = math.sqrt(min(max(share, 0.0), 1.0)) * (len(_RATES) - 1)
    below = min(int(place), len(_RATES) - 2)
    red, green, blue = _RATES[below] + (place - below) * (_RATES[below + 1] - _RATES[below])
    return round(red), round(green), round(blue)


@dataclass(frozen=True)
class _Canvas:
    """Image of `_SMOOTH` times the final size; positions, widths and sizes are in final pixels."""

    pen: ImageDraw.ImageDraw
    left: int = 0
    """Position of x = 0."""

    def line(self, start: Point, end: Point, ink: Colour, width: float = 1) -> None:
        self.pen.line([self.scale(start), self.scale(end)], ink, round(width * _SMOOTH))

    def rectangle(
        self, first: Point, second: Point, fill: Colour | None = None, outline: Colour | None = None
    ) -> None:
        self.pen.rectangle([self.scale(first), self.scale(second)], fill, outline, _SMOOTH)

    def circle(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None = None,
        outline: Colour | None = None,
        width: int = 1,
    ) -> None:
        (x, y), reach = self.scale(centre), radius * _SMOOTH
        self.pen.ellipse((x - reach, y - reach, x + reach, y + reach), fill, outline, width * _SMOOTH)

    def dashed_line(self, start: Point, end: Point) -> None:
        start, end = self.scale(start), self.scale(end)
        length = math.dist(start, end)
        stroke, gap = 6 * _SMOOTH, 5 * _SMOOTH
        for begin in range(0, round(length), stroke + gap):
            first, last = begin / length, min(begin + stroke, length) / length
            points = [
                tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)) for share in (first, last)
            ]
            self.pen.line(points, fill=_ALARM, width=_SMOOTH)

    def text(
        self,
        place: Point,
        text: str,
        size: int,
        ink: Colour = INK,
        anchor: str = "lt",
        halo: bool = False,
    ) -> None:
        font, width = _font(size * _SMOOTH), 2 * _SMOOTH if halo else 0
        self.pen.text(self.scale(place), text, ink, font, anchor, stroke_width=width, stroke_fill=_PAPER)

    def scale(self, place: Point) -> Point:
        return (self.left + place[0]) * _SMOOTH, place[1] * _SMOOTH


@dataclass(frozen=True)
class _Map:
    canvas: _Canvas
    scene: Scene
    left: int
    top: int
    side: int

    def draw(self) -> None:
        self.draw_ground()
        self.draw_links()
        self.draw_interference()
        self.draw_trails()
        self.draw_users()
        self.draw_uavs()

    def draw_ground(self) -> None:
        area_m, canvas = self.scene.area_m, self.canvas
        corners = self.to_pixel((0, area_m)), self.to_pixel((area_m, 0))
        canvas.rectangle(*corners, fill=_PAPER)
        step = _round_down(area_m / 5)
        for line in np.arange(step, area_m * 0.999, step):
            self.draw_line((line, 0), (line, area_m), _GRID)
            self.draw_line((0, line), (area_m, line), _GRID)
        canvas.rectangle(*corners, outline=PALE)
        x, y = corners[0][0], corners[1][1] + 12
        end = self.to_pixel((step, 0))[0]
        canvas.line((x, y), (end, y), INK, 2)
        for tick in (x, end):
            canvas.line((tick, y - 4), (tick, y + 4), INK)
        canvas.text((end + 8, y), _format_distance(step), 12, anchor="lm")

    def draw_links(self) -> None:
        scene = self.scene
        for user in np.flatnonzero(scene.server >= 0):
            uav = scene.server[user]
            ink = _lighten(channel_colour(int(scene.sub_channel[uav])), 0.45)
            self.draw_line(scene.uav_position_m[uav], scene.user_position_m[user], ink)

    def draw_interference(self) -> None:
        scene = self.scene
        for uav, other in itertools.combinations(np.flatnonzero(scene.alive & (scene.power_w > 0)), 2):
            if scene.sub_channel[uav] == scene.sub_channel[other]:
                start, end = (self.to_pixel(scene.uav_position_m[one]) for one in (uav, other))
                self.canvas.dashed_line(start, end)

    def draw_trails(self) -> None:
        num_steps = len(self.scene.trail_m)
        for uav in range(len(self.scene.alive)):
            for step in range(1, num_steps):
                ends = self.scene.trail_m[step - 1 : step + 1, uav]
                if np.isfinite(ends).all():
                    age = 0.75 * (1 - step / num_steps)
                    colour = _lighten(self.scene.uav_colour(uav), age)
                    self.draw_line(ends[0], ends[1], colour, 1.5)

    def draw_users(self) -> None:
        scene = self.scene
        radius = 5 if len(scene.server) <= 60 else 4
        for place, rate, server in zip(scene.user_position_m, scene.rate_bps, scene.server, strict=True):
            if server < 0:
                fill, outline = _PAPER, _ALARM
            else:
                fill, outline = rate_colour(float(rate) / scene.full_rate_bps), INK
            self.canvas.circle(self.to_pixel(place), radius, fill, outline)

    def draw_uavs(self) -> None:
        scene = self.scene
        reach = 70 * scene.area_m / self.side  # width of a label to the right of its UAV, in meters
        for uav, place in enumerate(scene.uav_position_m):
            x, y = self.to_pixel(place)
            if scene.in_collision is not None and scene.in_collision[uav]:
                self.canvas.circle((x, y), 20, outline=_ALARM, width=2)
            _draw_drone(self.canvas, (x, y), scene.uav_colour(uav), bool(scene.alive[uav]))
            label = f"{uav}  {place[2]:.0f} m" if scene.alive[uav] else f"{uav}  down"
            others = np.delete(scene.uav_position_m, uav, axis=0)
            is_crowded = (np.abs(others[:, 1] - place[1]) < reach / 2) & (
                np.abs(others[:, 0] - place[0] - reach / 2) < reach / 2
            )
            is_left = is_crowded.any() or place[0] + reach > scene.area_m
            x, anchor = (x - 16, "rm") if is_left else (x + 16, "lm")
            self.canvas.text((x, y - 11), label, 12, INK, anchor, halo=True)

    def draw_line(self, start: Place, end: Place, ink: Colour, width: float = 1) -> None:
        """Draw a line between two positions in meters."""
        self.canvas.line(self.to_pixel(start), self.to_pixel(end), ink, width)

    def to_pixel(self, place: Place) -> Point:
        """Convert a position in meters to a pixel, rounded to a pixel of the large image; north is up."""
        share_x, share_y = float(place[0]) / self.scene.area_m, float(place[1]) / self.scene.area_m
        x, y = self.left + self.side * share_x, self.top + self.side * (1 - share_y)
        return round(x * _SMOOTH) / _SMOOTH, round(y * _SMOOTH) / _SMOOTH


@dataclass(frozen=True)
class _Panel:
    canvas: _Canvas
    scene: Scene

    def draw(self, top: int, bottom: int) -> None:
        rates, text = self.scene.rate_bps, self.canvas.text
        text((0, top), f"step {self.scene.step} of {self.scene.episode_steps}", 16)
        numbers = (
            ("sum rate", _format_rate(rates.sum())),
            ("5th percentile", _format_rate(np.percentile(rates, 5)) if len(rates) else "-"),
            ("fairness (Jain)", f"{_jain(rates):.2f}"),
        )
        for line, (name, value) in enumerate(numbers):
            text((0, top + 40 + 18 * line), name, 13, PALE, "ls")
            text((230, top + 40 + 18 * line), value, 13, anchor="rs")
        self.draw_legend(bottom - 118)
        self.draw_table(top + 96, bottom - 130)

    def draw_table(self, top: int, bottom: int) -> None:
        scene, text = self.scene, self.canvas.text
        for x, name, anchor in (
            (0, "UAV", "ls"),
            (53, "channel", "ms"),
            (118, "power", "rs"),
            (158, "users", "rs"),
            (230, "rate", "rs"),
        ):
            text((x, top + 11), name, 11, PALE, anchor)
        line = 24 if len(scene.alive) <= (bottom - top - 18) // 24 else 17
        num_rows = min(len(scene.alive), max(1, (bottom - top - 18) // line))
        if num_rows < len(scene.alive):
            num_rows -= 1
            text((0, top + 18 + line * num_rows), f"and {len(scene.alive) - num_rows} more", 11, PALE)
        for uav in range(num_rows):
            y, mine = top + 18 + line * uav + line // 2, scene.server == uav
            text((0, y), str(uav), 13, anchor="lm")
            if not scene.alive[uav]:
                text((36, y), "down", 13, _INACTIVE, "lm")
                continue
            self.canvas.rectangle((36, y - 5), (46, y + 5), fill=scene.uav_colour(uav))
            text((60, y), str(int(scene.sub_channel[uav])), 13, anchor="mm")
            power = float(scene.power_w[uav])
            text((118, y), f"{10 * math.log10(power) + 30:.0f} dBm" if power > 0 else "off", 13, anchor="rm")
            text((158, y), str(int(mine.sum())), 13, anchor="rm")
            text((230, y), _format_rate(scene.rate_bps[mine].sum()), 13, anchor="rm")

    def draw_legend(self, top: int) -> None:
        canvas, full = self.canvas, self.scene.full_rate_bps
        canvas.text((0, top), "a user's rate", 11, PALE)
        for pixel in range(230 * _SMOOTH):
            x, colour = pixel / _SMOOTH, rate_colour((pixel / (230 * _SMOOTH)) ** 2)
            canvas.line((x, top + 16), (x, top + 26), colour, 1 / _SMOOTH)
        for x, label, anchor in (
            (0, "0", "ls"),
            (115, _format_rate(full / 4), "ms"),
            (230, f"{_format_rate(full)} +", "rs"),
        ):
            canvas.text((x, top + 39), label, 11, anchor=anchor)
        canvas.circle((10, top + 58), 5, _PAPER, _ALARM)
        canvas.dashed_line((0, top + 78), (22, top + 78))
        canvas.circle((10, top + 98), 7, outline=_ALARM, width=2)
        for line, label in enumerate(("user without a UAV", "same sub-channel: they interfere", "collision")):
            canvas.text((30, top + 58 + 20 * line), label, 12, anchor="lm")


def _draw_drone(canvas: _Canvas, centre: Point, ink: Colour, alive: bool) -> None:
    (x, y), frame = centre, INK if alive else _INACTIVE
    for dx, dy in ((-9, -9), (9, -9), (-9, 9), (9, 9)):
        canvas.line(centre, (x + dx, y + dy), frame, 2)
        canvas.circle((x + dx, y + dy), 5, _lighten(ink, 0.35), frame)
    canvas.circle(centre, 4, ink, INK)
    if not alive:
        canvas.line((x - 9, y), (x + 9, y), _ALARM, 2)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _lighten(colour: Colour, share: float) -> Colour:
    red, green, blue = (round(part + share * (255 - part)) for part in colour)
    return red, green, blue


def _jain(rates: np.ndarray) -> float:
    squares = len(rates) * float(np.square(rates).sum())
    return float(rates.sum()) ** 2 / squares if squares else 0.0


def _format_rate(rate: float) -> str:
    for unit, size in (("Gbit/s", 1e9), ("Mbit/s", 1e6), ("kbit/s", 1e3)):
        if rate >= size:
            return f"{rate / size:.3g} {unit}" if rate < 1000 * size else f"{rate / size:.0f} {unit}"
    return f"{rate:.0f} bit/s"


def _format_distance(distance: float) -> str:
    return f"{distance / 1000:g} km" if distance >= 1000 else f"{distance:g} m"


def _round_down(value: float) -> float:
    """Round down to 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return max(step * power for step in (1, 2, 5) if step * power <= value * (1 + 1e-9))


def build_scene(world: UAVWorld, row: int, trail_m: Float[np.ndarray, "steps uavs 2"] | None = None) -> Scene:
    """Build the scene of environment `row`; `trail_m` holds past UAV positions (see `Scene`).

    A user's color shows the rate of the user. The brightest color stands for rates of at least
    20 bit/s/Hz * `bandwidth_hz` * `num_uavs` / `num_users`.
    """
    config, alive = world.config, world.alive[row]
    server = world.association[row]
    is_served = (server >= 0) & alive[server]
    fair_share = config.bandwidth_hz * config.num_uavs / config.num_users
    return Scene(
        area_m=config.area_m,
        uav_position_m=world.position_m[row].copy(),
        alive=alive.copy(),
        sub_channel=world.channel[row].copy(),
        power_w=world.power_w[row],
        user_position_m=world.user_position_m[row].copy(),
        rate_bps=world.rate_bps[row].copy(),
        server=np.where(is_served, server, -1),
        full_rate_bps=MAX_BPS_HZ * fair_share,
        step=int(world.time[row]),
        episode_steps=config.max_steps,
        in_collision=world.collisions[row] > 0,
        trail_m=np.zeros((0, config.num_uavs, 2)) if trail_m is None else trail_m,
    )
