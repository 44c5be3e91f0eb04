"""Memory as tools: a model looks up, keeps, corrects and deletes records of one bank and namespace.

What is kept after text from outside was read, or where nobody tells the tools (KwaiAgent and BankMiddleware
do), has `trust="tool"`; then only records of that trust can be corrected or deleted. So a web page cannot
rewrite what the user said.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from langchain_core.tools import BaseTool, ToolException
from pydantic import BaseModel, Field

from scrubjay.agents.language.namespaces import check_template, fill
from scrubjay.agents.language.text import clean
from scrubjay.agents.language.untrusted import is_tainted
from scrubjay.memory.bank.bank import MemoryBank
from scrubjay.memory.bank.file.record import (
    LONGEST_TEXT,
    TRUSTS,
    Hit,
    Record,
    check_choices,
    check_count,
)

_CHANGES = {"side_effect": True, "untrusted": False}


def memory_tools(
    bank: MemoryBank, namespace: Sequence[str], k: int = 6, trusts: Sequence[str] = TRUSTS
) -> list[BaseTool]:
    """Return tools over `namespace` and all in it: search_memory, save_memory, update_memory, forget_memory.

    `("user", "{user_id}")` is filled from the call's config["configurable"] and LangGraph's context.
    A search returns at most `k` records. Without "tool" among `trusts` it shows nothing that a tool said, and
    counts as trusted itself. Raises ValueError or TypeError on what cannot be.
    """
    check_count("k", k, 1)
    whose = {"bank": bank, "namespace": check_template(namespace)}
    return [
        SearchMemory(**whose, k=k, trusts=check_choices("trusts", trusts, TRUSTS) or TRUSTS),
        SaveMemory(**whose),
        UpdateMemory(**whose),
        ForgetMemory(**whose),
    ]


class _MemoryTool(BaseTool):
    bank: MemoryBank
    namespace: tuple[str, ...]
    response_format: Literal["content", "content_and_artifact"] = "content_and_artifact"
    handle_tool_error: Any = True

    def _whose(self) -> tuple[str, ...]:
        """Return the namespace of the call that runs now; the model has no say in it."""
        return fill(self.namespace)

    def _record(self, id: str) -> Record:
        """Return a record that this call may change. Raises ToolException if there is none."""
        record = self.bank.get(id)
        whose = self._whose()
        if record is None or record.namespace[: len(whose)] != whose:
            raise ToolException(f"There is no memory {id!r}. Take an id from search_memory.")
        if is_tainted() and record.trust != "tool":
            raise ToolException(
                f"Memory {id!r} comes from the {record.trust} and stays: text from outside has been read."
            )
        return record

    def _trust(self) -> str:
        return "tool" if is_tainted() else "agent"

    def _write(self, text: str, **fields: Any) -> str:
        try:
            return self.bank.add(clean(text), trust=self._trust(), **fields)
        except ValueError as error:
            raise ToolException(str(error)) from error


class _Search(BaseModel):
    query: str = Field(description="What to look for, in words or as a question.")


class SearchMemory(_MemoryTool):
    """Finds records: one JSON object a line, best first; the artifact has them as `records`."""

    name: str = "search_memory"
    description: str = (
        "Look up what is remembered from before. Returns records with their ids, the best first."
    )
    args_schema: Any = _Search
    k: int = 6
    trusts: tuple[str, ...] = TRUSTS

    def model_post_init(self, context: Any, /) -> None:
        """Declare that nothing is changed, and whether somebody outside may have worded what is found."""
        super().model_post_init(context)
        declared = {"side_effect": False, "untrusted": "tool" in self.trusts}
        self.metadata = {**declared, **(self.metadata or {})}

    def _run(self, query: str) -> tuple[str, dict[str, Any]]:
        hits = self.bank.search(
            clean(query)[:LONGEST_TEXT], k=self.k, namespace=self._whose(), trusts=self.trusts
        )
        records = [_shown(hit) for hit in hits]
        lines = [json.dumps(record, ensure_ascii=False) for record in records]
        return "\n".join(lines) or "Nothing is remembered about that.", {"records": records}


class _Save(BaseModel):
    text: str = Field(description="One fact in a full sentence that can be understood by itself.")


class SaveMemory(_MemoryTool):
    """Keeps a fact, once however often it is said; the artifact has its `id`."""

    name: str = "save_memory"
    description: str = "Remember one fact for later conversations."
    args_schema: Any = _Save
    metadata: dict[str, Any] | None = _CHANGES

    def _run(self, text: str) -> tuple[str, dict[str, Any]]:
        id = self._write(text, kind="knowledge", namespace=self._whose())
        return f"Remembered as {id}.", {"id": id}


class _Update(BaseModel):
    id: str = Field(description="The id of the record that is no longer true.")
    text: str = Field(description="What is true now, in a full sentence.")


class UpdateMemory(_MemoryTool):
    """Replaces a record by a new one and keeps the old one as past; the artifact has the new `id`."""

    name: str = "update_memory"
    description: str = "Correct a remembered fact that is no longer true; the old one is kept as past."
    args_schema: Any = _Update
    metadata: dict[str, Any] | None = _CHANGES

    def _run(self, id: str, text: str) -> tuple[str, dict[str, Any]]:
        old = self._record(id)
        # By the bank's clock, which a draft tells. Replaced twice, one fact would have two that are true now.
        if old.valid_to is not None and old.valid_to.timestamp() <= self.bank.draft(id).created:
            raise ToolException(f"Memory {id!r} no longer holds. Take an id from search_memory.")
        new = self._write(
            text, kind=old.kind, namespace=old.namespace, importance=old.importance, supersedes=id
        )
        return f"Remembered as {new} instead of {id}.", {"id": new}


class _Forget(BaseModel):
    id: str = Field(description="The id of the record to delete.")


class ForgetMemory(_MemoryTool):
    """Deletes a record for good; the artifact has its `id`."""

    name: str = "forget_memory"
    description: str = "Delete a remembered record for good, as when the user asks for it."
    args_schema: Any = _Forget
    metadata: dict[str, Any] | None = _CHANGES

    def _run(self, id: str) -> tuple[str, dict[str, Any]]:
        self._record(id)
        self.bank.forget(id)
        return f"Forgot {id}.", {"id": id}


def _shown(hit: Hit) -> dict[str, str]:
    return {
        "id": hit.id,
        "text": hit.text,
        "kind": hit.kind,
        "trust": hit.trust,
        "observed": hit.observed.date().isoformat(),
    }
