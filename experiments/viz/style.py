"""Style of plots: one color, line and marker per memory, readable without color vision."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

BLUE, SKY, GREEN, RED, PINK, ORANGE, BLACK = COLORS = (
    "#0072B2", "#56B4E9", "#009E73", "#D55E00", "#CC79A7", "#E69F00", "#000000",
)  # fmt: skip
"""Colors of Okabe and Ito that are legible on white; people with any color vision can tell them apart."""
GREY = "#666666"
_LINES: tuple[tuple[Any, str], ...] = (
    ("-", "o"),
    ("--", "s"),
    ("-.", "^"),
    (":", "D"),
    ((0, (6, 2, 1, 2, 1, 2)), "v"),
)
"""Line and marker of each group of memories."""


class Style(NamedTuple):
    """Style of a curve. No two memories have the same one."""

    color: str
    line: Any
    marker: str

    def as_line(self) -> dict[str, Any]:
        """Return the arguments of `Axes.plot` for a curve without markers."""
        return {"color": self.color, "linestyle": self.line}

    def as_points(self) -> dict[str, Any]:
        """Return the arguments of `Axes.plot` for a curve with a marker at each point."""
        return {**self.as_line(), "marker": self.marker}


_GROUPS = (
    {"gru": BLUE, "lstm": SKY, "gtrxl": GREEN, "hcam": RED, "titans": PINK, "sink": ORANGE,
     "gated_delta": BLACK},
    {"lru": BLUE, "mingru": SKY, "lightning": GREEN, "landmark": RED, "titans_mac": PINK, "based": ORANGE,
     "ffm": BLACK},
    {"flow": BLUE, "shm": SKY, "agalite": GREEN, "moba": RED, "titans_mag": PINK, "elmur": ORANGE,
     "mamba2": BLACK},
    {"rwkv7": BLUE, "xlstm": SKY, "comba": GREEN, "nsa": RED, "titans_mal": PINK, "stack": ORANGE,
     "mamba3": BLACK},
    {"routing": GREEN, "memora": RED, "yaad": PINK, "moneta": ORANGE},
)  # fmt: skip
_STYLES = {
    name: Style(color, *_LINES[number])
    for number, group in enumerate(_GROUPS)
    for name, color in group.items()
}
_STYLES |= {"none": Style(GREY, ":", "*"), "positional": Style(GREY, "--", "P")}


def assign_styles(labels: Iterable[str]) -> dict[str, Style]:
    """Return a style for every label.

    Each memory has a fixed style. If several labels name one memory with different sizes, they have its color
    and different lines. All other labels get the styles that are left. Equal sets of labels get equal styles.
    """
    sorted_labels = sorted(set(labels))
    styles: dict[str, Style] = {}
    for label in sorted_labels:
        own = _STYLES.get(label.partition(",")[0])
        if own is not None:
            lines = [(own.line, own.marker), *_LINES]
            free = [
                Style(own.color, *line) for line in lines if Style(own.color, *line) not in styles.values()
            ]
            styles[label] = (free or [own])[0]
    every = [Style(color, *line) for line in _LINES for color in COLORS]
    rest = [label for label in sorted_labels if label not in styles]
    free = [style for style in every if style not in styles.values()] or every
    return styles | {label: free[number % len(free)] for number, label in enumerate(rest)}


def assign_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return the color of the style of every label."""
    return {label: style.color for label, style in assign_styles(labels).items()}
