"""Plot colors: a memory has the same color in every plot."""

from __future__ import annotations

from collections.abc import Iterable

_OWN = {
    "none": "#7f7f7f",
    "positional": "#c7c7c7",
    "gru": "#1f77b4",
    "lstm": "#17becf",
    "gtrxl": "#2ca02c",
    "sink": "#bcbd22",
    "stack": "#c7b299",
    "hcam": "#d62728",
    "landmark": "#ff7f0e",
    "moba": "#8c564b",
    "nsa": "#c49c94",
    "elmur": "#e377c2",
    "routing": "#f7b6d2",
    "titans": "#9467bd",
    "titans_mac": "#5b3a8e",
    "titans_mag": "#c5b0d5",
    "titans_mal": "#b04fd6",
    "yaad": "#e6ab02",
    "moneta": "#a6761d",
    "memora": "#ffd92f",
    "gated_delta": "#1b7837",
    "flow": "#7fbf7b",
    "based": "#b8e186",
    "lightning": "#00c08b",
    "lru": "#08519c",
    "mingru": "#6baed6",
    "ffm": "#08306b",
    "shm": "#9ecae1",
    "agalite": "#008080",
}
_OTHERS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22",
    "#17becf", "#ffbb78", "#98df8a", "#ff9896", "#aec7e8", "#dbdb8d",
)  # fmt: skip


def assign_colors(labels: Iterable[str]) -> dict[str, str]:
    """Return a color for every label.

    Each memory has a fixed color. If several labels name one memory with different sizes, only the first of
    these labels gets the color. All other labels get unused colors. Equal sets of labels get equal colors.
    """
    sorted_labels = sorted(set(labels))
    colors: dict[str, str] = {}
    for label in sorted_labels:
        own = _OWN.get(label.partition(",")[0])
        if own is not None and own not in colors.values():
            colors[label] = own
    free = [colour for colour in _OTHERS if colour not in colors.values()]
    rest = [label for label in sorted_labels if label not in colors]
    colors |= {label: free[number % len(free)] for number, label in enumerate(rest)}
    return colors
