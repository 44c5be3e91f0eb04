"""Made the files in `d9e860e/`, at commit d9e860e, on CPU and one thread:

    cd tests/compatibility
    OMP_NUM_THREADS=1 MPLBACKEND=Agg PYTHONPATH=../../src python make_fixtures.py d9e860e

Run on other code it would make that code's files, which are no proof of anything: keep those that are there.
Ids of records and of a graph's checkpoints are drawn at random, so no two times give the same bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import sys
import warnings
import zipfile
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import material
import torch
from collect import Letters
from safetensors.torch import save_file

from scrubjay.experiments import Run, resume
from scrubjay.experiments.cli import main as scrubjay

STOPPED = {"agent": 96, "team": 60, "probe": 500, "sequence": 250}
"""Steps after which each run was told to stop, by a signal as Ctrl-C is one."""


def write_json(path: Path, value: Any) -> None:
    """Write for readers of differences."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def make_run(name: str, out: Path) -> None:
    """Write a run that was stopped, and beside it what came of it when it went on."""
    run = Run.create(material.config(name), out / name)

    def stop(step: int, row: dict[str, float]) -> None:
        if step >= STOPPED[name]:
            os.kill(os.getpid(), signal.SIGTERM)

    with contextlib.suppress(KeyboardInterrupt):
        run.config.run(run.path, on_update=stop)
    assert not run.finished
    for needless in (*run.path.glob("events.*"), run.path / "curve.png", run.path / ".lock"):
        needless.unlink(missing_ok=True)
    if name == "agent":
        space = run.policy.observation_space
        space.seed(0)
        seen = torch.stack([torch.as_tensor(space.sample()) for _ in range(24)]).unflatten(0, (12, 2))
        acted = {"observations": seen, **material.play_agent(run.policy, seen)}
        save_file(acted, out / "agent.acted.safetensors")
    if name == "team":
        save_file(material.play_team(run.team_policy), out / "team.acted.safetensors")
    shutil.copytree(run.path, out / "going_on")
    done = resume(out / "going_on")
    rows = [material.untimed(row) for row in done.metrics()]
    write_json(out / f"{name}.expected.json", {"result": material.untimed(done.result), "rows": rows})
    shutil.rmtree(out / "going_on")


def make_exports(out: Path) -> None:
    """Write the agent's policy as other programs read it, what it says, and a sequence model."""
    from scrubjay.memory import SequenceConfig, make_config

    run = out / "agent"
    for flags in ([], ["--onnx"]):
        name = f"policy.{'onnx' if flags else 'pt2'}"
        assert scrubjay(["export", str(run), "--out", str(out / name), *flags]) == 0
    forget_places(out / "policy.pt2")
    policy = Run.load(run).policy
    asked = {"start": torch.tensor([True, False, False])}
    policy.observation_space.seed(1)
    seen = [torch.as_tensor(policy.observation_space.sample()) for _ in range(3)]
    asked["observation"] = torch.stack(seen)
    state = policy.initial_state(3)
    for _ in range(6):  # until chunks are full
        state = policy.step(asked["observation"], state, deterministic=True).state
    step = policy.step(asked["observation"], state, asked["start"], deterministic=True)
    answered = {"action": step.action, "value": step.value}
    asked |= {f"state.{name}": value for name, value in state.items()}
    answered |= {f"after.{name}": value for name, value in step.state.items()}
    save_file(
        {name: value.contiguous() for name, value in (asked | answered).items()},
        out / "policy.said.safetensors",
    )

    torch.manual_seed(0)
    memory = make_config("hcam", dim=8, chunk_size=4, num_chunks=4, top_k=2)
    model = SequenceConfig(vocab_size=16, memory=memory, num_blocks=1).build().eval()
    model.save_pretrained(out / "model")
    tokens = torch.arange(40).reshape(2, 20) * 7 % 16
    with torch.no_grad():
        logits, _ = model(tokens, model.initial_state(2))
    new, _ = model.generate(tokens, 8, temperature=0)
    save_file({"tokens": tokens, "logits": logits, "new": new}, out / "model.said.safetensors")


