"""Pack an agent's context into a token budget: whole items, and a note about omitted ones.

The layout applies streaming attention (`scrubjay.memory.sink`) and HCAM to text. Pinned items correspond to
sinks and are always included. The last turns correspond to the window. Recalled items are between pinned
items and turns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PackedContext:
    """Items that fit the budget, in display order: pinned, recalled, note, recent."""

    pinned_items: tuple[Any, ...]
    """All pinned items."""
    recalled_items: tuple[Any, ...]
    """Recalled items that fit, in input order."""
    recent_items: tuple[Any, ...]
    """Most recent items that fit the budget together, oldest first."""
    note: str
    """Description of the omitted items; empty if nothing was omitted."""
    tokens: int
    """Total token count of the items and the note."""

    @property
    def items(self) -> tuple[Any, ...]:
        """Items and note in display order; an empty note is left out."""
        note = (self.note,) if self.note else ()
        return (*self.pinned_items, *self.recalled_items, *note, *self.recent_items)


def pack(
    pinned_items: Sequence[Any],
    recent_items: Sequence[Any],
    recalled_items: Sequence[Any],
    budget: int,
    count_tokens: Callable[[str], int],
    omitted_turns: int = 0,
    note: Callable[[int, int], str] | None = None,
) -> PackedContext:
    """Return the items that fit in `budget` tokens; no item is truncated.

    Items are strings or objects with a `text` attribute. A recalled item is omitted if an included recent
    item has the same text. If not all items fit, tokens are spent in this order: all pinned items; then
    recent items, up to half of the remaining tokens; then recalled items; then further recent items.

    Args:
        pinned_items: Items that are always included.
        recent_items: Last turns, oldest first.
        recalled_items: Memories, best first.
        budget: Maximum total tokens, the note included.
        count_tokens: Function that returns the number of tokens of a text.
        omitted_turns: Number of turns before `recent_items` that the caller left out. The note counts these
            turns, too.
        note: Function that takes the number of omitted turns and the number of omitted memories, and returns
            the note. It returns "" if both numbers are 0. None uses an English note.

    Raises ValueError if the pinned items and a note do not fit in the budget.
    """
    return _Packer(
        pinned_items, recent_items, recalled_items, budget, count_tokens, omitted_turns, note or _note
    ).fit()


class _Packer:
    def __init__(
        self, pinned_items, recent_items, recalled_items, budget, count_tokens, omitted_turns, note
    ) -> None:
        self.omitted_turns, self.note = omitted_turns, note
        self.pinned_items, self.recent_items = tuple(pinned_items), tuple(recent_items)
        self.budget, self.count = budget, count_tokens
        self.recalled_items = _without_repeats(recalled_items)
        self.cost = {
            text: count_tokens(text)
            for text in map(_text, (*pinned_items, *recent_items, *self.recalled_items))
        }

    def fit(self) -> PackedContext:
        everything = self._pack(len(self.recent_items), self.recalled_items)
        if everything.tokens <= self.budget:
            return everything
        # Reserve tokens for the longest possible note: its actual text is known only at the end.
        most = self.omitted_turns + len(self.recent_items), len(self.recalled_items)
        reserve = max(
            self.count(self.note(a, b)) for a in {self.omitted_turns, most[0]} for b in {0, most[1]} if a or b
        )
        minimum = self._count_tokens(self.pinned_items) + reserve
        if minimum > self.budget:
            raise ValueError(
                f"budget={self.budget}: the pinned items and the note about omitted items need {minimum} "
                "tokens; pin fewer items or raise the budget"
            )
        available = self.budget - minimum
        window = self._count_window(available // 2)
        recalled_items = self._select_recalled(
            available - self._count_tokens(self._last_items(window)), window
        )
        # Use the tokens that recalled items leave for a longer window.
        window = self._count_window(available - self._count_tokens(recalled_items))
        packed = self._pack(window, recalled_items)
        while packed.tokens > self.budget:  # a shorter note may have more tokens than those reserved
            window, recalled_items = (
                (window, recalled_items[:-1]) if recalled_items else (window - 1, recalled_items)
            )
            packed = self._pack(window, recalled_items)
        while window < len(self.recent_items):  # a note with fewer tokens leaves some for more items
            window += 1
            longer = self._pack(window, recalled_items)
            if longer.tokens > self.budget:
                break
            packed = longer
        return packed

    def _count_window(self, available: int) -> int:
        """Count the most recent items that fit in `available` tokens together."""
        count = 0
        for item in reversed(self.recent_items):
            available -= self.cost[_text(item)]
            if available < 0:
                break
            count += 1
        return count

    def _select_recalled(self, available: int, window: int) -> tuple[Any, ...]:
        recent_texts = {_text(item) for item in self._last_items(window)}
        selection = []
        for item in self.recalled_items:
            if _text(item) not in recent_texts and self.cost[_text(item)] <= available:
                selection.append(item)
                available -= self.cost[_text(item)]
        return tuple(selection)

    def _pack(self, window: int, recalled_items: tuple[Any, ...]) -> PackedContext:
        recent_items = self._last_items(window)
        recent_texts = {_text(item) for item in recent_items}
        recalled_items = tuple(item for item in recalled_items if _text(item) not in recent_texts)
        missing = sum(_text(item) not in recent_texts for item in self.recalled_items) - len(recalled_items)
        note = self.note(self.omitted_turns + len(self.recent_items) - window, missing)
        tokens = self._count_tokens((*self.pinned_items, *recalled_items, *recent_items)) + (
            self.count(note) if note else 0
        )
        return PackedContext(self.pinned_items, recalled_items, recent_items, note, tokens)

    def _last_items(self, count: int) -> tuple[Any, ...]:
        return self.recent_items[len(self.recent_items) - count :]

    def _count_tokens(self, items: Sequence[Any]) -> int:
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
        raise TypeError(f"{type(item).__name__} has no text attribute; pass strings, messages or search hits")
    return str(text)
