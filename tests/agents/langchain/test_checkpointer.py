"""LangGraph's conformance suite, and tests of resumption, branches, deletion and crashes."""

from __future__ import annotations

import asyncio
import contextlib
import operator
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from typing import Annotated, Any, NotRequired, TypedDict, cast
from uuid import uuid4

import pytest
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import CheckpointTuple, empty_checkpoint
from langgraph.checkpoint.conformance import checkpointer_test, validate
from langgraph.checkpoint.conformance.capabilities import Capability
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

from scrubjay.agents.langchain import BankStore, Checkpointer
from scrubjay.agents.langchain.checkpoints import TABLES
from scrubjay.memory import DamagedBankError, MemoryBank

pytestmark = pytest.mark.requires("langgraph")

TESTS = {
    "put": 17,
    "put_writes": 10,
    "get_tuple": 10,
    "list": 16,
    "delete_thread": 5,
    "delete_for_runs": 7,
    "copy_thread": 8,
    "prune": 8,
}


class CountState(TypedDict):
    steps: Annotated[list, operator.add]
    constant: NotRequired[str]


def thread(name: str = "t", **more: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": name, **more}}


def build_graph(saver, nodes=3):
    """Return a graph that records its nodes in order; the second node interrupts."""
    graph = StateGraph(CountState)
    for number in range(nodes):

        def node(state, number=number):
            return {"steps": [interrupt("go on?") if number == 1 else str(number)]}

        graph.add_node(str(number), node)
        graph.add_edge(START if number == 0 else str(number - 1), str(number))
    return graph.compile(checkpointer=saver)


@pytest.fixture
def saver(tmp_path):
    with Checkpointer(tmp_path / "graph.db") as saver:
        yield saver


@pytest.mark.parametrize("capability", [c.value for c in Capability])
async def test_conformance(capability, tmp_path):
    @checkpointer_test(name="Checkpointer")
    async def files():
        with Checkpointer(tmp_path / f"{uuid4()}.db") as saver:
            yield saver

    report = (await validate(files, capabilities={capability})).results[capability]
    assert report.failures == []
    assert report.tests_passed >= TESTS[capability]


def test_a_graph_goes_on_in_another_process_where_it_asked(tmp_path):
    with Checkpointer(tmp_path / "graph.db") as saver:
        interrupted_state = build_graph(saver).invoke({"steps": [], "constant": "c"}, thread())
        assert interrupted_state["__interrupt__"][0].value == "go on?"
    with Checkpointer(tmp_path / "graph.db") as saver:
        graph = build_graph(saver)
        assert graph.get_state(thread()).next == ("1",)
        assert graph.invoke(Command(resume="yes"), thread())["steps"] == ["0", "yes", "2"]


async def test_an_async_graph_does_the_same(tmp_path):
    with Checkpointer(tmp_path / "graph.db") as saver:
        graph = build_graph(saver)
        await asyncio.gather(
            *(graph.ainvoke({"steps": [], "constant": "c"}, thread(str(n))) for n in range(8))
        )
        done = await asyncio.gather(*(graph.ainvoke(Command(resume=n), thread(str(n))) for n in range(8)))
        assert [state["steps"][1] for state in done] == list(range(8))
        past = [state async for state in graph.aget_state_history(thread("3"))]
        assert [state.next for state in past] == [(), ("2",), ("1",), ("0",), ("__start__",)]


def test_branches_of_the_past_do_not_mix(saver):
    graph = build_graph(saver)
    graph.invoke({"steps": [], "constant": "c"}, thread())
    asking = graph.get_state(thread()).config
    for word in ("left", "right", "left again"):
        branch = graph.update_state(asking, {"steps": [word]}, as_node="1")
        assert graph.invoke(None, branch)["steps"] == ["0", word, "2"]
    ends = [s.values["steps"][1] for s in graph.get_state_history(thread()) if not s.next]
    assert ends == ["left again", "right", "left"]


def test_an_unchanged_value_is_written_once(saver, tmp_path):
    marker = "0123456789abcdef" * 64
    graph = StateGraph(CountState)
    graph.add_node("only", lambda state: {"steps": ["x"]})
    graph.add_edge(START, "only")
    compiled_graph = graph.compile(checkpointer=saver)
    compiled_graph.invoke({"steps": [], "constant": marker}, thread())
    for _ in range(5):
        compiled_graph.invoke({"steps": ["y"]}, thread())
    assert compiled_graph.get_state(thread()).values["constant"] == marker
    with sqlite3.connect(tmp_path / "graph.db") as connection:
        values = connection.execute("SELECT value FROM channel_values").fetchall()
    connection.close()
    # Once as the graph's input, once as the channel.
    assert sum(marker.encode() in value for (value,) in values) == 2


def rows(path, table):
    with contextlib.closing(sqlite3.connect(path)) as connection:
        return connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]


