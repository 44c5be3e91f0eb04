"""Honest samples of each kind, made once: what a stranger could send before somebody tampers with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..experiments.conftest import make_tiny
from .tiny_chat import make_tiny_chat

SMALL = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
TEXT = "The jay hid an acorn by the wall, and went back for it in winter. Nobody else knew the place.\n"
PAGE = (
    "<!DOCTYPE html><html><head><title>Jays</title><meta charset='utf-8'></head><body><nav>"
    f"<a href='/'>Home</a></nav><article><h1>Jays</h1>{'<p>' + TEXT * 3 + '</p>'}"
    f"<ul><li>acorns</li><li>beetles</li></ul>"
    f"<table><tr><th>year</th><td>1</td></tr></table>{('<p>' + TEXT + '</p>') * 3}</article></body></html>\n"
)


def _make_runs(folder: Path) -> None:
    from scrubjay.experiments import train
    from scrubjay.experiments.recipes.overrides import override

    finished_run = train(make_tiny(eval_episodes=2), folder / "agent")
    stopped_run = shutil.copytree(finished_run.path, folder / "stopped")
    (stopped_run / "result.json").unlink()
    config = json.loads((stopped_run / "config.json").read_text())
    config["total_steps"] *= 2
    (stopped_run / "config.json").write_text(json.dumps(config, indent=1))
    train(override("uav-small", SMALL.split()), folder / "team")
    sizes = "--total-steps 64 --batch-rows 2 --parameters 80000 --eval-rows 2"
    train(override("mqar", sizes.split()), folder / "sequence")
    for path in folder.rglob("*tfevents*"):
        path.unlink()


def _make_weights(folder: Path) -> None:
    from scrubjay.experiments import Run, train
    from scrubjay.experiments.recipes.overrides import override
    from scrubjay.memory import make_config
    from scrubjay.memory.sequence import SequenceConfig

    scratch = folder / "scratch"
    train(make_tiny("hcam", total_steps=32, eval_episodes=0), scratch / "agent").policy.save_pretrained(
        folder / "policy"
    )
    train(override("uav-small", SMALL.split()), scratch / "team")
    Run.load(scratch / "team").team_policy.save_pretrained(folder / "team")
    SequenceConfig(vocab_size=32, memory=make_config("gru", dim=16), num_blocks=1).build().save_pretrained(
        folder / "sequence"
    )
    shutil.rmtree(scratch)


def _make_banks(folder: Path) -> None:
    from langchain_core.messages import AIMessage, HumanMessage
    from langgraph.checkpoint.base import empty_checkpoint

    from scrubjay.agents.langchain import BankChatMessageHistory, BankStore, Checkpointer
    from scrubjay.memory import MemoryBank

    with MemoryBank(folder / "facts.db") as bank:
        first = bank.add("Ada Lovelace lives in London.", namespace=("user", "ada"), trust="user")
        bank.add("Ada Lovelace lives in Bath.", namespace=("user", "ada"), supersedes=first, trust="user")
        for number in range(12):
            bank.add(
                f"Jay number {number} hid {number * 7} acorns.", "conversation", trust="agent", turn=number
            )
        bank.add_document(TEXT * 20, source="jays.txt")
    with MemoryBank(folder / "threads.db") as bank:
        history = BankChatMessageHistory(bank, "t")
        history.add_messages([HumanMessage("Where is the acorn?"), AIMessage("By the wall.")])
        store = BankStore(bank)
        store.put(("users", "ada"), "food", {"likes": ["acorns", {"raw": True}], "count": 3})
    with Checkpointer(folder / "checkpoints.db") as saver:
        config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
        for number in range(3):
            checkpoint: Any = empty_checkpoint()
            values = {"messages": [HumanMessage(f"Question {number}"), AIMessage("Answer")], "count": number}
            versions: Any = {name: saver.get_next_version(None, None) for name in values}
            checkpoint |= {"channel_values": values, "channel_versions": versions}
            config = saver.put(config, checkpoint, {"source": "loop", "step": number}, versions)
            saver.put_writes(config, [("messages", AIMessage("More"))], "task")


def _make_models(folder: Path) -> None:
    for part in make_tiny_chat():
        part.save_pretrained(folder / "model")


def _make_ggufs(folder: Path) -> None:
    import gguf
    import numpy as np

    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_block_count(1)
    writer.add_context_length(2048)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(8)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * 259 + [-float(number) for number in range(27)])
    writer.add_token_types([2, 3, 3] + [6] * 256 + [1] * 27)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}")
    rng = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output": (len(tokens), 32)}
    shapes |= {f"blk.0.attn_{name}": (16 if name in "kv" else 32, 32) for name in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{name}": (32, 32) for name in ("gate", "up", "down")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", rng.normal(0, 0.1, shape).astype(np.float32))
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(32, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _make_pages(folder: Path) -> None:
    (folder / "page.html").write_text(PAGE)
    head = "HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n"
    head += f"Content-Length: {len(PAGE.encode())}\r\nServer: x\r\n\r\n"
    (folder / "page.http").write_bytes(head.encode() + PAGE.encode())


def _make_configs(folder: Path) -> None:
    from scrubjay.experiments.runs.kinds import to_json

    (folder / "config.json").write_text(to_json(make_tiny(recipe="tmaze-demo", eval_episodes=2)))
    (folder / "entries.yaml").write_text(
        "format: 2\nrecipe: tmaze-demo\ntotal_steps: 64\nsegment_length: 8\neval_episodes: 2\ndevice: cpu\n"
        "policy:\n  memory: {name: gru, dim: 16}\nlearner: {name: ppo, epochs: 1, num_minibatches: 2}\n"
        "env:\n  id: scrubjay/TMaze-v0\n  kwargs: {corridor_length: 4}\n  num_envs: 4\n"
    )


def _make_traces(folder: Path) -> None:
    from scrubjay.experiments.viz.look import look
    from scrubjay.experiments.viz.trace import write_trace

    write_trace(look(_train_in(folder), max_steps=8).trace, folder / "episode.json")
    shutil.rmtree(folder / "scratch")


def _train_in(folder: Path) -> Path:
    from scrubjay.experiments import train

    return train(make_tiny("hcam", total_steps=32, eval_episodes=0), folder / "scratch").path


def _make_datasets(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    from scrubjay.experiments.answers.facts import make_rows

    rows = make_rows(0, 60, 3)
    (folder / "facts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "facts.parquet")
    turns = [
        {"speaker": "Ada", "dia_id": f"D1:{number}", "text": f"I saw {number} jays."}
        for number in range(1, 6)
    ]
    talk = {"session_1_date_time": "1:56 pm on 8 May, 2023", "session_1": turns}
    question = {"question": "How many jays?", "answer": 3, "evidence": ["D1:3"], "category": 4}
    (folder / "locomo.json").write_text(
        json.dumps([{"sample_id": "c1", "conversation": talk, "qa": [question]}])
    )
    history = {
        "question_id": "q1",
        "question_type": "single-session-user",
        "question": "Where is the acorn?",
        "answer": "by the wall",
        "question_date": "2023/05/30 (Tue) 23:40",
        "haystack_dates": ["2023/05/20 (Sat) 02:21"],
        "haystack_sessions": [[{"role": "user", "content": "The acorn is by the wall.", "has_answer": True}]],
    }
    (folder / "history.json").write_text(json.dumps([history]))
    reference = {"thought": "Search for jays.", "tool_name": "search", "tool_args": {"q": "x"}}
    record = {"id": 1, "type": "plantooluse", "golden_result_list": [reference], "funcs": []}
    record |= {
        "memory_last_task": "",
        "model_predict": {"ReACT": '{"command": {"name": "search", "args": {"q": "x"}}}'},
    }
    (folder / "kagentbench.jsonl").write_text(json.dumps(record) + "\n")


def _make_exports(folder: Path) -> None:
    from scrubjay.memory import MemoryBank

    with MemoryBank(folder / "scratch.db") as bank:
        first = bank.add(
            "Ada lives in London.", namespace=("user", "ada"), trust="user", valid_from="2020-01-01"
        )
        bank.add("Ada lives in Bath.", namespace=("user", "ada"), supersedes=first, source="x")
        bank.add("Ada lives in Bath.", namespace=("user", "ada"))
        rows = "".join(json.dumps(row) + "\n" for row in bank.export())
    (folder / "records.jsonl").write_text(rows)
    (folder / "document.md").write_text(
        f"# Jays\n\n{TEXT * 5}\n\n## Food\n\n- acorns\n\n```\ncode\n```\n{TEXT}"
    )
    for path in folder.glob("scratch.db*"):
        path.unlink()


def _make_conversations(folder: Path) -> None:
    from scrubjay.agents import LocalChatModel

    model = LocalChatModel(model=make_tiny_chat(), max_tokens=3, temperature=0, budget=128)
    model.invoke("Where is the acorn?")
    model.save_conversation(folder / "conversation")


def _make_comparisons(folder: Path) -> None:
    from scrubjay.experiments import train
    from scrubjay.experiments.recipes.overrides import override

    config = override("tmaze-demo", ["--memory", "gru", "--seed", "0", *SMALL.split()])
    train(config, folder / "compared" / "tmaze-demo-gru-s0")
    for path in folder.rglob("*tfevents*"):
        path.unlink()
    answer = {"tool": "search", "language": "en", "arguments": {"query": "jays"}, "recorded": "2024-01-01"}
    answer |= {"text": "Jays hide acorns.", "urls": ["https://example.org/"], "data": []}
    (folder / "replay.jsonl").write_text(json.dumps(answer) + "\n")


MAKERS: dict[str, Callable[[Path], None]] = {
    "runs": _make_runs,
    "weights": _make_weights,
    "banks": _make_banks,
    "models": _make_models,
    "ggufs": _make_ggufs,
    "pages": _make_pages,
    "configs": _make_configs,
    "traces": _make_traces,
    "datasets": _make_datasets,
    "exports": _make_exports,
    "conversations": _make_conversations,
    "comparisons": _make_comparisons,
}
"""Functions that write the samples of a kind into an empty folder."""


def make_samples(folder: Path, kinds: tuple[str, ...] = tuple(MAKERS)) -> None:
    """Write the samples that are missing, each kind in a folder of its name."""
    for kind in kinds:
        if not (folder / kind).exists():
            new = folder / f"{kind}.new"
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir(parents=True)
            MAKERS[kind](new)
            new.rename(folder / kind)
