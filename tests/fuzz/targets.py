"""Every command that takes a path, and every public loader, as functions of the path of a sample."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """Command or loader that reads a sample."""

    name: str
    samples: tuple[str, ...]
    """Patterns of the samples that it reads, as KIND/NAME."""
    act: Callable[[Path], Any]
    """Function that reads the sample at a path. A command returns its exit code."""
    errors: tuple[str, ...] = ("ValueError", "OSError")
    """Names of the error types that the documentation of a loader lists; empty for a command."""
    is_content: bool = False
    """True if the result has all content of the sample, so that silent changes can be noticed."""


def _command(words: str, *samples: str, stdin: str = "") -> Target:
    """Return the target of a command; `{}` in its words is the path of the sample."""

    def act(path: Path) -> int:
        import io
        import sys

        from scrubjay.experiments.commands.main import main

        sys.stdin = io.TextIOWrapper(io.BytesIO(stdin.encode()), "utf-8")
        return main([word.replace("{}", str(path)) for word in words.split()])

    return Target(words.replace(" {}", ""), samples, act, ())


def _digest(value: Any) -> str:
    """Return a digest of nested data with tensors."""
    import torch

    state = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, dict):
            for key in value:
                state.update(repr(key).encode("utf-8", "surrogatepass"))
                add(value[key])
        elif isinstance(value, list | tuple):
            for one in value:
                add(one)
        elif isinstance(value, torch.Tensor):
            state.update(
                value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                if value.numel()
                else b"0"
            )
        else:
            state.update(repr(value).encode("utf-8", "surrogatepass"))

    add(value)
    return state.hexdigest()


def _load_run(path: Path) -> Any:
    from scrubjay.experiments import Run

    run = Run.load(path)
    parts: list[Any] = [run.is_finished, run.step, run.metrics(), run.config.label]
    if run.is_finished:
        parts.append(run.result)
    if hasattr(run.config, "env"):
        parts.append(str(run.facts))
    return _digest(parts)


def _load_policy(path: Path) -> Any:
    from scrubjay.experiments import Run
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig
    from scrubjay.experiments.runs.supervised import SupervisedConfig

    run = Run.load(path)
    is_team, is_model = isinstance(run.config, TeamTaskConfig), isinstance(run.config, SupervisedConfig)
    part = run.model if is_model else run.team_policy if is_team else run.policy
    return _digest({**part.state_dict(), "step": run.step})


def _load_training(path: Path) -> Any:
    from scrubjay.experiments.runs.checkpoint import latest_checkpoint, load_training, load_weights

    checkpoint = latest_checkpoint(path / "checkpoints")
    if checkpoint is None:
        raise ValueError("no complete checkpoint")
    return _digest({**load_weights(checkpoint), **load_training(checkpoint)})


def _load_table(path: Path) -> Any:
    from scrubjay.experiments import Runs

    runs = Runs.load(path)
    return len(runs.to_csv()) + len(runs.to_pandas())


def _load_pretrained(name: str) -> Callable[[Path], Any]:
    def act(path: Path) -> Any:
        from scrubjay import agents, memory

        return _digest(
            getattr(agents if hasattr(agents, name) else memory, name).from_pretrained(path).state_dict()
        )

    return act


def _open_bank(path: Path) -> Any:
    from scrubjay.memory import MemoryBank

    with MemoryBank(path) as bank:
        rows = list(bank.export())
        texts = [hit.text for hit in bank.search("Ada lives acorns", k=50)]
        for record in bank.recent(5):
            bank.get(record.id)
            bank.sayings(record.id)
    return _digest([rows, sorted(texts)])


def _write_bank(path: Path) -> Any:
    from scrubjay.memory import MemoryBank

    size = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())
    with MemoryBank(path) as bank:
        first = bank.add("Jays have blue feathers.", namespace=("user", "ada"), trust="tool")
        bank.add("Jays have blue and black feathers.", supersedes=first)
        record = bank.get(first)
        assert record is not None
        assert (record.text, record.trust) == ("Jays have blue feathers.", "tool")
        bank.forget(first)
        assert bank.get(first) is None
    after = sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*") if file.is_file())
    assert after < size + 4_000_000, f"two records grow the file from {size} to {after} bytes"


def _open_history(path: Path) -> Any:
    from scrubjay.agents.langchain import BankChatMessageHistory, BankStore
    from scrubjay.memory import MemoryBank

    with MemoryBank(path) as bank:
        messages = BankChatMessageHistory(bank, "t").messages
        with BankStore(bank) as store:
            items = store.search(("users",), query="acorns", limit=5)
            store.list_namespaces()
            store.get(("users", "ada"), "food")
            store.put(("users", "ada"), "color", {"is": "blue"})
    return len(messages) + len(items)


def _open_checkpoints(path: Path) -> Any:
    from scrubjay.agents.langchain import Checkpointer

    with Checkpointer(path) as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        saver.get_tuple(config)
        count = len(list(saver.list(None, limit=50)))
        saver.copy_thread("t", "u")
        saver.prune(["u"])
        saver.delete_thread("t")
    return count


def _load_model(path: Path) -> Any:
    import torch

    from scrubjay.memory.context import load_model

    model, tokenizer = load_model(path)
    ids = tokenizer("jay acorn", return_tensors="pt").input_ids
    with torch.no_grad():
        model(ids[:, :8])


def _chat(path: Path) -> Any:
    from scrubjay.agents import LocalChatModel

    return LocalChatModel(model=str(path), max_tokens=2, temperature=0, budget=96).invoke("hi " * 9).content


def _load_conversation(path: Path) -> Any:
    from scrubjay.agents import LocalChatModel

    from .tiny_chat import make_tiny_chat

    model = LocalChatModel(model=make_tiny_chat(), max_tokens=2, temperature=0, budget=128)
    model.load_conversation(path)
    return model.invoke("Where?").content


def read_sample(path: Path) -> bytes:
    """Return the content of a sample that the fuzzer itself reads; empty if it is no file of its size."""
    with contextlib.suppress(OSError):
        if path.is_file() and path.stat().st_size <= 2**24:
            return path.read_bytes()
    return b""


def _browse(path: Path) -> Any:
    """Serve a page, or a raw response in a file *.http, on a local port, and read it as an agent does."""
    from scrubjay.agents.tools import WebConfig, make_tools

    content = read_sample(path)
    if path.suffix != ".http":
        content = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n" + content
    server = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for _ in range(8):
            peer, _ = server.accept()
            with peer:
                peer.recv(65_536)
                peer.sendall(content)

    threading.Thread(target=serve, daemon=True).start()
    config = WebConfig(allow_private=True, connect_seconds=5, read_seconds=5, total_seconds=10)
    (tool,) = make_tools(["browse"], web=config)
    url = f"http://127.0.0.1:{server.getsockname()[1]}/"
    return [len(str(tool.invoke({"url": url, **more}))) for more in ({}, {"question": "Where are acorns?"})]


def _read_config(path: Path) -> Any:
    from scrubjay.experiments.recipes.config_file import read_config

    return repr(read_config(path))


def _read_trace(path: Path) -> Any:
    from scrubjay.experiments.viz.trace import read_trace

    return len(read_trace(path).steps)


def _read_dataset(path: Path) -> Any:
    from scrubjay.experiments.answers.datasets import read_any, with_evidence

    return len(with_evidence(read_any(path)))


def _import(path: Path) -> Any:
    from scrubjay.memory import MemoryBank

    try:
        rows = [json.loads(line) for line in read_sample(path).decode().splitlines()]
    except (ValueError, RecursionError):  # no matter of `restore`
        return 0
    with MemoryBank("new.db") as bank:
        return len(bank.restore(rows))


_DATASETS = ("datasets/facts.*", "datasets/locomo.json", "datasets/history.json")
_RUNS, _POLICIES = ("runs/*",), ("runs/agent", "runs/stopped", "runs/team")
_WEB_ERRORS = ("ToolException", "UnreachableError", "RequestError")
TARGETS = (
    _command("eval {} --episodes 2 --max-steps 40", "runs/agent", "runs/stopped"),
    _command("eval {} --episodes 1", "runs/team"),
    _command("eval {}", "runs/sequence"),
    _command("play {} --out x.gif --max-steps 4", *_POLICIES),
    _command("look {} --out x.html --max-steps 4", *_POLICIES),
    _command("look {} --out x.png --max-steps 4", "runs/agent"),
    _command("plot {}", "runs/agent", "runs/stopped"),
    _command("plot {} --metric charts/SPS --out x.png", *_RUNS),
    _command("plot {} --against bytes --out x.png", "runs/sequence"),
    _command("export {} --out x.pt2", "runs/agent"),
    _command("export {} --pretrained --out folder", *_POLICIES),
    _command("resume {} --quiet", "runs/stopped", "runs/stopped", "runs/agent", "runs/team"),
    _command("results {} --csv x.csv", *_RUNS),
    _command("results {} --csv", *_RUNS),
    _command("results .", *_RUNS),
    _command(
        "train --config {}/config.json --run-dir new --quiet --total-steps 64 --eval-episodes 2", *_POLICIES
    ),
    _command("train --config {}/config.json --run-dir new --quiet --total-steps 64", "runs/sequence"),
    _command(
        "train tmaze-demo --memory gru --memory.dim 16 --init-from {} --run-dir new --quiet --total-steps 64 "
        "--env.num-envs 4 --segment-length 8 --eval-episodes 2",
        *("runs/agent", "runs/stopped"),
    ),
    _command(
        "compare --out {} --recipes tmaze-demo --memories gru --seeds 0 --jobs 1 -- --total-steps 64 "
        "--env.num-envs 4 --segment-length 8 --eval-episodes 2",
        "comparisons/compared",
    ),
    _command("results {}", "comparisons/compared"),
    _command("train --config {} --run-dir new --quiet --total-steps 64", "configs/*"),
    _command("look {} --out x.html", "traces/*"),
    _command("look {} --out x.png", "traces/*"),
    _command("memory search {} acorns --explain", "banks/facts.db", "banks/threads.db"),
    _command("memory show {} --last 9", "banks/*"),
    _command("memory export {}", "banks/*"),
    _command("memory page {} --query acorns --out x.html", "banks/facts.db"),
    _command("memory add {} acorns", "banks/facts.db", "banks/threads.db"),
    _command("memory decisions {}", "banks/facts.db"),
    _command("memory undo {} x", "banks/facts.db"),
    _command("memory import new.db {}", "exports/*"),
    _command("memory bench {} --out folder --questions 1 --arms bank files full", *_DATASETS),
    _command("kagentbench {}", "datasets/kagentbench.jsonl"),
    _command(
        "chat --model {} --max-tokens 2 --budget 96",
        "models/*",
        "ggufs/*",
        stdin="Hi\n/save folder\n/load folder\n",
    ),
    _command(
        "agent Hi? --model {} --tools none --max-tokens 2 --max-steps 1 --budget 512", "models/*", "ggufs/*"
    ),
    _command(
        "longcontext perplexity text.txt --model {} --tokens 24 --budget 16 --block 8 --out folder",
        "models/*",
    ),
    _command("inspect {} --text text.txt --tokens 24 --out x.png", "models/*"),
    _command(
        "agent Hi? --model honest --tools none --memory {} --max-tokens 2 --max-steps 1", "banks/facts.db"
    ),
    _command(
        "agent Hi? --model honest --tools weather --replay {} --max-tokens 2 --max-steps 1",
        "comparisons/replay.jsonl",
    ),
    _command(
        "agent Hi? --model honest --tools none --knowledge {} --max-tokens 2 --max-steps 1",
        "exports/document.md",
    ),
    Target("Run.load", _RUNS, _load_run),
    Target("Run.policy", _RUNS, _load_policy, is_content=True),
    Target("load_training", _RUNS, _load_training, is_content=True),
    Target("Runs.load", (*_RUNS, "comparisons/compared"), _load_table),
    Target("Policy.from_pretrained", ("weights/policy",), _load_pretrained("Policy")),
    Target("TeamPolicy.from_pretrained", ("weights/team",), _load_pretrained("TeamPolicy")),
    Target("SequenceModel.from_pretrained", ("weights/sequence",), _load_pretrained("SequenceModel")),
    Target("MemoryBank", ("banks/*",), _open_bank, is_content=True),
    Target("MemoryBank.add", ("banks/*",), _write_bank),
    Target("BankStore", ("banks/threads.db", "banks/facts.db"), _open_history),
    Target(
        "Checkpointer", ("banks/checkpoints.db", "banks/checkpoints.db", "banks/facts.db"), _open_checkpoints
    ),
    Target("load_model", ("models/*", "ggufs/*"), _load_model, ("ValueError", "ImportError")),
    Target("LocalChatModel", ("models/*", "ggufs/*"), _chat, ("ValueError", "ImportError")),
    Target("load_conversation", ("conversations/*",), _load_conversation),
    Target("browse", ("pages/*",), _browse, _WEB_ERRORS),
    Target("read_config", ("configs/*",), _read_config),
    Target("read_trace", ("traces/*",), _read_trace),
    Target("read_any", _DATASETS, _read_dataset, ("UsageError", "ValueError", "OSError")),
    Target("MemoryBank.restore", ("exports/records.jsonl",), _import, ("ValueError", "OSError", "TypeError")),
)
"""All targets. Each has a name of its own."""
