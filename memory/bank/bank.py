"""Memory bank: an agent's texts in one SQLite file, retrieved by keywords and embeddings.

One record type covers knowledge, conversation, task and episode. A new record supersedes an old one and ends
its validity. `update` changes the text of a record and keeps the former one in its history. Only `forget`
deletes, and it deletes physically. Writing needs no language model.

The score of a record is a sum of three parts: the similarity of its embedding to the query, a score of the
query's words that it contains, and a bonus from the scores of its neighbours. The neighbours are the previous
and the next turn of a conversation (`memory/bank/search/recall.py`). Without embeddings, scores depend on
words alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from scrubjay.memory.bank.asynchronous import in_thread, iterate_in_thread
from scrubjay.memory.bank.document import split_document
from scrubjay.memory.bank.duplicates import prepare_draft, write_drafts
from scrubjay.memory.bank.embedding_index import EmbeddingIndex, check_options
from scrubjay.memory.bank.embedding_model import Embeddings
from scrubjay.memory.bank.file.damage import UnreadableError
from scrubjay.memory.bank.file.store import Store, select
from scrubjay.memory.bank.index import forget_expired
from scrubjay.memory.bank.owner import Owner
from scrubjay.memory.bank.record import (
    COLUMNS,
    DAY,
    KINDS,
    LAST_TIME,
    TRUSTS,
    Draft,
    Hit,
    Time,
    check_choice,
    check_count,
    check_days,
    check_fraction,
    check_id,
    check_length,
    check_memorable,
    check_namespace,
    encode_provenance,
    join_namespace,
    record_fields,
    time_zone,
    to_seconds,
)
from scrubjay.memory.bank.search.candidates import Scalar
from scrubjay.memory.bank.search.changes import EXTRA_HITS, order_by_changes
from scrubjay.memory.bank.search.completeness import complete_marks, complete_words
from scrubjay.memory.bank.search.recall import rank_by_cosine, recall
from scrubjay.memory.bank.search.relevance import QuestionLevel
from scrubjay.memory.bank.search.rerank import DEPTH, Reranker, check_reranker, rerank_hits
from scrubjay.memory.bank.serialization import BATCH
from scrubjay.memory.bank.succession import Succession

if TYPE_CHECKING:
    from scrubjay.memory.bank.surprise import SurpriseConfig


class MemoryBank(Owner, Succession):
    """Memory bank in an SQLite file, or in memory (`":memory:"`); safe for threads and several processes.

    Args:
        path: SQLite file; created if it does not exist.
        embeddings: Embedding model for dense retrieval; None searches by keywords alone.
        clock: Function that returns the current time. The time zone of this time decides when a day starts.
        dense_weight: Factor of the similarity of embeddings in a score (`memory/bank/search/recall.py`).
        surprise: Options of a neural memory over the embeddings (`memory/bank/surprise.py`); None disables
            it.
        device: Torch device that holds the embeddings, such as "cuda". On a GPU, Triton scans the embeddings.
            None holds the embeddings in NumPy and does not import torch.
        foreign: The file comes from someone else, or may have been changed by someone else. Every record then
            has the trust "tool", whatever the file says, also records that this process adds. Without this
            option, the trust levels in the file count. Pass it for every bank that you did not write
            yourself: the file's author otherwise decides what counts as your word. The whole file is checked
            at opening, which takes about 3 s for a million records. `approximate` is refused.
        approximate: Search an approximate nearest-neighbour index in files beside the bank, and hold no
            embeddings in memory. A search may miss some records. This option needs the extra `ann`
            (`memory/bank/search/approximate.py`).

    Raises:
        DamagedBankError: if the file is damaged or not a memory bank. Every method can raise this subclass of
            ValueError.
        OSError: if the file's folder does not exist, or the path is a folder.
        ValueError: if the path is empty, the file was written by a newer Scrubjay, the device is unavailable,
            or the options exclude each other. The first search or write raises ValueError if the file was
            written with another embedding model (`memory/bank/embedding_model.py`).
    """

    def __init__(
        self,
        path: str | Path,
        embeddings: Embeddings | None = None,
        clock: Callable[[], Time] = lambda: datetime.now(UTC),
        dense_weight: float = 1.0,
        surprise: SurpriseConfig | None = None,
        device: str | None = None,
        approximate: bool = False,
        foreign: bool = False,
    ) -> None:
        if not dense_weight >= 0:
            raise ValueError(f"dense_weight={dense_weight}: must not be negative")
        torch_device = check_options(path, embeddings, surprise, device, approximate, foreign)
        self._clock, self._dense_weight = clock, dense_weight
        self._store = Store(path, foreign)
        self._has_complete_words = self._has_complete_marks = False  # until verified
        self._embedding_index: EmbeddingIndex | None = None
        if embeddings is not None:
            self._embedding_index = EmbeddingIndex(
                self._store, embeddings, surprise, torch_device, approximate
            )

    def add(
        self,
        text: str,
        kind: str = "conversation",
        namespace: Sequence[str] = (),
        importance: float | None = None,
        observed: Time | None = None,
        valid_from: Time | None = None,
        valid_to: Time | None = None,
        trust: str = "user",
        supersedes: str | None = None,
        merge: bool = True,
        ttl: float | None = None,
        **provenance: Any,
    ) -> str:
        """Store a text and return the id of its record. A crash of the process does not lose the record.

        Args:
            text: Text to store, up to `MAX_TEXT_LENGTH` (2**20) characters.
            kind: "knowledge", "conversation", "task" or "episode".
            namespace: Owner of the record, outermost level first.
            importance: Number from 0 to 1; 0.5 by default.
            observed: Time of the statement or observation, such as a datetime or "2025-06-01"; by default
                now.
            valid_from: Start of validity; None if unknown. `search(at=...)` then uses `observed`.
            valid_to: End of validity; None for no end.
            trust: Author of the text: "user", "agent" or "tool".
            supersedes: Id of the record that the new record replaces. The validity of the old record ends
                when the validity of the new record starts.
            merge: If an existing record already says the same, merge the text into that record and return its
                id. The record must have the same namespace, kind, trust and validity. False stores every text
                as a separate record, for example to log a conversation.
            ttl: Time to live in days, from now. Searches then no longer find the record, and the next write
                or `expire` deletes it. Such a record is not merged.
            provenance: JSON-serializable metadata.

        Raises:
            ValueError, TypeError: if a value cannot be stored.
        """
        draft = self.draft(
            text,
            kind,
            namespace,
            importance,
            observed,
            valid_from,
            valid_to,
            trust,
            supersedes,
            merge,
            ttl,
            **provenance,
        )
        return self.write(self.embed_drafts([draft]))[0]

    def draft(
        self,
        text: str,
        kind: str = "conversation",
        namespace: Sequence[str] = (),
        importance: float | None = None,
        observed: Time | None = None,
        valid_from: Time | None = None,
        valid_to: Time | None = None,
        trust: str = "user",
        supersedes: str | None = None,
        merge: bool = True,
        ttl: float | None = None,
        **provenance: Any,
    ) -> Draft:
        """Return the validated draft that `add` would write; arguments and errors are those of `add`."""
        moment = self._clock()
        check_memorable(text)
        if isinstance(fields := provenance.get("provenance"), dict):
            example = next(iter(fields), "source")
            raise TypeError(f"provenance={fields!r:.80}: pass each field as a keyword, such as {example}=...")
        if importance is not None and not (isinstance(importance, int | float) and 0 <= importance <= 1):
            raise ValueError(f"importance={importance!r}: must be a number from 0 to 1")
        now = to_seconds(moment, "clock()")
        start = None if valid_from is None else to_seconds(valid_from, "valid_from")
        end = None if valid_to is None else to_seconds(valid_to, "valid_to")
        expires = None
        if ttl is not None:
            check_days("ttl", ttl)
            expires = min(now + DAY * ttl, LAST_TIME)
            end = expires if end is None else min(end, expires)
        if start is not None and end is not None and start >= end:
            raise ValueError(
                f"valid_from={valid_from}, valid_to={valid_to}: valid_to must be after valid_from"
            )
        return Draft(
            text=text,
            kind=check_choice("kind", kind, KINDS),
            namespace=join_namespace(check_namespace(namespace)),
            trust=check_choice("trust", trust, TRUSTS),
            provenance=encode_provenance(provenance),
            created=now,
            observed=now if observed is None else to_seconds(observed, "observed"),
            valid_from=start,
            valid_to=end,
            importance=0.5 if importance is None else float(importance),
            supersedes=None if supersedes is None else check_id("supersedes", supersedes),
            merge=merge and supersedes is None and ttl is None,
            zone=time_zone(moment),
            expires=expires,
        )

    def embed_drafts(self, drafts: list[Draft]) -> list[Draft]:
        """Compute the embeddings, surprise-based importance and index data of drafts; return the drafts.

        This is the slow part of a write. Call it before the transaction, so that other writers do not wait.
        """
        if not self._has_complete_marks:
            complete_marks(self._store)
            self._has_complete_marks = True
        if self._embedding_index is not None:
            drafts = self._embedding_index.embed_drafts(drafts)
        return [prepare_draft(self._store, draft) for draft in drafts]

    def write(self, drafts: list[Draft]) -> list[str]:
        """Write drafts from `embed_drafts` in one transaction. Return one record id per draft.

        A draft that was merged into an existing record gets the id of that record.
        """
        if not drafts:
            return []
        with self._store.writing() as connection:
            if self._embedding_index is not None and drafts[0].vector is not None:
                self._embedding_index.note_dimension(connection, drafts[0].vector)
            ids = write_drafts(connection, drafts, self.foreign)
            deletions = forget_expired(connection, drafts[0].created, BATCH, self._store.path)
        if deletions:
            self._store.erase_traces()
        return ids

    def add_document(
        self,
        text: str,
        kind: str = "knowledge",
        namespace: Sequence[str] = (),
        passage_length: int = 600,
        importance: float | None = None,
        observed: Time | None = None,
        trust: str = "tool",
        **provenance: Any,
    ) -> list[str]:
        """Store a document as passages and return their ids; the passages of a section form one chunk.

        A passage is an exact excerpt, with its lines and their indentation. Sections start at Markdown
        headings. The provenance field `section` of a passage holds the heading. `split_document` describes
        the excerpts. Either all passages are written or none.

        Args:
            text: Text of the document.
            kind: "knowledge", "conversation", "task" or "episode".
            namespace: Owner of the records, outermost level first.
            passage_length: Maximum characters of a passage.
            importance: Number from 0 to 1; 0.5 by default.
            observed: Time of reading; now by default.
            trust: Author of the text: "user" for a text that the user wrote or checked, "agent", or "tool".
            provenance: JSON-serializable metadata.

        Raises:
            ValueError, TypeError: if the text is blank, or if a value cannot be stored.
        """
        if not isinstance(text, str):
            raise TypeError(f"text={text!r}: pass a string")
        drafts = []
        for number, (heading, passages) in enumerate(split_document(text, passage_length)):
            for passage in passages:
                draft = self.draft(
                    passage, kind, namespace, importance, observed, trust=trust,
                    **{**provenance, "section": heading},
                )  # fmt: skip
                drafts.append(draft._replace(section=number))
        if not drafts:
            raise ValueError("text is blank or has only headings; pass a document with text")
        return self.write(self.embed_drafts(drafts))

    def search(
        self,
        query: str,
        k: int = 10,
        kinds: Iterable[str] | str | None = None,
        namespace: Sequence[str] | None = None,
        at: Time | None = None,
        explain: bool = False,
        trusts: Iterable[str] | str | None = None,
        by: str | None = None,
        where: Mapping[str, Scalar] | None = None,
        since: Time | None = None,
        until: Time | None = None,
        changes: bool = True,
        rerank: Reranker | None = None,
        min_relevance: float | None = None,
        half_life: float | None = None,
    ) -> list[Hit]:
        """Return up to `k` records that are valid now or at the time `at`, best first.

        A record is valid from `valid_from` to `valid_to`. If `valid_from` is unknown, a search with `at` uses
        `observed` instead, and a search without `at` uses no start.

        Args:
            query: Words or a question. A day, month or year in the query matches records that were observed
                on that date, in the time zone of `clock`.
            k: Maximum number of records.
            kinds: Kinds of record to search; None searches all kinds.
            namespace: Namespace to search, with all namespaces below it: `("user",)` includes
                `("user", "ada")`. None searches all namespaces.
            at: Time at which records must be valid, such as a datetime or "2025-06-01"; now by default.
            explain: Set the field `explanation` of each hit.
            trusts: Authors to search; `("user", "agent")` excludes texts of tools. None searches all authors.
            by: "meaning" ranks by cosine similarity alone, "words" by keywords alone; None combines both.
            where: Fields of the provenance with their values, such as `{"source": "manual.md"}`.
            since: Earliest time of observation.
            until: Time before which a record was observed.
            changes: Put a hit behind a newer one that supersedes it, and set its field `superseded_by`. The
                rule needs no model and writes nothing (`memory/bank/search/changes.py`).
            rerank: Function of the query and texts that returns better scores, or a cross-encoder. It reads
                the best 50 hits, or the best `k` (`memory/bank/search/rerank.py`).
            min_relevance: Least relevance of a hit, from 0 to 1, such as 0.03
                (`memory/bank/search/relevance.py`). With embeddings, the search takes longer.
            half_life: Days in which the score of a record halves, counted from its last statement. By default
                recency only breaks ties.

        Raises:
            ValueError, TypeError: if k < 1, if a kind, trust or `by` is unknown, if `at` is not a time, if
                `by` is "meaning" without embeddings, or if the query is longer than `MAX_TEXT_LENGTH` (2**20)
                characters.
        """
        k = check_count("k", k, 1)
        check_length("query", query)
        if by is not None:
            check_choice("by", by, ("meaning", "words"))
        if rerank is not None:
            check_reranker(rerank)
        if min_relevance is not None:
            check_fraction("min_relevance", min_relevance)
        if half_life is not None:
            check_days("half_life", half_life)
            if by == "meaning":
                raise ValueError("half_life with by='meaning', which ranks by cosine alone; omit one of them")
        has_relevance = explain or min_relevance is not None
        embedding_index = self._embedding_index if query.strip() and by != "words" else None
        if by == "meaning" and self._embedding_index is None:
            raise ValueError("by='meaning': the bank has no embeddings; open it with an embedding model")
        moment = self._clock()
        now = to_seconds(moment, "clock()")
        complete_words(self._store, time_zone(moment), self._has_complete_words)
        self._has_complete_words = True
        filter = self._filter(namespace, kinds, trusts, where, since, until)
        filter = dataclasses.replace(
            filter, at=now if at is None else to_seconds(at, "at"), needs_observation=at is not None
        )
        vector, questions, dense_weight = None, None, 0.0
        if embedding_index is not None:
            # A search by meaning alone does not need the model's fluency in the script.
            dense_weight = 0.0 if by else self._dense_weight * embedding_index.fluency(query)
            vector = embedding_index.embed_query(query, alone=by is not None)
            questions = embedding_index.embed_questions(query) if has_relevance else None
        depth = k if rerank is None else max(k, DEPTH)
        extra = EXTRA_HITS if changes and rerank is None else 0
        with self._store.reading() as connection:
            scan, level = None, QuestionLevel(0.0, 1.0) if has_relevance else None
            if embedding_index is not None and vector is not None:
                scan = embedding_index.scan(connection, vector, filter.allows)
                if questions is not None:
                    level = embedding_index.question_level(questions, filter, scan.count)
            if by == "meaning":
                ranking = (
                    [] if scan is None else rank_by_cosine(connection, scan, filter, depth + extra, level)
                )
            else:
                seconds = None if half_life is None else half_life * DAY
                ranking = recall(
                    connection, query, scan, dense_weight, filter, now, depth, explain, extra, level, seconds
                )
            rows = select(connection, f"number, {COLUMNS}", [number for number, *_ in ranking])
            fields = self._hit_fields(rows, {number for number, *_ in ranking[:depth]})
        hits = [
            Hit(
                **fields[number],
                score=score,
                explanation=explanation if explain else None,
                relevance=relevance,
            )
            for number, score, explanation, relevance in ranking
            if number in fields and (relevance is None or relevance >= (min_relevance or 0.0))
        ]
        if rerank is not None:
            hits = rerank_hits(rerank, query, hits)
        return order_by_changes(hits, None if at is None else filter.at)[:k] if changes else hits[:k]

    def _hit_fields(self, rows: Iterable[tuple[Any, ...]], best: set[int]) -> dict[int, dict[str, Any]]:
        """Return the fields of records by number. An unreadable record outside `best` is left out."""
        fields: dict[int, dict[str, Any]] = {}
        for number, *row in rows:
            with contextlib.nullcontext() if number in best else contextlib.suppress(UnreadableError):
                fields[number] = record_fields(row, self.foreign)
        return fields

    def build_index(self) -> Iterator[tuple[int, int]]:
        """Build the missing parts of the index of embeddings.

        Yield a pair after each part: the last indexed record number and the highest record number. Finished
        parts remain if the iteration stops early. A search builds missing parts, too. For a million records
        this takes minutes with `approximate`, and 15 seconds without. An exact index lacks parts only in a
        file that an older version wrote, and after deletions.
        """
        if self._embedding_index is not None:
            yield from self._embedding_index.build_index()

    aadd = in_thread(add)
    aadd_document = in_thread(add_document)
    adraft = in_thread(draft)
    aembed_drafts = in_thread(embed_drafts)
    awrite = in_thread(write)
    asearch = in_thread(search)
    abuild_index = iterate_in_thread(1)(build_index)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
