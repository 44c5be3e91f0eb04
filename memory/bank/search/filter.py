"""Filters of a search, as an SQL condition and as scope words of the keyword index."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Filter:
    """Filter of the records that a search may return."""

    at: float
    """Time at which records must be valid, in seconds since 1970."""
    kinds: tuple[str, ...] | None
    """Kinds of record that the filter accepts; None accepts all kinds."""
    namespace: str | None
    """Accepted namespace, a string from `join_namespace`, with all namespaces below it; None accepts all."""
    trusts: tuple[str, ...] | None
    """Authors whose records the filter accepts; None accepts all authors."""

    def condition(self) -> tuple[str, list[object]]:
        """Return the SQL condition and the values of its placeholders."""
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
        """Return the prefix of an FTS5 expression that restricts matches to the kinds and the namespace."""
        parts = [[_scope_word(kind) for kind in self.kinds]] if self.kinds is not None else []
        if self.namespace:
            parts.append([_scope_word(self.namespace)])
        return "".join(f"scope : ({' OR '.join(names)}) AND " for names in parts)

    def allows(self, namespace: str, kind: str) -> bool:
        """Return True if records of this namespace and kind are accepted."""
        return (self.kinds is None or kind in self.kinds) and namespace.startswith(self.namespace or "")


def scope_words(namespace: str, kind: str) -> str:
    """Return the words in the keyword index for a record's kind and for every level of its namespace."""
    ends = [i + 1 for i, letter in enumerate(namespace) if letter == "\x1f"]
    return " ".join([_scope_word(kind), *(_scope_word(namespace[:end]) for end in ends)])


def _scope_word(name: str) -> str:
    # Digits only, since the stemmer does not change them.
    return f"x{int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')}"
