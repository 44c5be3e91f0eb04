"""What a memory bank stores and returns: one record type for every kind of memory."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from typing import Any, SupportsIndex

from scrubjay.memory.bank.file.damage import Unreadable

KINDS = ("knowledge", "conversation", "task", "episode")
TRUSTS = ("user", "agent", "tool")
LONGEST_TEXT = 1 << 20
"""Characters of a text that is remembered or asked for, at most."""

COLUMNS = (
    "id, text, kind, namespace, trust, provenance, created, observed, renewed, valid_from, valid_to, "
    "importance, supersedes, sayings"
)
"""What of a row of the table of records is a `Record`."""
_COLUMNS = COLUMNS.split(", ")

Time = datetime | float
"""A moment: a datetime (one without a zone is UTC), or seconds since 1970."""
_FIRST = datetime.min.replace(tzinfo=UTC).timestamp()
_LAST = math.nextafter(datetime.max.replace(tzinfo=UTC).timestamp(), 0)  # itself is rounded into year 10000


@dataclass(frozen=True)
class Explanation:
    """Why a hit is where it is: its score is the sum of all `from_...`, `recency` and `importance`."""

    keyword_rank: int | None
    """Place among the records that say words of the query, from 1; None if it says none."""
    dense_rank: int | None
    """Place by cosine among the records looked at, from 1; None without an embedding."""
    cosine: float | None
    """Similarity of the record's embedding to the query's."""
    from_words: float
    """5 for all of the query's words, less by the rarity of those that it lacks."""
    from_embeddings: float
    """By how many standard deviations it is nearer than records are on average, times how well the embeddings
    know the query's script and the bank's `dense_weight`. The cosine itself in a search by meaning."""
    from_neighbours: float
    """What the records said right before and after it add."""
    recency: float
    """From 0.02 for the present moment down to -0.02."""
    importance: float
    """From -0.02 to 0.02."""

    @property
    def told(self) -> str:
        """A line with all that there is, by name."""
        parts = dataclasses.asdict(self).items()
        return ", ".join(f"{name} {_number(value)}" for name, value in parts if value is not None)


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Record:
    """A memory as it was written; nothing but `valid_to`, `renewed` and `sayings` changes later."""

    id: str
    """Its name in the bank."""
    text: str
    """What is remembered."""
    kind: str
    """knowledge, conversation, task or episode."""
    namespace: tuple[str, ...]
    """Whose memory it is, the widest circle first: `("user", "ada")`."""
    trust: str
    """Who said it: user, agent or tool."""
    provenance: dict[str, Any]
    """Where it came from, in the writer's words."""
    created: datetime
    """When it was written."""
    observed: datetime
    """When it was first seen or said."""
    renewed: datetime
    """When it was last said again."""
    valid_from: datetime | None
    """Since when it holds; None for always."""
    valid_to: datetime | None
    """Until when it held; None while it does."""
    importance: float
    """From 0 to 1; 0.5 is neutral."""
    supersedes: str | None
    """The record that this one replaced."""
    sayings: int
    """How often it was said, in these words or nearly."""


@dataclass(frozen=True)
class Hit(Record):
    """A record found by a search."""

    score: float = field(kw_only=True)
    """Higher is better; comparable within one search only."""
    explanation: Explanation | None = field(default=None, kw_only=True)
    """How the score came about, where it was asked for."""


def to_seconds(moment: Time, name: str) -> float:
    """Return seconds since 1970. Raises TypeError or ValueError naming the argument.

    A datetime that as such is beyond the calendar, as `datetime.max` is rounded, is its last or first moment.
    """
    if isinstance(moment, datetime):
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        return min(max(seconds, _FIRST), _LAST)
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise TypeError(f"{name}={moment!r}: pass a datetime or seconds since 1970")
    try:
        to_datetime(moment)
    except (OverflowError, ValueError, OSError):
        raise ValueError(
            f"{name}={moment!r}: no calendar has that moment; pass seconds since 1970, not milliseconds"
        ) from None
    return float(moment)


def to_datetime(seconds: float) -> datetime:
    """Return the moment in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def zone_of(moment: Time) -> tzinfo:
    """Return the time zone of a moment, UTC if it tells none."""
    return (moment.tzinfo if isinstance(moment, datetime) else None) or UTC


def check_namespace(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the namespace as a tuple. Raises TypeError or ValueError if it is not one of non-empty words."""
    if isinstance(namespace, str) or not all(isinstance(part, str) for part in namespace):
        raise TypeError(f'namespace={namespace!r}: pass a tuple of strings such as ("user", "ada")')
    if any(not part or "\x1f" in part for part in namespace):
        raise ValueError(f"namespace={namespace!r}: its parts must be non-empty, without U+001F")
    return tuple(namespace)


def check_count(name: str, count: int, least: int) -> None:
    """Raise TypeError on what is no whole number, ValueError on one below `least`."""
    if not isinstance(count, SupportsIndex):
        raise TypeError(f"{name}={count!r}: pass a whole number")
    if count < least:
        raise ValueError(f"{name}={count}: must be at least {least}")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return the value. Raises ValueError if it is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}; choose from {', '.join(choices)}")
    return value


def check_choices(
    name: str, values: Iterable[str] | str | None, choices: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the values, one or several; None for all.

    Raises ValueError if one is not a choice, or none is given.
    """
    if values is None:
        return None
    chosen = tuple(check_choice(name, v, choices) for v in ((values,) if isinstance(values, str) else values))
    if not chosen:
        raise ValueError(f"{name} is empty; choose from {', '.join(choices)}, or None for all")
    return chosen


def join_namespace(namespace: tuple[str, ...]) -> str:
    """Return a namespace as stored: each part ends in U+001F, so that a wider one is a prefix."""
    return "".join(f"{part}\x1f" for part in namespace)


def split_namespace(stored: str) -> tuple[str, ...]:
    """Return what `join_namespace` joined."""
    return tuple(stored.split("\x1f")[:-1])


def record_fields(row: Sequence[Any] | None) -> dict[str, Any]:
    """Return the fields of a `Record` from a row of `COLUMNS`. Raises Unreadable if it is none."""
    if row is None:
        raise Unreadable("an index tells of a record that is not there")
    fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    fields["provenance"] = read_json(fields["provenance"])
    try:
        for name in ("id", "text", "kind", "namespace", "trust"):
            fields[name].encode()
        fields["namespace"] = split_namespace(fields["namespace"])
        for name in ("created", "observed", "renewed", "valid_from", "valid_to"):
            if fields[name] is not None or not name.startswith("valid"):
                fields[name] = to_datetime(fields[name])
        _ = fields["importance"] + fields["sayings"]  # both are numbers
    except (AttributeError, TypeError, ValueError, OverflowError, OSError) as error:
        raise Unreadable(f"record {fields['id']!r}: {error}") from error
    return fields


def read_json(provenance: Any) -> dict[str, Any]:
    """Return provenance from what is stored. Raises Unreadable if it is none."""
    try:
        value = json.loads(provenance)
    except (TypeError, ValueError, RecursionError) as error:
        raise Unreadable(f"a record's provenance is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise Unreadable(f"a record's provenance is no object of JSON but {value!r:.80}")
    return value
