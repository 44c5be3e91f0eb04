"""Cost of saving a LangGraph conversation: our checkpointer against langgraph-checkpoint-sqlite.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.checkpoints

A graph of two nodes answers a conversation of several turns. A turn has three messages and four checkpoints.
The savers alternate in one process, with one conversation each. Prints medians as a table. Options: `--help`.
"""

from __future__ import annotations

import os
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import tyro
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, MessagesState, StateGraph

from scrubjay.agents.langchain import Checkpointer

SQLITE_SAVER, SQLITE_SAVER_NORMAL, CHECKPOINTER = (
    "SqliteSaver",
    "SqliteSaver, synchronous = NORMAL",
    "Checkpointer",
)


@dataclass(frozen=True)
class CheckpointsBench:
    """Options of the benchmark."""

    turns: tuple[int, ...] = (20, 100)
    """Conversation lengths in turns."""
    words: int = 50
    """Words per answer."""
    repeats: int = 3
    """Number of conversations per saver and length."""
    reads: int = 10
    """Number of reads of the last state after each conversation."""


@dataclass(frozen=True)
class ConversationCost:
    """Measured times and file size of one conversation."""

    write: float
    """Milliseconds per turn for the writes of checkpoints and the work of LangGraph itself."""
    read: float
    """Milliseconds to read the last state."""
    size: float
    """Megabytes of the file."""


def main(bench: CheckpointsBench) -> None:
    """Measure and print the table."""
    print(
        f"medians of {bench.repeats}, 1 thread, {os.cpu_count()} CPUs; langgraph {version('langgraph')}, "
        f"langgraph-checkpoint-sqlite {version('langgraph-checkpoint-sqlite')}; Checkpointer uses "
        "synchronous = NORMAL: a power failure may lose the last commits, kill -9 loses none\n"
    )
    print("| turns | saver | ms per turn | ratio | ms to read the last state | ratio | file, MB | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for turns in bench.turns:
        costs: dict[str, list[ConversationCost]] = {
            SQLITE_SAVER: [],
            SQLITE_SAVER_NORMAL: [],
            CHECKPOINTER: [],
        }
        for repeat in range(bench.repeats):
            for name, saver_costs in costs.items():
                print(f"{turns} turns, {repeat + 1} of {bench.repeats}: {name}", file=sys.stderr)
                saver_costs.append(_measure(name, turns, bench))
        ours = costs[CHECKPOINTER]
        for name, saver_costs in costs.items():
            cells = []
            for field in ("write", "read", "size"):
                cost, own = (
                    statistics.median(getattr(c, field) for c in some) for some in (saver_costs, ours)
                )
                cells += [f"{cost:.2f}", f"{cost / own:.2f}"]
            print(f"| {turns} | {name} | {' | '.join(cells)} |", flush=True)


def _measure(name: str, turns: int, bench: CheckpointsBench) -> ConversationCost:
    config: Any = {"configurable": {"thread_id": "thread"}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.db"
        with _saver(name, path) as saver:
            builder = StateGraph(MessagesState)
            builder.add_node("think", lambda state: {"messages": [AIMessage("thought " * bench.words)]})
            builder.add_node("answer", lambda state: {"messages": [AIMessage("word " * bench.words)]})
            builder.add_edge(START, "think")
            builder.add_edge("think", "answer")
            graph = builder.compile(checkpointer=saver)
            start = time.perf_counter()
            for turn in range(turns):
                graph.invoke({"messages": [HumanMessage(f"question {turn}")]}, config)
            write_end = time.perf_counter()
            for _ in range(bench.reads):
                assert len(graph.get_state(config).values["messages"]) == 3 * turns
            read_end = time.perf_counter()
        return ConversationCost(
            (write_end - start) / turns * 1e3,
            (read_end - write_end) / bench.reads * 1e3,
            path.stat().st_size / 1e6,
        )


@contextmanager
def _saver(name: str, path: Path) -> Iterator[BaseCheckpointSaver]:
    if name == CHECKPOINTER:
        with Checkpointer(path) as saver:
            yield saver
        return
    from langgraph.checkpoint.sqlite import SqliteSaver  # pyright: ignore[reportMissingImports]

    with closing(sqlite3.connect(path, check_same_thread=False)) as connection:
        if name == SQLITE_SAVER_NORMAL:
            connection.execute("PRAGMA synchronous = NORMAL")
        yield SqliteSaver(connection)


if __name__ == "__main__":
    main(tyro.cli(CheckpointsBench))
