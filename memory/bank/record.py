"""Records of a memory bank, drafts of records to write, and checks of their fields.

One record type serves every kind of memory.
"""

from __future__ import annotations

import dataclasses
import json
import math
import operator
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, tzinfo
from typing import Any, NamedTuple, SupportsIndex

import numpy as np

from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.postings import IndexEntry

KINDS = ("knowledge", "conversation", "task", "episode")
TRUSTS = ("user", "agent", "tool")
FOREIGN_TRUST = "tool"
"""Trust level of every record of a foreign bank and of a foreign export: the lowest level."""
MAX_TEXT_LENGTH = 1 << 20
"""Maximum characters of a stored text or a query."""

MAX_COUNT = 2**63 - 1
"""Largest number of records to return: SQLite's largest integer."""

COLUMNS = (
    "id, text, kind, namespace, trust, provenance, created, observed, renewed, valid_from, valid_to, "
    "importance, supersedes, sayings"
)
"""Columns of the table of records that form a `Record`."""
_COLUMNS = COLUMNS.split(", ")

DAY = 86400.0
"""Seconds of a day."""
Time = datetime | date | str | float
"""Point in time: a datetime, a date (its start), an ISO 8601 text such as "2025-06-01" or
"2025-06-01T08:30+02:00", or seconds since 1970. The time zone is UTC unless the value names another."""
# `fromisoformat` takes any character as the separator, also a digit, and ignores a null character at the end.
_ISO_TIME = re.compile(r"(?:\d{4}-\d\d-\d\d|\d{8}|\d{4}-?W\d\d(?:-?\d)?)(?:[Tt ][\d:.,+Zz-]+)?", re.ASCII)
_FIRST = datetime.min.replace(tzinfo=UTC).timestamp()
LAST_TIME = math.nextafter(
    datetime.max.replace(tzinfo=UTC).timestamp(), 0
)  # the maximum itself would round into year 10000


@dataclass(frozen=True)
class Explanation:
    """Parts of the score of a hit.

    The score is the sum of `from_words`, `from_embeddings`, `from_neighbours`, `recency` and `importance`.
    """

    keyword_rank: int | None
    """Rank, from 1, among the records that contain words of the query; None if this record has none."""
    dense_rank: int | None
    """Rank by cosine, from 1, among the candidates of the search; None if the record has no embedding."""
    cosine: float | None
    """Cosine similarity of the record's and the query's embeddings."""
    from_words: float
    """Score for the query's words that the record contains. Rare words count more. A record with all words
    has a score from 1, if they are common, to about 4."""
    from_embeddings: float
    """Score for the embedding: `0.65 * a * z * dense_weight * fluency`. The fluency says how well the
    embedding model knows the script of the query (`memory/bank/embedding_model.py`). z is the difference
    between the cosine and the mean cosine of all records that the search accepts, in standard deviations. a
    is 1 in a bank of texts with up to 125 words on average, and 2 from 250 words on. In a search with
    `by="meaning"`, the score is the cosine itself."""
    from_neighbours: float
    """Score for the turns right before and after this record in the same conversation."""
    recency: float
    """Amount that recency adds to the score, from 0.02 for a new record down to -0.02 for an old record."""
    importance: float
    """Amount that importance adds to the score, from -0.02 to 0.02."""

    @property
    def summary(self) -> str:
        """One line with the names and values of the parts of the score, without parts that are None."""
        parts = dataclasses.asdict(self).items()
        return ", ".join(f"{name} {_number(value)}" for name, value in parts if value is not None)


def _number(value: float) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Record:
    """Record of a memory bank.

    `update` changes its text and trust. Later records change `valid_to`, `observed`, `renewed` and `sayings`.
    """

    id: str
    """Unique id in the bank."""
    text: str
    """Stored text."""
    kind: str
    """Kind: knowledge, conversation, task or episode."""
    namespace: tuple[str, ...]
    """Owner, outermost level first: `("user", "ada")`."""
    trust: str
    """Author: user, agent or tool."""
    provenance: dict[str, Any]
    """Metadata about the source, as passed by the writer."""
    created: datetime
    """Time of writing."""
    observed: datetime
    """Time of the first statement or observation. If `valid_from` is None, `search(at=...)` takes this time
    as the start of validity."""
    renewed: datetime
    """Time of the latest statement that was merged into this record; equal to `observed` if there is none."""
    valid_from: datetime | None
    """Start of validity; None if unknown."""
    valid_to: datetime | None
    """End of validity; None for no end."""
    importance: float
    """Importance from 0 to 1; 0.5 is neutral."""
    supersedes: str | None
    """Id of the record that this one replaced; None if it replaced none."""
    sayings: int
    """Number of statements in this record: the first one and all that were merged into the record."""


