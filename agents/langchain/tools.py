"""Memory tools: a model searches, saves, updates and deletes records of one bank and namespace.

After an agent has read untrusted text, each record that the agent saves has `trust="tool"`, and the agent can
update and delete only records with this trust. A web page therefore cannot rewrite a user's statement.
KwaiAgent and BankMiddleware report to the tools whether untrusted text was read. Without such a report, the
tools assume that untrusted text was read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field

from scrubjay.agents.language.namespaces import check_template, fill_template
from scrubjay.agents.language.text import clean, is_tainted
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.record import (
    MAX_TEXT_LENGTH,
    TRUSTS,
    Hit,
    Record,
    check_choices,
    check_count,
    parse_time,
)


def memory_tools(
    bank: MemoryBank, namespace: Sequence[str], k: int = 6, trusts: Sequence[str] = TRUSTS
) -> list[BaseTool]:
    """Build the tools search_memory, save_memory, update_memory and forget_memory.

    The tools use the records of `namespace` and of all namespaces below it.

    Args:
        bank: Memory bank that the tools read and write.
        namespace: Owner of the records. A template such as `("user", "{user_id}")` is filled from the call's
            config["configurable"] and LangGraph's context.
        k: Largest number of results of a search.
        trusts: Authors whose records a search returns: user, agent, tool. Without "tool", the results of a
            search count as trusted.

    Raises:
        ValueError: If an argument is invalid.
        TypeError: If an argument is invalid.
    """
    check_count("k", k, 1)
    fields = {"bank": bank, "namespace": check_template(namespace)}
    return [
        SearchMemory(**fields, k=k, trusts=check_choices("trusts", trusts, TRUSTS) or TRUSTS),
        SaveMemory(**fields),
        UpdateMemory(**fields),
        ForgetMemory(**fields),
    ]


class _MemoryTool(BaseTool):
    bank: MemoryBank
    namespace: tuple[str, ...]
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True
    metadata: dict[str, Any] | None = {"side_effect": True, "untrusted": False}

    def _resolve_namespace(self) -> tuple[str, ...]:
        """Return the namespace of the current call; the model cannot influence it."""
        return fill_template(self.namespace)

    def _get_writable_record(self, id: str) -> Record:
        """Return the record of `id` if the current call may change it. Raises ToolException if not."""
        record = self.bank.get(id)
        namespace = self._resolve_namespace()
        if record is None or record.namespace[: len(namespace)] != namespace:
            raise ToolException(f"There is no memory {id!r}. Take an id from search_memory.")
        if is_tainted() and record.trust != "tool":
            raise ToolException(
                f"Memory {id!r} was not changed: after untrusted text was read, only memories with trust "
                f"'tool' can be changed, and this one has trust {record.trust!r}."
            )
        return record

    def _write(self, text: str, **fields: Any) -> str:
        try:
            return self.bank.add(clean(text), trust="tool" if is_tainted() else "agent", **fields)
        except ValueError as error:
            raise ToolException(str(error)) from error


class _Search(BaseModel):
    query: str = Field(description="What to look for, in words or as a question.")
    at: str = Field(
        default="",
        description="Date such as 2025-06-01, to look up what was true and known then. Leave it out for now.",
    )


class SearchMemory(_MemoryTool):
    """Tool that returns the matching records as JSON objects, one per line, best first.

    The artifact contains these objects under the key `records`.
    """

    name: str = "search_memory"
    description: str = (
        "Look up what is remembered from before. Returns records with their ids, the best first."
    )
    args_schema: Any = _Search
    metadata: dict[str, Any] | None = None
    k: int = 6
    trusts: tuple[str, ...] = TRUSTS

    def model_post_init(self, context: Any, /) -> None:
        """Declare that the tool has no side effect; its results are untrusted if `trusts` includes "tool"."""
        super().model_post_init(context)
        declarations = {"side_effect": False, "untrusted": "tool" in self.trusts}
        self.metadata = {**declarations, **(self.metadata or {})}

    def _run(self, query: str, at: str = "") -> tuple[str, dict[str, Any]]:
        try:
            moment = parse_time(at.strip(), "at") if at.strip() else None
        except ValueError as error:
            raise ToolException(str(error)) from error
        hits = self.bank.search(
            clean(query)[:MAX_TEXT_LENGTH],
            k=self.k,
            namespace=self._resolve_namespace(),
            at=moment,
            trusts=self.trusts,
        )
        records = [_to_dict(hit) for hit in hits]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        return "\n".join(lines) or "Nothing is remembered about that.", {"records": records}


class _Save(BaseModel):
    text: str = Field(description="One fact in a full sentence that can be understood by itself.")


class SaveMemory(_MemoryTool):
    """Tool that saves a fact and merges duplicates; the artifact has the record's `id`."""

    name: str = "save_memory"
    description: str = "Remember one fact for later conversations."
    args_schema: Any = _Save

    def _run(self, text: str) -> tuple[str, dict[str, Any]]:
        id = self._write(text, kind="knowledge", namespace=self._resolve_namespace())
        return f"Remembered as {id}.", {"id": id}


class _Update(BaseModel):
    id: str = Field(description="The id of the record that is no longer true.")
    text: str = Field(description="What is true now, in a full sentence.")


class UpdateMemory(_MemoryTool):
    """Tool that supersedes a record by a new record; the artifact has the `id` of the new record."""

    name: str = "update_memory"
    description: str = "Correct a remembered fact that is no longer true; the old one is kept as past."
    args_schema: Any = _Update

    def _run(self, id: str, text: str) -> tuple[str, dict[str, Any]]:
        old = self._get_writable_record(id)
        # A draft has the time of the bank's clock. Superseding a record twice would leave two valid
        # successors.
        if old.valid_to is not None and old.valid_to.timestamp() <= self.bank.draft(id).created:
            raise ToolException(f"Memory {id!r} is no longer valid. Take an id from search_memory.")
        new = self._write(
            text, kind=old.kind, namespace=old.namespace, importance=old.importance, supersedes=id
        )
        return f"Remembered as {new} instead of {id}.", {"id": new}


class _Forget(BaseModel):
    id: str = Field(description="The id of the record to delete.")


class ForgetMemory(_MemoryTool):
    """Tool that deletes a record permanently; the artifact has the record's `id`."""

    name: str = "forget_memory"
    description: str = "Delete a remembered record for good, as when the user asks for it."
    args_schema: Any = _Forget

    def _run(self, id: str) -> tuple[str, dict[str, Any]]:
        self._get_writable_record(id)
        self.bank.forget(id)
        return f"Forgot {id}.", {"id": id}


def _to_dict(hit: Hit) -> dict[str, str]:
    mark = {} if hit.superseded_by is None else {"superseded_by": hit.superseded_by}
    return {
        "id": hit.id,
        "text": hit.text,
        "kind": hit.kind,
        "trust": hit.trust,
        "observed": hit.observed.date().isoformat(),
        **mark,
    }