def forget_places(file: Path) -> None:
    """Take the stack traces, which name folders of the machine that exported, out of an exported program."""
    with zipfile.ZipFile(file) as old:
        parts = {name: old.read(name) for name in old.namelist()}
    (name,) = (name for name in parts if name.endswith("models/model.json"))
    # A graph may hold graphs.
    program = json.loads(
        parts[name],
        object_hook=lambda value: {key: item for key, item in value.items() if key != "stack_trace"},
    )
    parts[name] = json.dumps(program, separators=(",", ":")).encode()
    with zipfile.ZipFile(file, "w") as new:
        for name, part in parts.items():
            new.writestr(zipfile.ZipInfo(name), part)


def make_caches(out: Path) -> None:
    """Write a tiny language model's caches under every policy, and how it went on."""
    from scrubjay.memory import context

    out.mkdir()
    model = material.llama()
    save_file(
        {name: value.contiguous() for name, value in model.state_dict().items()}, out / "llama.safetensors"
    )
    logits = {}
    for name, fields in material.POLICIES.items():
        policy = context.make(name, **fields)
        cache = context.PolicyCache(policy, model)
        with torch.no_grad():
            model(material.PROMPT, cache=cache)
        cache.save(out / f"{name}.safetensors")
        logits[name] = material.go_on(model, cache, material.REST)
    save_file(logits, out / "expected.safetensors")


FACTS = [
    ("Vera lives in Lisbon.", {"kind": "knowledge", "namespace": ("user", "vera")}),
    ("Vera likes green tea in the morning.", {"namespace": ("user", "vera"), "importance": 0.9}),
    ("Ada likes black tea, and never coffee.", {"namespace": ("user", "ada")}),
    ("Ada was born in London in 1815.", {"kind": "knowledge", "namespace": ("user", "ada")}),
    ("The analytical engine has a mill and a store.", {"kind": "knowledge", "source": "sketch"}),
    ("The engine costs 17,000 pounds.", {"kind": "knowledge", "trust": "tool", "url": "https://example.com"}),
    ("Order brass wheels for the engine.", {"kind": "task"}),
    ("Call Charles about the meeting on Friday.", {"kind": "task"}),
    ("The meeting about the engine ended without a decision.", {"kind": "episode"}),
    ("薇拉住在里斯本。", {"kind": "knowledge", "namespace": ("user", "vera")}),
    ("薇拉早上喜欢喝绿茶。", {"namespace": ("user", "vera")}),
    ("会议定在星期五下午三点。", {"kind": "task"}),
    ("分析机由黄铜齿轮组成。", {"kind": "knowledge"}),
    (
        "On 1 January 2026 the bridge was opened.",
        {"kind": "episode", "observed": datetime(2026, 1, 1, tzinfo=UTC)},
    ),
    ("Snow fell in Porto.", {"kind": "episode", "observed": datetime(2026, 1, 20, tzinfo=UTC)}),
    ("The café keeps its naïve façade.", {"kind": "knowledge"}),
    ("The museum is closed in winter.", {"valid_to": datetime(2026, 3, 1, tzinfo=UTC)}),
    ("The museum is open in spring.", {"valid_from": datetime(2026, 3, 20, tzinfo=UTC)}),
    ("Rooks and jays cache acorns in autumn.", {"kind": "knowledge", "trust": "agent"}),
    ("Scrubjays remember what they cached, where and when.", {"kind": "knowledge", "trust": "agent"}),
]