@dataclass(frozen=True)
class Version:
    """Text that a record has or had."""

    text: str
    """Stored text."""
    observed: datetime
    """Time of the statement."""
    end: datetime | None
    """Time of the update that replaced the text; None for the present text."""


@dataclass(frozen=True)
class Hit(Record):
    """Search result: a record with its score."""

    score: float = field(kw_only=True)
    """Score; higher is better. Scores are comparable within one search only."""
    explanation: Explanation | None = field(default=None, kw_only=True)
    """Parts of the score; None unless the search was called with `explain`."""
    relevance: float | None = field(default=None, kw_only=True)
    """Relevance from 0 to 1, comparable between searches (`memory/bank/search/relevance.py`); None unless the
    search was called with `explain` or `min_relevance`."""
    superseded_by: str | None = field(default=None, kw_only=True)
    """Id of a newer hit that says what is true now; None if the rule of `memory/bank/search/changes.py` finds
    none. That hit stands before this one."""


class TextFeatures(NamedTuple):
    """Features that decide whether two texts are duplicates."""

    all_stems: tuple[str, ...]
    """Stems of all words, in order."""
    stems: frozenset[str]
    """Stems of the content words."""
    names: frozenset[str]
    """Stems of the names in the text, and all its numbers."""
    symbols: tuple[str, ...]
    has_negation: bool
    is_question: bool
    vector: np.ndarray | None


class Marks(NamedTuple):
    """Locality-sensitive hashes as signed 64-bit integers. Duplicates very likely share at least one."""

    by_words: list[int]
    by_vector: list[int]


class Fingerprint(NamedTuple):
    """Index data of a draft's text, for keyword search and for the search for duplicates."""

    features: TextFeatures
    digest: bytes
    """Hash of the text and its scope (namespace, kind and trust)."""
    marks: Marks
    entry: IndexEntry
    """Entry in the index of words."""
    last_compared: int = 0
    """Number of the newest record that the draft was compared with before the transaction."""
    duplicate: int | None = None
    """Number of the oldest record that the draft duplicates, among the records with numbers up to
    `last_compared`; None if there is no such record."""


class Draft(NamedTuple):
    """Record to be written; times are seconds since 1970."""

    text: str
    kind: str
    namespace: str
    trust: str
    provenance: str
    created: float
    observed: float
    valid_from: float | None
    valid_to: float | None
    importance: float
    supersedes: str | None
    merge: bool
    """Merge the draft into a record that already says the same."""
    vector: np.ndarray | None = None
    """Embedding of length 1; None before it is computed, or without an embedding model."""
    section: int | None = None
    """Number of the section in a document; None outside documents."""
    zone: tzinfo = UTC
    """Time zone of the date that the keyword index stores for the record."""
    fingerprint: Fingerprint | None = None
    """Index data; None before it is computed."""
    expires: float | None = None
    """Time at which the record is to be deleted; None for never."""


DRAFT_COLUMNS = Draft._fields[:11]
"""Fields of a draft that are columns of the table of records."""


def to_seconds(moment: Time, name: str) -> float:
    """Return a time as seconds since 1970. Raises TypeError or ValueError; the message contains `name`.

    For a datetime the result is clipped to the years 1 to 9999. Without clipping, `datetime.max` would be
    rounded up to the year 10000.
    """
    if isinstance(moment, str):
        moment = parse_time(moment, name)
    elif isinstance(moment, date) and not isinstance(moment, datetime):
        moment = datetime.combine(moment, time.min)
    if isinstance(moment, datetime):
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
        return min(max(seconds, _FIRST), LAST_TIME)
    if isinstance(moment, bool) or not isinstance(moment, int | float):
        raise TypeError(
            f"{name}={moment!r}: pass a datetime, a date, a text such as '2026-11-26', or seconds since 1970"
        )
    try:
        to_datetime(moment)
    except (OverflowError, ValueError, OSError):
        raise ValueError(
            f"{name}={moment!r}: outside the years 1 to 9999; pass seconds since 1970, not milliseconds"
        ) from None
    return float(moment)


