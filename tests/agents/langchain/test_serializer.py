"""Untrusted checkpoints construct no other types, and plain values round-trip."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import logging
import pathlib
import pickle
import re
import sqlite3
import sys
import uuid
from collections import deque
from typing import Any, NamedTuple, TypedDict

import numpy as np
import ormsgpack
import pytest
from langchain_core.agents import AgentAction
from langchain_core.documents import Document
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, RemoveMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.graph import START, StateGraph
from langgraph.store.base import Item, SearchItem
from langgraph.types import Command, Interrupt, Overwrite, Send
from pydantic import BaseModel, SecretStr

from scrubjay.agents.langchain import Checkpointer
from scrubjay.agents.langchain.serializer import StrictSerializer
from scrubjay.memory import MemoryBank

pytestmark = pytest.mark.requires("langgraph")

CONFIG: RunnableConfig = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
MOMENT = datetime.datetime(2026, 5, 4, 3, 2, 1, tzinfo=datetime.UTC)


@dataclasses.dataclass
class Point:
    x: int
    tags: set[str] = dataclasses.field(default_factory=set)


class Answer(BaseModel):
    text: str
    where: list[str] = []


class Color(enum.Enum):
    RED = "red"


class Pair(NamedTuple):
    left: int
    right: Any


def extension(code: int, content: Any) -> bytes:
    return ormsgpack.packb(ormsgpack.Ext(code, ormsgpack.packb(content)))


def attacks(mark: pathlib.Path) -> dict[str, tuple[str, bytes]]:
    """Return payloads that make LangGraph's serializer run code, or would if one more check failed."""
    command = f"touch {mark}"
    payloads: dict[str, tuple[str, bytes]] = {}
    for code in range(10):
        for name, content in {
            "one argument": ("subprocess", "getoutput", command),
            "arguments": ("subprocess", "getoutput", (command,)),
            "keywords": ("subprocess", "getoutput", {"cmd": command}),
            "method": ("pathlib", "Path", str(mark), "touch"),
            "open": ("builtins", "open", (str(mark), "w")),
            "import": ("antigravity", "x", ("y",)),
        }.items():
            payloads[f"extension {code}, {name}"] = "msgpack", extension(code, content)
    inner = ormsgpack.Ext(0, ormsgpack.packb(("subprocess", "getoutput", command)))
    message = ("langchain_core.messages.human", "HumanMessage", {"content": inner}, "model_validate_json")
    payloads["inside a message"] = "msgpack", extension(5, message)
    payloads["inside a list"] = "msgpack", ormsgpack.packb([1, {"a": inner}])
    payloads["as a key"] = "msgpack", ormsgpack.packb({"a": [inner]}, option=ormsgpack.OPT_NON_STR_KEYS)
    payloads["pickle"] = "pickle", pickle.dumps(pathlib.Path(command))
    payloads["json"] = "json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["true"]}'
    return payloads


HARMLESS = r"extension [67]|extension [01245], method"
"""Pattern of harmless payloads: arrays, plain values, and paths, which are only constructed."""


def write_plain_values(path: pathlib.Path) -> None:
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"m": "x", "messages": [HumanMessage("hello")]}
    checkpoint["channel_versions"] = {"m": "1", "messages": "1"}
    with Checkpointer(path) as saver:
        stored_config = saver.put(
            CONFIG, checkpoint, {"source": "input", "step": 0}, {"m": "1", "messages": "1"}
        )
        saver.put_writes(stored_config, [("m", "y")], "task")


PLACES = {
    "metadata": "UPDATE checkpoints SET metadata_type = ?, metadata = ?",
    "checkpoint": "UPDATE checkpoints SET type = ?, checkpoint = ?",
    "channel": "UPDATE channel_values SET type = ?, value = ?",
    "message": "UPDATE list_items SET type = ?, value = ?",
    "write": "UPDATE writes SET type = ?, value = ?",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_strangers_file_runs_nothing(place, tmp_path):
    mark, path = tmp_path / "ran", tmp_path / "strangers.db"
    with MemoryBank(path) as bank:  # the file contains a bank and a thread
        bank.add("a harmless fact")
    write_plain_values(path)
    for name, payload in attacks(mark).items():
        connection = sqlite3.connect(path)
        with connection:
            assert connection.execute(PLACES[place], payload).rowcount > 0
        connection.close()
        with Checkpointer(path) as saver:
            if not re.match(HARMLESS, name):
                with pytest.raises(ValueError, match=r"is not allowed|supported are bytearray, bytes"):
                    saver.get_tuple(CONFIG)
                with pytest.raises(ValueError, match=r"is not allowed|supported are bytearray, bytes"):
                    list(saver.list(None))
        assert not mark.exists(), name
        assert "antigravity" not in sys.modules


def test_the_error_names_the_type_and_the_remedy():
    serializer = StrictSerializer()
    with pytest.raises(ValueError, match=r"'subprocess\.getoutput' is not .*Checkpointer\(path, allow="):
        serializer.loads_typed(("msgpack", extension(0, ("subprocess", "getoutput", "true"))))
    with pytest.raises(ValueError, match=r"'pathlib\.Path' is not allowed"):
        serializer.loads_typed(("msgpack", extension(3, ("pathlib", "Path", "x", "touch"))))
    with pytest.raises(
        ValueError, match=r"'\\x1b\[2J\.y' is not allowed"
    ):  # no control characters reach the terminal
        serializer.loads_typed(("msgpack", extension(0, ("\x1b[2J", "y", "x"))))


def nested(depth: int) -> bytes:
    body = ormsgpack.packb(("builtins", "set", ()))
    for _ in range(depth):
        body = ormsgpack.packb(("builtins", "set", ormsgpack.Ext(0, body)))
    return ormsgpack.packb(ormsgpack.Ext(0, body))


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", extension(0, 3), extension(0, ()), extension(0, (["os"], {"a": 1}, 2)), nested(3000)],
    ids=["empty", "reserved", "number", "no names", "lists for names", "deep"],
)
def test_damaged_values_are_errors(body):
    with pytest.raises(ValueError, match=r"is damaged|is not allowed"):
        StrictSerializer().loads_typed(("msgpack", body))