def make_bank(out: Path) -> None:
    """Write a bank of dozens of records, what it finds and what it exports."""
    from scrubjay.memory import MemoryBank

    file, clock = out / "bank.db", material.Clock(datetime(2025, 12, 1, tzinfo=UTC))
    ids = {}
    with MemoryBank(file, Letters(), clock=clock) as bank:
        for text, fields in FACTS:
            ids[text] = bank.add(text, **fields)
            clock.pass_by(hours=1)
        for count in range(12):
            bank.add(
                f"Reading {count}: the store of the engine holds {count * 7} numbers.",
                "episode",
                ("log",),
                merge=False,
            )
            clock.pass_by(minutes=5)
        bank.add("vera lives in lisbon", "knowledge", ("user", "vera"), said_in="chat")  # the same again
        clock.now = datetime(2026, 2, 1, tzinfo=UTC)
        bank.add(
            "Vera lives in Oslo.", "knowledge", ("user", "vera"), supersedes=ids["Vera lives in Lisbon."]
        )
        bank.add("薇拉住在奥斯陆。", "knowledge", ("user", "vera"), supersedes=ids["薇拉住在里斯本。"])
        bank.add_document(
            "# Tea\n\nGreen tea is steeped for two minutes.\n\n# Coffee\n\nCoffee is ground and brewed.\n",
            namespace=("books",),
            title="Drinks",
        )
        gone = bank.add("The password is swordfish.", namespace=("user", "ada"))
        bank.forget(gone)
        clock.now = material.NOW
        found = {
            name: [[hit.id, hit.score] for hit in bank.search(query, **options)]
            for name, (query, options) in material.SEARCHES.items()
        }
        rows = list(bank.export())
    with MemoryBank(file, clock=clock) as bank:
        words = {
            name: [[hit.id, hit.score] for hit in bank.search(query, **options)]
            for name, (query, options) in material.SEARCHES.items()
        }
    write_json(out / "bank.expected.json", {"forgotten": gone, "found": found, "found by words": words})
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    (out / "bank.jsonl").write_text("".join(lines), "utf-8")
    close_log(file)


def make_graph(out: Path) -> None:
    """Write a file that holds a bank, a store's items, a history's messages and a graph that waits."""
    from langchain_core.messages import AIMessage, HumanMessage, ToolMessage

    from scrubjay.agents.langchain import BankChatMessageHistory, BankStore, Checkpointer
    from scrubjay.memory import MemoryBank

    file, clock = out / "graph.db", material.Clock()
    with MemoryBank(file, Letters(), clock=clock) as bank:
        store = BankStore(bank, clock=lambda: clock.now.timestamp())
        store.put(("users", "ada"), "likes", {"text": "Ada likes black tea", "strength": 3})
        store.put(("users", "ada"), "hidden", {"text": "not to be found"}, index=False)
        store.put(("users", "维拉"), "喜欢", {"text": "薇拉喜欢绿茶"})
        store.put(("users", "ada"), "soon gone", {"text": "Ada is tired"}, ttl=60)
        history = BankChatMessageHistory(bank, "ada", ("users",))
        call = {"name": "clock", "args": {"zone": "UTC"}, "id": "call-1", "type": "tool_call"}
        history.add_messages(
            [
                HumanMessage("What time is it?", id="h1"),
                AIMessage("", tool_calls=[call], id="a1"),
                ToolMessage("noon", tool_call_id="call-1", id="t1"),
                AIMessage("It is noon.", id="a2"),
            ]
        )
    with Checkpointer(file) as saver:
        material.graph(saver).invoke({"messages": [HumanMessage("Ready?", id="question")]}, material.THREAD)
    close_log(file)


def close_log(file: Path) -> None:
    """Leave one file: no write-ahead log, no free pages."""
    with contextlib.closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 1024")  # small tables, small file
        connection.execute("VACUUM")


def main() -> None:
    """Make them all in a new folder."""
    (target,) = sys.argv[1:]
    out = Path(target)
    out.mkdir(parents=True)
    warnings.simplefilter("ignore")
    for name in material.RUNS:
        make_run(name, out)
    make_exports(out)
    make_caches(out / "caches")
    make_bank(out)
    make_graph(out)


if __name__ == "__main__":
    main()