def test_a_message_is_written_once_however_long_the_talk(saver, tmp_path):
    def answer(state):
        return {"messages": [AIMessage(f"answer {len(state['messages'])}")]}

    graph = StateGraph(MessagesState)
    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    compiled_graph = graph.compile(checkpointer=saver)
    turns = 12
    for turn in range(turns):
        compiled_graph.invoke({"messages": [HumanMessage(f"question {turn}")]}, thread())
    all_messages = compiled_graph.get_state(thread()).values["messages"]
    assert [m.text for m in all_messages[:3]] == ["question 0", "answer 1", "question 1"]
    lengths = [len(state.values.get("messages", [])) for state in compiled_graph.get_state_history(thread())]
    assert lengths[::3] == [*range(2 * turns, 0, -2)]
    assert rows(tmp_path / "graph.db", "list_items") == 2 * turns
    saver.copy_thread("t", "copy")
    saver.delete_thread("t")
    assert compiled_graph.get_state(thread("copy")).values["messages"] == all_messages
    saver.prune(["copy"])
    assert compiled_graph.get_state(thread("copy")).values["messages"] == all_messages
    assert rows(tmp_path / "graph.db", "list_items") == 2 * turns
    assert rows(tmp_path / "graph.db", "channel_values") <= 4


def test_a_message_changed_in_place_is_told_apart(saver):
    message, config = HumanMessage("first"), thread(checkpoint_ns="")
    for version in (1, 2):
        checkpoint = empty_checkpoint() | {
            "channel_values": {"m": [message]},
            "channel_versions": {"m": version},
        }
        config = saver.put(config, checkpoint, {}, {"m": version})
        message.content = "second"
    assert [t.checkpoint["channel_values"]["m"][0].text for t in saver.list(thread())] == ["second", "first"]


def test_what_is_deleted_is_in_no_file_any_more(saver, tmp_path):
    secret = "the-secret-of-the-thread"
    graph = build_graph(saver)
    graph.invoke({"steps": [secret], "constant": secret}, thread("gone"))
    graph.invoke({"steps": ["kept-word"], "constant": ""}, thread("kept"))
    saver.delete_thread("gone")
    content = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert secret.encode() not in content
    assert b"kept-word" in content
    assert graph.get_state(thread("kept")).values["steps"] == ["kept-word", "0"]


def test_deleting_a_run_leaves_values_that_others_hold(saver):
    graph = StateGraph(CountState)
    graph.add_node("only", lambda state: {"steps": ["x"]})
    graph.add_edge(START, "only")
    compiled_graph = graph.compile(checkpointer=saver)
    compiled_graph.invoke({"steps": [], "constant": "shared"}, {**thread(), "metadata": {"run_id": "first"}})
    compiled_graph.invoke({"steps": []}, {**thread(), "metadata": {"run_id": "second"}})
    saver.delete_for_runs(["first"])
    assert {t.metadata["run_id"] for t in saver.list(thread())} == {"second"}
    assert compiled_graph.get_state(thread()).values == {"steps": ["x", "x"], "constant": "shared"}


def test_pruning_keeps_what_delta_channels_are_rebuilt_from(saver, tmp_path):
    class Delta(TypedDict):
        log: Annotated[
            list,
            DeltaChannel(
                lambda state, writes: [*state, *(w for ws in writes for w in ws)], list, snapshot_frequency=4
            ),
        ]

    def count(state: Delta) -> dict[str, Any]:
        return {"log": [len(state["log"])]}

    graph = StateGraph(Delta)
    graph.add_node("only", count)
    graph.add_edge(START, "only")
    compiled_graph = graph.compile(checkpointer=saver)
    for turns in range(1, 8):
        compiled_graph.invoke({"log": ["asked"]}, thread())
        all_messages = compiled_graph.get_state(thread()).values["log"]
        assert len(all_messages) == 2 * turns
        saver.prune(["t"])
        assert compiled_graph.get_state(thread()).values["log"] == all_messages
        assert sum(1 for _ in saver.list(thread())) < 14


