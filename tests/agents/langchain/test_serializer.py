"""Checkpoints of strangers construct nothing, and honest values come back as they were."""

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
    """Return bytes that make LangGraph's own serializer run code, or would if one more check failed."""
    command = f"touch {mark}"
    found: dict[str, tuple[str, bytes]] = {}
    for code in range(10):
        for name, content in {
            "one argument": ("subprocess", "getoutput", command),
            "arguments": ("subprocess", "getoutput", (command,)),
            "keywords": ("subprocess", "getoutput", {"cmd": command}),
            "method": ("pathlib", "Path", str(mark), "touch"),
            "open": ("builtins", "open", (str(mark), "w")),
            "import": ("antigravity", "x", ("y",)),
        }.items():
            found[f"extension {code}, {name}"] = "msgpack", extension(code, content)
    inner = ormsgpack.Ext(0, ormsgpack.packb(("subprocess", "getoutput", command)))
    message = ("langchain_core.messages.human", "HumanMessage", {"content": inner}, "model_validate_json")
    found["inside a message"] = "msgpack", extension(5, message)
    found["inside a list"] = "msgpack", ormsgpack.packb([1, {"a": inner}])
    found["as a key"] = "msgpack", ormsgpack.packb({"a": [inner]}, option=ormsgpack.OPT_NON_STR_KEYS)
    found["pickle"] = "pickle", pickle.dumps(pathlib.Path(command))
    found["json"] = "json", b'{"lc": 2, "type": "constructor", "id": ["os", "system"], "args": ["true"]}'
    return found


HARMLESS = r"extension [67]|extension [01245], method"
"""Arrays, values as they are, and paths, which are only constructed."""


def write_honest(path: pathlib.Path) -> None:
    checkpoint = empty_checkpoint()
    checkpoint["channel_values"] = {"m": "x", "messages": [HumanMessage("hello")]}
    checkpoint["channel_versions"] = {"m": "1", "messages": "1"}
    with Checkpointer(path) as saver:
        saved = saver.put(CONFIG, checkpoint, {"source": "input", "step": 0}, {"m": "1", "messages": "1"})
        saver.put_writes(saved, [("m", "y")], "task")


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
    with MemoryBank(path) as bank:  # a bank's file that also holds a thread
        bank.add("a harmless fact")
    write_honest(path)
    for name, payload in attacks(mark).items():
        connection = sqlite3.connect(path)
        with connection:
            assert connection.execute(PLACES[place], payload).rowcount > 0
        connection.close()
        with Checkpointer(path) as saver:
            if not re.match(HARMLESS, name):
                with pytest.raises(ValueError, match=r"is not admitted|only bytearray, bytes"):
                    saver.get_tuple(CONFIG)
                with pytest.raises(ValueError, match=r"is not admitted|only bytearray, bytes"):
                    list(saver.list(None))
        assert not mark.exists(), name
        assert "antigravity" not in sys.modules


def test_the_error_names_the_type_and_the_remedy():
    serializer = StrictSerializer()
    with pytest.raises(ValueError, match=r"'subprocess\.getoutput' is not .*Checkpointer\(path, allow="):
        serializer.loads_typed(("msgpack", extension(0, ("subprocess", "getoutput", "true"))))
    with pytest.raises(ValueError, match=r"'pathlib\.Path' is not admitted"):
        serializer.loads_typed(("msgpack", extension(3, ("pathlib", "Path", "x", "touch"))))
    with pytest.raises(ValueError, match=r"'\\x1b\[2J\.y' is not admitted"):  # nothing steers the terminal
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
    with pytest.raises(ValueError, match=r"is damaged|is not admitted"):
        StrictSerializer().loads_typed(("msgpack", body))


@pytest.mark.parametrize(
    ("kind", "body"), [("bytearray", 10**11), ("bytes", "text"), ("msgpack", None), (7, b"x")]
)
def test_columns_of_other_types_are_damage(kind, body):
    """SQLite keeps any type in any column: a number would become that many bytes."""
    with pytest.raises(ValueError, match="is damaged"):
        StrictSerializer().loads_typed((kind, body))


HONEST = [
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


@pytest.mark.parametrize("value", HONEST, ids=lambda value: type(value).__name__)
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
    with pytest.raises(TypeError, match=rf"({type(value).__name__}|Point)' is not admitted"):
        StrictSerializer().dumps_typed([value])
    serializer = StrictSerializer([Point, Answer, Color, Pair])
    body = serializer.dumps_typed({"deep": [value]})
    assert serializer.loads_typed(body) == {"deep": [value]}
    with pytest.raises(ValueError, match="is not admitted"):
        StrictSerializer().loads_typed(body)


class Held(TypedDict):
    point: Point


def hold(state: Held) -> Held:
    return {"point": Point(state["point"].x + 1)}


def graph(saver: Checkpointer) -> Any:
    return StateGraph(Held).add_node("hold", hold).add_edge(START, "hold").compile(checkpointer=saver)


def test_a_graph_with_a_state_of_its_own(tmp_path):
    path = tmp_path / "graph.db"
    with Checkpointer(path) as saver, pytest.raises(TypeError, match=r"Point.* is not admitted"):
        graph(saver).invoke({"point": Point(1)}, CONFIG)
    with Checkpointer(path, allow=[Point]) as saver:
        assert graph(saver).invoke({"point": Point(1)}, CONFIG)["point"] == Point(2)
    with Checkpointer(path, allow=[Point]) as saver:
        assert graph(saver).get_state(CONFIG).values["point"] == Point(2)
    with Checkpointer(path) as saver, pytest.raises(ValueError, match=r"Point.* is not admitted"):
        graph(saver).get_state(CONFIG)


def test_langgraphs_strict_mode_hands_on_the_types_of_a_graph(tmp_path):
    """It passes their names to `with_allowlist` when a graph is compiled."""
    with Checkpointer(tmp_path / "graph.db") as saver:
        derived = saver.with_allowlist({(Point.__module__, Point.__name__)})
        assert derived.serde.loads_typed(derived.serde.dumps_typed(Point(3))) == Point(3)
        with pytest.raises(TypeError, match="is not admitted"):
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
