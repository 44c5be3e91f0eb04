"""Fit what an agent should see into a budget of tokens: whole items, and a note where something is missing.

The shape is that of streaming attention (`scrubjay.memory.sink`) and HCAM over text: pinned items are the
sinks, always there; the last turns are the window; between them goes what was recalled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Packed:
    """What fits, in the order to show it: pinned, recalled, note, recent."""

    pinned: tuple[Any, ...]
    """All pinned items."""
    recalled: tuple[Any, ...]
    """The recalled items that fit, in the order given."""
    recent: tuple[Any, ...]
    """The last items without a gap, as many as fit, oldest first."""
    note: str
    """What was left out, to show in its place; empty if nothing was."""
    tokens: int
    """Sum of the token counts of items and note."""

    @property
    def items(self) -> tuple[Any, ...]:
        """All items and the note, in order."""
        note = (self.note,) if self.note else ()
        return (*self.pinned, *self.recalled, *note, *self.recent)


def pack(
    pinned: Sequence[Any],
    recent: Sequence[Any],
    recalled: Sequence[Any],
    budget: int,
    count_tokens: Callable[[str], int],
    omitted: int = 0,
    note: Callable[[int, int], str] | None = None,
) -> Packed:
    """Return the items that fit in `budget` tokens, none of them cut.

    Items are strings or have a `text`. A recalled item that is among the recent ones kept is not shown twice.
    Half of what pinned items leave is the recent window's own, the rest goes to recalled items first.

    Args:
        pinned: What is always shown.
        recent: The last turns, oldest first.
        recalled: Memories, best first.
        budget: Tokens of all, the note included.
        count_tokens: Counts those of a text.
        omitted: Turns before the recent ones that are not given; the note counts them.
        note: Words for so many missing turns and memories, empty for none; None for English ones.

    Raises ValueError if the pinned items and a note do not fit.
    """
    return _Packing(pinned, recent, recalled, budget, count_tokens, omitted, note or _note).fit()


class _Packing:
    def __init__(self, pinned, recent, recalled, budget, count_tokens, omitted, note) -> None:
        self.omitted, self.note = omitted, note
        self.pinned, self.recent, self.budget, self.count = tuple(pinned), tuple(recent), budget, count_tokens
        self.recalled = _without_repeats(recalled)
        self.cost = {text: count_tokens(text) for text in map(_text, (*pinned, *recent, *self.recalled))}

    def fit(self) -> Packed:
        whole = self._packed(len(self.recent), self.recalled)
        if whole.tokens <= self.budget:
            return whole
        # The longest note there can be is set aside first; its true text is known only at the end.
        most = self.omitted + len(self.recent), len(self.recalled)
        reserve = max(
            self.count(self.note(a, b)) for a in {self.omitted, most[0]} for b in {0, most[1]} if a or b
        )
        fixed = self._sum(self.pinned) + reserve
        if fixed > self.budget:
            raise ValueError(
                f"budget={self.budget}: the pinned items and a note of what is missing need {fixed} tokens; "
                "pin less or raise the budget"
            )
        room = self.budget - fixed
        window = self._window(room // 2)
        recalled = self._fitting(room - self._sum(self._last(window)), window)
        # Recalled items may leave room; more of the past then needs no recall.
        window = self._window(room - self._sum(recalled))
        packed = self._packed(window, recalled)
        while packed.tokens > self.budget:  # a shorter note may have more tokens than the one set aside
            window, recalled = (window, recalled[:-1]) if recalled else (window - 1, recalled)
            packed = self._packed(window, recalled)
        while window < len(self.recent):  # and a shorter one leaves room
            window += 1
            longer = self._packed(window, recalled)
            if longer.tokens > self.budget:
                break
            packed = longer
        return packed

    def _window(self, room: int) -> int:
        """Return how many of the last items fit."""
        count = 0
        for item in reversed(self.recent):
            room -= self.cost[_text(item)]
            if room < 0:
                break
            count += 1
        return count

    def _fitting(self, room: int, window: int) -> tuple[Any, ...]:
        shown = {_text(item) for item in self._last(window)}
        kept = []
        for item in self.recalled:
            if _text(item) not in shown and self.cost[_text(item)] <= room:
                kept.append(item)
                room -= self.cost[_text(item)]
        return tuple(kept)

    def _packed(self, window: int, recalled: tuple[Any, ...]) -> Packed:
        recent = self._last(window)
        shown = {_text(item) for item in recent}
        recalled = tuple(item for item in recalled if _text(item) not in shown)
        missing = sum(_text(item) not in shown for item in self.recalled) - len(recalled)
        note = self.note(self.omitted + len(self.recent) - window, missing)
        tokens = self._sum((*self.pinned, *recalled, *recent)) + (self.count(note) if note else 0)
        return Packed(self.pinned, recalled, recent, note, tokens)

    def _last(self, count: int) -> tuple[Any, ...]:
        return self.recent[len(self.recent) - count :]

    def _sum(self, items: Sequence[Any]) -> int:
        return sum(self.cost[_text(item)] for item in items)


def _note(turns: int, memories: int) -> str:
    parts = [f"{turns} earlier turns"] * (turns > 0) + [f"{memories} memories"] * (memories > 0)
    return f"[left out for lack of room: {' and '.join(parts)}]" if parts else ""


def _without_repeats(items: Sequence[Any]) -> tuple[Any, ...]:
    first: dict[str, Any] = {}
    for item in items:
        first.setdefault(_text(item), item)
    return tuple(first.values())


def _text(item: Any) -> str:
    if isinstance(item, str):
        return item
    text = getattr(item, "text", None)
    if not isinstance(text, str):
        raise TypeError(
            f"{type(item).__name__} is neither a string nor has a text; pass hits, messages or strings"
        )
    return str(text)