def parse_time(text: str, name: str, is_local: bool = False) -> datetime:
    """Return the time in an ISO 8601 text. A date without a time is the start of the day.

    Args:
        text: Date, or date and time, such as "2026-11-26" or "2026-11-26T08:30+01:00".
        name: Name of the value in the error message.
        is_local: A text without a time zone is a time in the time zone of this machine; if False, in UTC.

    Raises ValueError if the text is not such a time, or outside the years 1 to 9999.
    """
    try:
        if not _ISO_TIME.fullmatch(text):
            raise ValueError
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.astimezone() if is_local else moment.replace(tzinfo=UTC)
        return moment
    except (ValueError, OverflowError):
        raise ValueError(f"{name}={text!r:.80}: write a time as 2026-11-26 or 2026-11-26T08:30") from None


def to_datetime(seconds: float) -> datetime:
    """Return seconds since 1970 as a datetime in UTC."""
    return datetime.fromtimestamp(seconds, UTC)


def time_zone(moment: Time) -> tzinfo:
    """Return the time zone of a time, UTC if the time has no time zone."""
    if isinstance(moment, str):
        moment = parse_time(moment, "clock()")
    return (moment.tzinfo if isinstance(moment, datetime) else None) or UTC


def check_namespace(namespace: Sequence[str]) -> tuple[str, ...]:
    """Return the namespace as a tuple.

    Raises TypeError if the namespace is a string or a part is not a string. Raises ValueError if a part is
    empty or contains U+001F.
    """
    if isinstance(namespace, str) or not all(isinstance(part, str) for part in namespace):
        # A string is a sequence, too: each letter would become a part.
        example = (namespace,) if namespace and isinstance(namespace, str) else ("user", "ada")
        raise TypeError(f"namespace={namespace!r}: must be a tuple of names, such as {example!r}")
    if any(not part or "\x1f" in part for part in namespace):
        raise ValueError(f"namespace={namespace!r}: every part must be non-empty and without U+001F")
    return tuple(namespace)


def check_fraction(name: str, value: float) -> None:
    """Raise TypeError or ValueError unless the value is a number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}={value!r:.80}: pass a number from 0 to 1")
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value}: must be from 0 to 1")


def check_days(name: str, days: float) -> None:
    """Raise TypeError or ValueError unless the value is a positive number of days."""
    if isinstance(days, bool) or not isinstance(days, int | float):
        raise TypeError(f"{name}={days!r:.80}: pass a number of days")
    if not 0 < days < math.inf:
        raise ValueError(f"{name}={days}: must be a positive number of days")


def check_count(name: str, count: int, minimum: int) -> int:
    """Return the count as an int.

    Raises TypeError if `count` is not an integer, and ValueError if it is below `minimum` or above
    `MAX_COUNT`.
    """
    if not isinstance(count, SupportsIndex):
        raise TypeError(f"{name}={count!r}: pass an integer")
    count = operator.index(count)
    if count < minimum:
        raise ValueError(f"{name}={count}: must be at least {minimum}")
    if count > MAX_COUNT:
        raise ValueError(f"{name}={count}: must be at most {MAX_COUNT}, the largest integer of SQLite")
    return count


def check_id(name: str, id: str) -> str:
    """Return the id. Raises TypeError if it is not a string."""
    if not isinstance(id, str):
        raise TypeError(f"{name}={id!r:.80}: pass an id that `add` returned")
    return id


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return the value. Raises ValueError if it is not among the choices."""
    if value not in choices:
        raise ValueError(f"{name}={value!r}; choose from {', '.join(choices)}")
    return value