def test_a_copy_goes_its_own_way(saver):
    graph = build_graph(saver)
    graph.invoke({"steps": [], "constant": "c"}, thread("a"))
    saver.copy_thread("a", "b")
    assert graph.invoke(Command(resume="b"), thread("b"))["steps"] == ["0", "b", "2"]
    saver.delete_thread("b")
    assert graph.invoke(Command(resume="a"), thread("a"))["steps"] == ["0", "a", "2"]
    with pytest.raises(ValueError, match=r"target_thread_id='a' has checkpoints"):
        saver.copy_thread("a", "a")


def test_listing_everywhere_survives_equal_ids_and_a_deletion_on_the_way(saver):
    graph = build_graph(saver)
    graph.invoke({"steps": [], "constant": "c"}, thread("a"))
    saver.copy_thread("a", "b")
    assert sum(1 for _ in saver.list(None)) == 2 * sum(1 for _ in saver.list(thread("a")))
    listing = saver.list(None)
    first = next(listing).config["configurable"]["thread_id"]
    saver.delete_thread("a" if first == "b" else "b")
    assert {t.config["configurable"]["thread_id"] for t in listing} == {first}
    assert [*saver.list(thread(first), filter={"source": "input"}, limit=0)] == []


def test_errors_name_what_is_wrong(saver):
    with pytest.raises(ValueError, match="names no thread"):
        saver.get_tuple({"configurable": {}})
    with pytest.raises(ValueError, match="names no checkpoint"):
        saver.put_writes(thread(), [("a", 1)], "task")
    with pytest.raises(TypeError, match=r"limit=1\.5"):
        list(saver.list(None, limit=1.5))
    with pytest.raises(ValueError, match="strategy='some': choose from keep_latest, delete"):
        saver.prune(["t"], strategy="some")


def test_a_bank_and_its_graphs_share_a_file(tmp_path):
    path = tmp_path / "all.db"
    with MemoryBank(path) as bank, Checkpointer(path) as saver:
        bank.add("Ada lives in Bern.")
        build_graph(saver).invoke({"steps": [], "constant": "c"}, thread())
        bank.add("Ada moved to Basel.")
    with Checkpointer(path) as saver, MemoryBank(path) as bank:
        assert len(bank) == 2
        assert build_graph(saver).get_state(thread()).next == ("1",)


@pytest.mark.parametrize("opening", [Checkpointer, BankStore, MemoryBank])
@pytest.mark.parametrize("table", ["checkpoints", "writes"])
def test_a_trigger_in_an_untrusted_file_never_runs(tmp_path, opening, table):
    path = tmp_path / "graph.db"
    with Checkpointer(path) as saver:
        build_graph(saver).invoke({"steps": [], "constant": "c"}, thread())
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"CREATE TRIGGER evil AFTER INSERT ON {table} BEGIN DELETE FROM checkpoints; END")
    with pytest.raises(DamagedBankError, match="trigger 'evil' is not part of a bank"):
        opening(path)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
def test_integers_beyond_those_of_sqlite_are_names_or_refused(saver, number):
    address = thread(number, checkpoint_ns=number)
    checkpoint = empty_checkpoint() | {"channel_values": {"n": "x"}, "channel_versions": {"n": "1"}}
    config = saver.put(address, checkpoint, {"step": 0}, {"n": "1"})
    saver.put_writes(config, [("n", "y")], number, number)
    checkpoint_tuple = saver.get_tuple(thread(number, checkpoint_ns=number))
    assert checkpoint_tuple.checkpoint["channel_values"] == {"n": "x"}
    assert checkpoint_tuple.pending_writes == [(str(number), "n", "y")]
    assert saver.get_tuple(thread(number, checkpoint_id=number)) is None
    assert list(saver.list(None, before=thread(number, checkpoint_id=-(2**64)))) == []
    with pytest.raises(ValueError, match=f"limit={number}: must be at"):
        list(saver.list(None, limit=number))
    for method in (saver.delete_thread, lambda n: saver.delete_for_runs([n]), lambda n: saver.prune([n])):
        method(number)


