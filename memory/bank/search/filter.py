"""Which records a search may see: as a condition in SQL, and as words that the keyword index knows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Filter:
    """Which records a search may see."""

    at: float
    """Seconds since 1970 at which they must hold."""
    kinds: tuple[str, ...] | None
    """Kinds, None for all."""
    namespace: str | None
    """The beginning of their namespace as stored, None for all."""
    trusts: tuple[str, ...] | None
    """Degrees of trust, None for all."""

    def condition(self) -> tuple[str, list[object]]:
        """Return the condition in SQL and its values."""
        parts = ["(valid_from IS NULL OR valid_from <= ?)", "(valid_to IS NULL OR valid_to > ?)"]
        values: list[object] = [self.at, self.at]
        for column, choices in (("kind", self.kinds), ("trust", self.trusts)):
            if choices is not None:
                parts.append(f"{column} IN ({', '.join('?' * len(choices))})")
                values += choices
        if self.namespace:
            parts.append("namespace >= ? AND namespace < ?")
            values += [self.namespace, self.namespace[:-1] + "\x20"]
        return " AND ".join(parts), values

    def scope(self) -> str:
        """Return the beginning of an FTS5 expression that only records of these kinds and namespace match."""
        parts = [[_scope_word(kind) for kind in self.kinds]] if self.kinds is not None else []
        if self.namespace:
            parts.append([_scope_word(self.namespace)])
        return "".join(f"scope : ({' OR '.join(names)}) AND " for names in parts)

    def allows(self, namespace: str, kind: str) -> bool:
        """Return whether records of this namespace and kind may be seen."""
        return (self.kinds is None or kind in self.kinds) and namespace.startswith(self.namespace or "")


def scope_words(namespace: str, kind: str) -> str:
    """Return the words by which the keyword index knows a record's kind and every circle of its namespace."""
    circles = [i + 1 for i, letter in enumerate(namespace) if letter == "\x1f"]
    return " ".join([_scope_word(kind), *(_scope_word(namespace[:end]) for end in circles)])


def _scope_word(name: str) -> str:
    # Digits alone, which the stemmer leaves as they are.
    return f"x{int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')}"