def check_choices(
    name: str, values: Iterable[str] | str | None, choices: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return one or several values as a tuple. None, which means all choices, stays None.

    Raises ValueError if a value is not among the choices, or if there are no values.
    """
    if values is None:
        return None
    selection = tuple(
        check_choice(name, v, choices) for v in ((values,) if isinstance(values, str) else values)
    )
    if not selection:
        raise ValueError(f"{name} is empty; choose from {', '.join(choices)}, or None for all")
    return selection


def join_namespace(namespace: tuple[str, ...]) -> str:
    """Return a namespace as one string.

    Each part ends in U+001F, so that the string of an outer namespace is a prefix of the strings below it.
    """
    return "".join(f"{part}\x1f" for part in namespace)


def split_namespace(joined_namespace: str) -> tuple[str, ...]:
    """Return the namespace whose parts `join_namespace` joined."""
    return tuple(joined_namespace.split("\x1f")[:-1])


def record_fields(row: Sequence[Any] | None, foreign: bool) -> dict[str, Any]:
    """Return the fields of a `Record` from a row of `COLUMNS`. Raises UnreadableError on an invalid row.

    With `foreign`, the trust is `FOREIGN_TRUST`, whatever the row says.
    """
    if row is None:
        raise UnreadableError("an index refers to a missing record")
    fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    if foreign and isinstance(fields["text"], str) and len(fields["text"]) > MAX_TEXT_LENGTH:
        raise UnreadableError(
            f"record {fields['id']!r:.80} has {len(fields['text']):,} characters, the maximum is "
            f"{MAX_TEXT_LENGTH:,}"
        )
    fields["provenance"] = read_json(fields["provenance"])
    try:
        for name in ("id", "text", "kind", "namespace", "trust"):
            fields[name].encode()
        fields["trust"] = read_trust(fields["trust"], foreign)
        fields["namespace"] = split_namespace(fields["namespace"])
        for name in ("created", "observed", "renewed", "valid_from", "valid_to"):
            if fields[name] is not None or not name.startswith("valid"):
                fields[name] = to_datetime(fields[name])
        _ = fields["importance"] + fields["sayings"]  # both are numbers
    except (AttributeError, TypeError, ValueError, OverflowError, OSError) as error:
        raise UnreadableError(f"record {fields['id']!r}: {error}") from error
    return fields


def read_trust(trust: Any, foreign: bool) -> str:
    """Return the trust level of a stored record: `FOREIGN_TRUST` in a foreign bank, else the stored word.

    Raises UnreadableError on an unknown word. No guess is safe, since trust decides what needs approval.
    """
    if trust not in TRUSTS:
        raise UnreadableError(f"unknown trust {trust!r:.80}; a bank knows {', '.join(TRUSTS)}")
    return FOREIGN_TRUST if foreign else trust


def read_json(text: Any, kind: type = dict, label: str = "a record's provenance") -> Any:
    """Return stored JSON. Raises UnreadableError, which names the `label`, if it is not of this type."""
    try:
        value = json.loads(text)
    except (TypeError, ValueError, RecursionError) as error:
        raise UnreadableError(f"{label} is not JSON: {error}") from error
    if not isinstance(value, kind):
        name = "object" if kind is dict else kind.__name__
        raise UnreadableError(f"{label} is not a JSON {name}: {value!r:.80}")
    return value


def encode_provenance(provenance: dict[str, Any]) -> str:
    """Return provenance as JSON. Raises TypeError or ValueError if it is not JSON-serializable."""
    try:
        text = json.dumps(provenance, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"provenance={provenance!r:.200}: must be JSON-serializable: {error}") from None
    check_text("provenance", text)
    return text


def check_memorable(text: str) -> None:
    """Raise ValueError or TypeError if a text cannot be stored."""
    check_length("text", text)
    if not text.strip():
        raise ValueError(f"text={text[:80]!r}: nothing to remember; pass a text that is not blank")
    check_text("text", text)


def check_length(name: str, text: str) -> None:
    """Raise TypeError if `text` is not a string, ValueError if it is longer than `MAX_TEXT_LENGTH`."""
    if not isinstance(text, str):
        raise TypeError(f"{name}={text!r}: pass a string")
    if len(text) > MAX_TEXT_LENGTH:
        raise ValueError(
            f"{name} has {len(text):,} characters, the maximum is {MAX_TEXT_LENGTH:,}; cut it, or store "
            "it as passages with add_document"
        )


def check_text(name: str, text: str) -> None:
    """Raise ValueError if a text contains a lone surrogate, which UTF-8 cannot encode."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} contains the lone surrogate {error.object[error.start]!r}; decode the text again"
        ) from None