def test_an_untrusted_file_is_checked_whole(tmp_path):
    path = tmp_path / "graph.db"
    with Checkpointer(path) as saver:
        config = saver.put(thread(checkpoint_ns=""), empty_checkpoint(), {"step": 0}, {})
    with Checkpointer(path, foreign=True) as saver:
        assert cast("CheckpointTuple", saver.get_tuple(config)).metadata == {"step": 0}
    content = bytearray(path.read_bytes())
    content[8192:12288] = bytes(4096)
    path.write_bytes(content)
    with pytest.raises(DamagedBankError):
        Checkpointer(path, foreign=True)


def test_a_file_of_a_newer_layout_is_refused(tmp_path):
    Checkpointer(tmp_path / "graph.db").close()
    with sqlite3.connect(tmp_path / "graph.db") as connection:
        connection.execute("UPDATE layouts SET version = 99")
    connection.close()
    with pytest.raises(ValueError, match=r"layout 99.*upgrade scrubjay"):
        Checkpointer(tmp_path / "graph.db")


def test_threads_lose_nothing(saver):
    def write(name):
        config = thread(name, checkpoint_ns="")
        for step in range(20):
            checkpoint = empty_checkpoint() | {"channel_values": {"n": step}, "channel_versions": {"n": step}}
            config = saver.put(config, checkpoint, {"step": step}, {"n": step})
            saver.put_writes(config, [("n", step)], f"task {step}")

    workers = [threading.Thread(target=write, args=(str(n),)) for n in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for name in "0123":
        assert [t.checkpoint["channel_values"]["n"] for t in saver.list(thread(name))] == [*range(19, -1, -1)]
        assert all(t.pending_writes[0][2] == t.metadata["step"] for t in saver.list(thread(name)))


WRITER = """
import sys
from langgraph.checkpoint.base import empty_checkpoint
from scrubjay.agents.langchain import BankStore, Checkpointer
config, step = {"configurable": {"thread_id": sys.argv[2], "checkpoint_ns": ""}}, 0
with Checkpointer(sys.argv[1]) as saver:
    while True:
        step += 1
        checkpoint = empty_checkpoint() | {"channel_values": {"n": step}, "channel_versions": {"n": step}}
        config = saver.put(config, checkpoint, {"step": step}, {"n": step})
        saver.put_writes(config, [("n", step)], "task")
        print(step, flush=True)
"""


def get_step(checkpoint_tuple: CheckpointTuple) -> int:
    """Return the step in a checkpoint's metadata, which LangGraph's type declares optional."""
    return cast("dict[str, Any]", checkpoint_tuple.metadata)["step"]


@pytest.mark.slow
def test_two_processes_are_killed_and_nothing_acknowledged_is_lost(tmp_path):
    path = str(tmp_path / "graph.db")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, path, name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    last_steps = {}
    for writer, name in zip(writers, "ab", strict=True):
        assert writer.stdout is not None
        for line in writer.stdout:
            if int(line) >= 30:
                break
        os.kill(writer.pid, signal.SIGKILL)
        last_steps[name] = int(([line, *writer.stdout])[-1])
        writer.stdout.close()
        writer.wait()
    with Checkpointer(path) as saver:
        for name, last in last_steps.items():
            steps = [get_step(t) for t in saver.list(thread(name))]
            assert steps[0] in (last, last + 1)
            assert steps == [*range(steps[0], 0, -1)]
            complete_checkpoints = [t for t in saver.list(thread(name)) if get_step(t) <= last]
            assert all(t.pending_writes == [("task", "n", get_step(t))] for t in complete_checkpoints)


COLUMNS = [(table, column) for table, names in TABLES.items() for column in names.split(", ")]


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.one_in(2)
@pytest.mark.parametrize(("table", "column"), COLUMNS)
@pytest.mark.parametrize(
    "value", [None, 7, -1.5, "x", b"x", b"\x90", '{"a": [1, 2]}', '{"a": 1}', "[" * 9999]
)
def test_a_value_of_another_form_is_an_error_of_the_file(table, column, value, tmp_path):
    path = tmp_path / "graph.db"
    with Checkpointer(path) as saver:
        build_graph(saver).invoke({"steps": [], "constant": "c"}, thread())
    # A column with NOT NULL refuses some values, as for every writer of the file.
    with contextlib.suppress(sqlite3.IntegrityError), contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
        connection.commit()
    with Checkpointer(path) as saver:
        for act in (
            lambda: saver.get_tuple(thread()),
            lambda: [*saver.list(None, filter={"source": "loop"})],
            lambda: [*saver.list(thread())],
            lambda: saver.prune(["1"]),
        ):
            with contextlib.suppress(ValueError):
                act()