@pytest.mark.parametrize(
    ("kind", "body"), [("bytearray", 10**11), ("bytes", "text"), ("msgpack", None), (7, b"x")]
)
def test_columns_of_other_types_are_damage(kind, body):
    """SQLite stores any type in any column; bytearray(number) would allocate that many bytes."""
    with pytest.raises(ValueError, match="is damaged"):
        StrictSerializer().loads_typed((kind, body))


PLAIN_VALUES = [
    None,
    b"bytes",
    bytearray(b"more"),
    {"a": [1, 2.5, "x", None, True], 3: "number as a key"},
    HumanMessage("hello", id="1", name="Ada"),
    AIMessage("", tool_calls=[{"name": "search", "args": {"q": "jay"}, "id": "1"}]),
    AIMessageChunk(content="part"),
    ToolMessage("found", tool_call_id="1", artifact={"raw": [1]}),
    RemoveMessage(id="1"),
    [HumanMessage("several"), AIMessage("of them")],
    Document("text", metadata={"page": 1}),
    AgentAction("search", "jay", "log"),
    Send("node", {"x": 1}),
    Command(resume="yes", goto="node"),
    Interrupt("go on?"),
    Overwrite([1]),
    Item(value={"a": 1}, key="k", namespace=("n",), created_at=MOMENT, updated_at=MOMENT),
    SearchItem(("n",), "k", {"a": 1}, MOMENT, MOMENT, 0.5),
    MOMENT,
    MOMENT.date(),
    MOMENT.timetz(),
    datetime.timedelta(days=1, seconds=2),
    uuid.UUID(int=7),
    decimal.Decimal("1.50"),
    {1, 2},
    frozenset({"a"}),
    deque([1, 2]),
    pathlib.Path("a") / "b",
    re.compile("a+", re.IGNORECASE),
    SecretStr("secret"),
]


@pytest.mark.parametrize("value", PLAIN_VALUES, ids=lambda value: type(value).__name__)
def test_honest_values_come_back(value, caplog):
    serializer = StrictSerializer()
    assert serializer.loads_typed(serializer.dumps_typed(value)) == value
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


def test_arrays_come_back():
    serializer = StrictSerializer()
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(serializer.loads_typed(serializer.dumps_typed(array)), array)


OWN = [Point(1, {"a"}), Answer(text="yes", where=["here"]), Color.RED, Pair(1, Point(2))]


@pytest.mark.parametrize("value", OWN, ids=lambda value: type(value).__name__)
def test_own_types_are_admitted_by_name_alone(value, tmp_path):
    with pytest.raises(TypeError, match=rf"({type(value).__name__}|Point)' is not allowed"):
        StrictSerializer().dumps_typed([value])
    serializer = StrictSerializer([Point, Answer, Color, Pair])
    body = serializer.dumps_typed({"deep": [value]})
    assert serializer.loads_typed(body) == {"deep": [value]}
    with pytest.raises(ValueError, match="is not allowed"):
        StrictSerializer().loads_typed(body)


class PointState(TypedDict):
    point: Point


def increment(state: PointState) -> PointState:
    return {"point": Point(state["point"].x + 1)}


def graph(saver: Checkpointer) -> Any:
    return (
        StateGraph(PointState).add_node("hold", increment).add_edge(START, "hold").compile(checkpointer=saver)
    )


def test_a_graph_with_a_state_of_its_own(tmp_path):
    path = tmp_path / "graph.db"
    with Checkpointer(path) as saver, pytest.raises(TypeError, match=r"Point.* is not allowed"):
        graph(saver).invoke({"point": Point(1)}, CONFIG)
    with Checkpointer(path, allow=[Point]) as saver:
        assert graph(saver).invoke({"point": Point(1)}, CONFIG)["point"] == Point(2)
    with Checkpointer(path, allow=[Point]) as saver:
        assert graph(saver).get_state(CONFIG).values["point"] == Point(2)
    with Checkpointer(path) as saver, pytest.raises(ValueError, match=r"Point.* is not allowed"):
        graph(saver).get_state(CONFIG)


def test_langgraphs_strict_mode_hands_on_the_types_of_a_graph(tmp_path):
    """LangGraph passes the types' names to `with_allowlist` when it compiles a graph."""
    with Checkpointer(tmp_path / "graph.db") as saver:
        extended_saver = saver.with_allowlist({(Point.__module__, Point.__name__)})
        assert extended_saver.serde.loads_typed(extended_saver.serde.dumps_typed(Point(3))) == Point(3)
        with pytest.raises(TypeError, match="is not allowed"):
            saver.serde.dumps_typed(Point(3))


def test_what_cannot_be_admitted_is_refused_at_once(tmp_path):
    class Local:
        pass

    with pytest.raises(TypeError, match="must be defined at the top level"):
        Checkpointer(tmp_path / "graph.db", allow=[Local])
    with pytest.raises(TypeError, match="expected a class"):
        Checkpointer(tmp_path / "graph.db", allow=["Point"])  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="allow= or serde="):
        Checkpointer(tmp_path / "graph.db", allow=[Point], serde=StrictSerializer())
    assert not (tmp_path / "graph.db").exists()
