"""Rendering of one step of the UAV downlink as an RGB image."""

from __future__ import annotations

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
    panel = 250
    sheet = _Map(ImageDraw.Draw(image), scene, 24, 16, min(width - panel - 40, height - 52))
    sheet.draw_ground()
    sheet.draw_links()
    sheet.draw_interference()
    sheet.draw_trails()
    sheet.draw_users()
    sheet.draw_uavs()
    _Panel(ImageDraw.Draw(image), scene, sheet.left + sheet.side + 20, 16, height - 16).draw()
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
class _Map:
    canvas: ImageDraw.ImageDraw
    scene: Scene
    left: int
    top: int
    side: int

    def draw_ground(self) -> None:
        low, high = self.to_pixel((0, self.scene.area_m)), self.to_pixel((self.scene.area_m, 0))
        self.canvas.rectangle((*low, *high), fill=_PAPER)
        step = _round_down(self.scene.area_m / 5)
        for line in np.arange(step, self.scene.area_m * 0.999, step):
            self.draw_line((line, 0), (line, self.scene.area_m), _GRID)
            self.draw_line((0, line), (self.scene.area_m, line), _GRID)
        self.canvas.rectangle((*low, *high), outline=PALE, width=_SMOOTH)
        x, y = low[0], high[1] + 12 * _SMOOTH
        end = self.to_pixel((step, 0))[0]
        self.canvas.line((x, y, end, y), fill=INK, width=2 * _SMOOTH)
        for tick in (x, end):
            self.canvas.line((tick, y - 4 * _SMOOTH, tick, y + 4 * _SMOOTH), fill=INK, width=_SMOOTH)
        _draw_text(self.canvas, (end + 8 * _SMOOTH, y), _format_distance(step), 12, anchor="lm")

    def draw_links(self) -> None:
        scene = self.scene
        for user in np.flatnonzero(scene.server >= 0):
            uav = scene.server[user]
            ink = _lighten(channel_colour(int(scene.sub_channel[uav])), 0.45)
            self.draw_line(scene.uav_position_m[uav], scene.user_position_m[user], ink)

    def draw_interference(self) -> None:
        scene = self.scene
        sending = np.flatnonzero(scene.alive & (scene.power_w > 0))
        for place, uav in enumerate(sending):
            for other in sending[place + 1 :]:
                if scene.sub_channel[uav] == scene.sub_channel[other]:
                    ends = (
                        self.to_pixel(scene.uav_position_m[uav]),
                        self.to_pixel(scene.uav_position_m[other]),
                    )
                    _draw_dashed_line(self.canvas, *ends)

    def draw_trails(self) -> None:
        num_steps = len(self.scene.trail_m)
        for uav, alive in enumerate(self.scene.alive):
            ink = channel_colour(int(self.scene.sub_channel[uav])) if alive else _INACTIVE
            for step in range(1, num_steps):
                ends = self.scene.trail_m[step - 1 : step + 1, uav]
                if np.isfinite(ends).all():
                    age = 0.75 * (1 - step / num_steps)
                    self.draw_line(ends[0], ends[1], _lighten(ink, age), round(1.5 * _SMOOTH))

    def draw_users(self) -> None:
        radius = (5 if len(self.scene.server) <= 60 else 4) * _SMOOTH
        for place, rate, server in zip(
            self.scene.user_position_m, self.scene.rate_bps, self.scene.server, strict=True
        ):
            x, y = self.to_pixel(place)
            box = x - radius, y - radius, x + radius, y + radius
            if server < 0:
                self.canvas.ellipse(box, fill=_PAPER, outline=_ALARM, width=_SMOOTH)
            else:
                self.canvas.ellipse(
                    box, fill=rate_colour(float(rate) / self.scene.full_rate_bps), outline=INK, width=_SMOOTH
                )

    def draw_uavs(self) -> None:
        scene = self.scene
        reach = 70 * scene.area_m / self.side  # width of a label to the right of its UAV, in meters
        for uav, place in enumerate(scene.uav_position_m):
            centre = self.to_pixel(place)
            if scene.in_collision is not None and scene.in_collision[uav]:
                _draw_ring(self.canvas, centre, 20)
            ink = channel_colour(int(scene.sub_channel[uav])) if scene.alive[uav] else _INACTIVE
            _draw_drone(self.canvas, centre, ink, bool(scene.alive[uav]))
            label = f"{uav}  {place[2]:.0f} m" if scene.alive[uav] else f"{uav}  down"
            others = np.delete(scene.uav_position_m, uav, axis=0)
            is_crowded = (np.abs(others[:, 1] - place[1]) < reach / 2) & (
                np.abs(others[:, 0] - place[0] - reach / 2) < reach / 2
            )
            if is_crowded.any() or place[0] + reach > scene.area_m:
                x, anchor = centre[0] - 16 * _SMOOTH, "rm"
            else:
                x, anchor = centre[0] + 16 * _SMOOTH, "lm"
            _draw_text(self.canvas, (x, centre[1] - 11 * _SMOOTH), label, 12, INK, anchor, halo=True)

    def draw_line(
        self,
        start: Sequence[float] | np.ndarray,
        end: Sequence[float] | np.ndarray,
        ink: Colour,
        width: int = _SMOOTH,
    ) -> None:
        """Draw a line between two positions in meters."""
        self.canvas.line((*self.to_pixel(start), *self.to_pixel(end)), fill=ink, width=width)

    def to_pixel(self, place: Sequence[float] | np.ndarray) -> tuple[int, int]:
        """Convert a position in meters to a pixel; north is up."""
        share_x, share_y = float(place[0]) / self.scene.area_m, float(place[1]) / self.scene.area_m
        x, y = self.left + self.side * share_x, self.top + self.side * (1 - share_y)
        return round(x * _SMOOTH), round(y * _SMOOTH)


