"""What a policy keeps of a text as a trace: by closed forms, of all policies, in a chat, in a browser."""

import io
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from scrubjay.experiments.cli import main
from scrubjay.experiments.looking.keeping import Keeping, noted, trace_keeping
from scrubjay.experiments.looking.page import page
from scrubjay.experiments.looking.trace import Trace, from_json, read_trace, to_json
from scrubjay.memory import context

SMALL = {
    "chunks": {"budget": 16, "chunk_size": 2, "local_chunks": 3},
    "h2o": {"budget": 12, "recent": 5, "interval": 3},
    "recycled": {"budget": 12, "stride": 4},
    "snapkv": {"budget": 12, "window": 4},
    "full": {},
}


def traced(tiny_chat: Any, name: str, **fields: Any) -> Trace:
    model, tokenizer = tiny_chat
    fields = fields or SMALL.get(name, {"budget": 10})
    cache = context.PolicyCache(context.make(name, **fields), model, marked=True)
    tokens = torch.arange(40) % model.config.vocab_size
    return trace_keeping(model, tokenizer, cache, tokens, 20, name)


@pytest.mark.parametrize("name", context.list_policies())
def test_every_policy_is_seen(tiny_chat, name):
    trace = traced(tiny_chat, name)
    assert from_json(to_json(trace)) == trace
    assert [place for place, step in enumerate(trace.steps) if step.recalled] == [*range(19, 40)]
    for place, step in enumerate(trace.steps[19:], 19):
        kept = step.recalled[0]
        assert kept.name == "kept"
        assert float(kept.weights.sum()) == pytest.approx(
            trace.tracks["tokens kept, mean of heads"][place], abs=0.2
        )
    names = {recall.name for step in trace.steps for recall in step.recalled}
    assert names == ({"kept", "read", "fetched"} if name in ("chunks", "recycled") else {"kept"})


def test_sinks_and_a_window_are_the_first_and_the_last(tiny_chat):
    trace = traced(tiny_chat, "sinks", budget=10, num_sinks=4)
    for place in range(19, 40):
        (kept,) = trace.steps[place].recalled
        assert kept.steps.tolist() == [0, 1, 2, 3, *range(place - 5, place + 1)]
        assert set(kept.weights) == {1.0}


def test_what_is_cropped_and_read_again_is_forgotten(tiny_chat):
    model, tokenizer = tiny_chat
    cache, keeping = context.PolicyCache(context.make("full"), model, marked=True), Keeping(tokenizer)
    with noted(model, keeping), torch.no_grad():
        model(input_ids=torch.arange(9)[None], cache=cache)
        cache.crop(-4)
        model(input_ids=torch.tensor([[7]]), cache=cache)
    trace = keeping.trace("cropped")
    assert [bool(step.recalled) for step in trace.steps] == [False] * 5 + [True]
    assert trace.steps[5].text == tokenizer.decode([7])


def test_a_prompt_has_some_tokens(tiny_chat):
    model, tokenizer = tiny_chat
    cache = context.PolicyCache(context.make("full"), model, marked=True)
    with pytest.raises(ValueError, match="prompt=0"):
        trace_keeping(model, tokenizer, cache, torch.arange(4), 0, "none")


def test_a_chat_is_looked_at_after_each_answer(tiny_chat, tmp_path, monkeypatch):
    for part in tiny_chat:
        part.save_pretrained(tmp_path / "model")
    look = tmp_path / "chat.json"
    words = ["chat", "--model", str(tmp_path / "model"), "--temperature", "0", "--max-tokens", "6"]
    words += ["--budget", "20", "--look", str(look)]
    lengths = []
    for lines in ("Hello", "Hello\nAnd now?", f"Hello\n/save {tmp_path}/k\n/load {tmp_path}/k\nAnd now?"):
        monkeypatch.setattr("sys.stdin", io.StringIO(lines))
        assert main(words) == 0
        trace = read_trace(look)
        lengths.append(len(trace.steps))
        assert trace.steps[-1].recalled[0].name == "kept"
        assert len(trace.steps[-1].recalled[0].steps) == min(20, len(trace.steps))
        assert "…" not in {step.text for step in trace.steps}
    assert lengths[0] < lengths[1] == lengths[2]
    assert main([*words[:-1], "chat.txt"]) == 2


def test_fates_are_told_apart(tiny_chat, opened):
    shown = opened(page(traced(tiny_chat, "chunks", **SMALL["chunks"])))
    assert shown.inner_text("#where").startswith("step 39")
    kinds = {
        kind: shown.evaluate(f"document.querySelectorAll('#said .{kind}').length")
        for kind in ("read", "fetched", "passed", "dropped")
    }
    assert kinds["dropped"] == 0
    assert kinds["read"] > 0 < kinds["fetched"]
    assert sum(kinds.values()) == 40
    shown = opened(page(traced(tiny_chat, "sinks", budget=10, num_sinks=4)))
    assert shown.evaluate("document.querySelectorAll('#said .dropped').length") == 30
    assert "kept no more" in shown.inner_text("#legend")
    shown.fill("#slider", "5")
    assert shown.evaluate("document.querySelectorAll('#said .later').length") == 20