@dataclass(frozen=True)
class _Panel:
    canvas: ImageDraw.ImageDraw
    scene: Scene
    left: int
    top: int
    bottom: int

    def draw(self) -> None:
        rates = self.scene.rate_bps
        y = self.top
        self.draw_text(0, y, f"step {self.scene.step} of {self.scene.episode_steps}", 16)
        numbers = (
            ("sum rate", _format_rate(rates.sum())),
            ("5th percentile", _format_rate(np.percentile(rates, 5)) if len(rates) else "-"),
            ("fairness (Jain)", f"{_jain(rates):.2f}"),
        )
        for line, (name, value) in enumerate(numbers):
            self.draw_text(0, y + 40 + 18 * line, name, 13, PALE, "ls")
            self.draw_text(230, y + 40 + 18 * line, value, 13, anchor="rs")
        self.draw_legend(self.bottom - 118)
        self.draw_table(y + 96, self.bottom - 130)

    def draw_table(self, top: int, bottom: int) -> None:
        scene = self.scene
        for x, name, anchor in (
            (0, "UAV", "ls"),
            (53, "channel", "ms"),
            (118, "power", "rs"),
            (158, "users", "rs"),
            (230, "rate", "rs"),
        ):
            self.draw_text(x, top + 11, name, 11, PALE, anchor)
        line = 24 if len(scene.alive) <= (bottom - top - 18) // 24 else 17
        num_rows = min(len(scene.alive), max(1, (bottom - top - 18) // line))
        if num_rows < len(scene.alive):
            num_rows -= 1
            self.draw_text(0, top + 18 + line * num_rows, f"and {len(scene.alive) - num_rows} more", 11, PALE)
        for uav in range(num_rows):
            y = top + 18 + line * uav + line // 2
            alive, mine = bool(scene.alive[uav]), scene.server == uav
            ink = channel_colour(int(scene.sub_channel[uav])) if alive else _INACTIVE
            self.draw_text(0, y, str(uav), 13, anchor="lm")
            if not alive:
                self.draw_text(36, y, "down", 13, _INACTIVE, "lm")
                continue
            x = (self.left + 36) * _SMOOTH
            box = x, (y - 5) * _SMOOTH, x + 10 * _SMOOTH, (y + 5) * _SMOOTH
            self.canvas.rectangle(box, fill=ink)
            self.draw_text(60, y, str(int(scene.sub_channel[uav])), 13, anchor="mm")
            power = float(scene.power_w[uav])
            self.draw_text(
                118, y, f"{10 * math.log10(power) + 30:.0f} dBm" if power > 0 else "off", 13, anchor="rm"
            )
            self.draw_text(158, y, str(int(mine.sum())), 13, anchor="rm")
            self.draw_text(230, y, _format_rate(scene.rate_bps[mine].sum()), 13, anchor="rm")

    def draw_legend(self, top: int) -> None:
        self.draw_text(0, top, "a user's rate", 11, PALE)
        for pixel in range(230 * _SMOOTH):
            x = self.left * _SMOOTH + pixel
            share = (pixel / (230 * _SMOOTH)) ** 2
            self.canvas.line((x, (top + 16) * _SMOOTH, x, (top + 26) * _SMOOTH), fill=rate_colour(share))
        full = self.scene.full_rate_bps
        for x, label, anchor in (
            (0, "0", "ls"),
            (115, _format_rate(full / 4), "ms"),
            (230, f"{_format_rate(full)} +", "rs"),
        ):
            self.draw_text(x, top + 39, label, 11, anchor=anchor)
        x = self.left * _SMOOTH
        middle = (top + 58) * _SMOOTH
        self.canvas.ellipse(
            (x + 5 * _SMOOTH, middle - 5 * _SMOOTH, x + 15 * _SMOOTH, middle + 5 * _SMOOTH),
            fill=_PAPER,
            outline=_ALARM,
            width=_SMOOTH,
        )
        self.draw_text(30, top + 58, "user without a UAV", 12, anchor="lm")
        middle += 20 * _SMOOTH
        _draw_dashed_line(self.canvas, (x, middle), (x + 22 * _SMOOTH, middle))
        self.draw_text(30, top + 78, "same sub-channel: they interfere", 12, anchor="lm")
        middle += 20 * _SMOOTH
        _draw_ring(self.canvas, (x + 10 * _SMOOTH, middle), 7)
        self.draw_text(30, top + 98, "collision", 12, anchor="lm")

    def draw_text(
        self, x: float, y: float, text: str, size: int, ink: Colour = INK, anchor: str = "lt"
    ) -> None:
        _draw_text(self.canvas, ((self.left + x) * _SMOOTH, y * _SMOOTH), text, size, ink, anchor)


def _draw_drone(canvas: ImageDraw.ImageDraw, centre: tuple[int, int], ink: Colour, alive: bool) -> None:
    x, y = centre
    arm, rotor, body = 9 * _SMOOTH, 5 * _SMOOTH, 4 * _SMOOTH
    for dx, dy in ((-arm, -arm), (arm, -arm), (-arm, arm), (arm, arm)):
        canvas.line((x, y, x + dx, y + dy), fill=INK if alive else _INACTIVE, width=2 * _SMOOTH)
        box = x + dx - rotor, y + dy - rotor, x + dx + rotor, y + dy + rotor
        canvas.ellipse(box, fill=_lighten(ink, 0.35), outline=INK if alive else _INACTIVE, width=_SMOOTH)
    canvas.ellipse((x - body, y - body, x + body, y + body), fill=ink, outline=INK, width=_SMOOTH)
    if not alive:
        canvas.line((x - arm, y, x + arm, y), fill=_ALARM, width=2 * _SMOOTH)


def _draw_ring(canvas: ImageDraw.ImageDraw, centre: tuple[int, int], radius: int) -> None:
    x, y = centre
    radius *= _SMOOTH
    box = x - radius, y - radius, x + radius, y + radius
    canvas.ellipse(box, outline=_ALARM, width=2 * _SMOOTH)


def _draw_dashed_line(canvas: ImageDraw.ImageDraw, start: tuple[int, int], end: tuple[int, int]) -> None:
    length = math.dist(start, end)
    stroke, gap = 6 * _SMOOTH, 5 * _SMOOTH
    for begin in range(0, round(length), stroke + gap):
        first, last = begin / length, min(begin + stroke, length) / length
        points = [
            tuple(a + share * (b - a) for a, b in zip(start, end, strict=True)) for share in (first, last)
        ]
        canvas.line(points, fill=_ALARM, width=_SMOOTH)


def _draw_text(
    canvas: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    size: int,
    ink: Colour = INK,
    anchor: str = "lt",
    halo: bool = False,
) -> None:
    width = 2 * _SMOOTH if halo else 0
    canvas.text(place, text, ink, _font(size * _SMOOTH), anchor, stroke_width=width, stroke_fill=_PAPER)


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
