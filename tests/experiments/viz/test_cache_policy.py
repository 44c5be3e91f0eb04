"""Traces of retained tokens: known cases, all policies, in a chat and in a browser."""

import io
from typing import Any

import pytest
import torch

from scrubjay.experiments.commands.main import main
from scrubjay.experiments.viz.cache_policy import RetentionRecorder, record_calls, trace_retention
from scrubjay.experiments.viz.page import render_page
from scrubjay.experiments.viz.trace import Trace, from_json, read_trace, to_json
from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")

SMALL = {
    "chunks": {"budget": 16, "chunk_size": 2, "local_chunks": 3},
    "h2o": {"budget": 12, "recent": 5, "interval": 3},
    "recycled": {"budget": 12, "stride": 4},
    "snapkv": {"budget": 12, "window": 4},
    "full": {},
}


def trace_policy(tiny_chat: Any, name: str, **fields: Any) -> Trace:
    model, tokenizer = tiny_chat
    fields = fields or SMALL.get(name, {"budget": 10})
    cache = context.PolicyCache(context.make(name, **fields), model, track_tokens=True)
    tokens = torch.arange(40) % model.config.vocab_size
    return trace_retention(model, tokenizer, cache, tokens, 20, name)


@pytest.mark.parametrize("name", context.list_policies())
def test_every_policy_is_seen(tiny_chat, name):
    trace = trace_policy(tiny_chat, name)
    assert from_json(to_json(trace)) == trace
    assert [place for place, step in enumerate(trace.steps) if step.recalls] == [*range(19, 40)]
    for place, step in enumerate(trace.steps[19:], 19):
        recall = step.recalls[0]
        assert recall.name == "kept"
        assert float(recall.weights.sum()) == pytest.approx(
            trace.tracks["retained tokens, mean over heads"][place], abs=0.2
        )
    names = {recall.name for step in trace.steps for recall in step.recalls}
    assert names == ({"kept", "read", "fetched"} if name in ("chunks", "recycled") else {"kept"})


def test_sinks_and_a_window_are_the_first_and_the_last(tiny_chat):
    trace = trace_policy(tiny_chat, "sinks", budget=10, num_sinks=4)
    for place in range(19, 40):
        (recall,) = trace.steps[place].recalls
        assert recall.steps.tolist() == [0, 1, 2, 3, *range(place - 5, place + 1)]
        assert set(recall.weights) == {1.0}


def test_what_is_cropped_and_read_again_is_forgotten(tiny_chat):
    model, tokenizer = tiny_chat
    cache, recorder = (
        context.PolicyCache(context.make("full"), model, track_tokens=True),
        RetentionRecorder(tokenizer),
    )
    with record_calls(model, recorder), torch.no_grad():
        model(input_ids=torch.arange(9)[None], cache=cache)
        cache.crop(-4)
        model(input_ids=torch.tensor([[7]]), cache=cache)
    trace = recorder.trace("cropped")
    assert [bool(step.recalls) for step in trace.steps] == [False] * 5 + [True]
    assert trace.steps[5].text == tokenizer.decode([7])


def test_a_prompt_has_some_tokens(tiny_chat):
    model, tokenizer = tiny_chat
    cache = context.PolicyCache(context.make("full"), model, track_tokens=True)
    with pytest.raises(ValueError, match="prompt=0"):
        trace_retention(model, tokenizer, cache, torch.arange(4), 0, "none")


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
        assert trace.steps[-1].recalls[0].name == "kept"
        assert len(trace.steps[-1].recalls[0].steps) == min(20, len(trace.steps))
        assert "…" not in {step.text for step in trace.steps}
    assert lengths[0] < lengths[1] == lengths[2]
    assert main([*words[:-1], "chat.txt"]) == 2


def test_fates_are_told_apart(tiny_chat, open_page):
    tab = open_page(render_page(trace_policy(tiny_chat, "chunks", **SMALL["chunks"])))
    assert tab.inner_text("#where").startswith("step 39")
    kinds = {
        kind: tab.evaluate(f"document.querySelectorAll('#said .{kind}').length")
        for kind in ("read", "fetched", "passed", "dropped")
    }
    assert kinds["dropped"] == 0
    assert kinds["read"] > 0 < kinds["fetched"]
    assert sum(kinds.values()) == 40
    tab = open_page(render_page(trace_policy(tiny_chat, "sinks", budget=10, num_sinks=4)))
    assert tab.evaluate("document.querySelectorAll('#said .dropped').length") == 30
    assert "evicted" in tab.inner_text("#legend")
    tab.fill("#slider", "5")
    assert tab.evaluate("document.querySelectorAll('#said .later').length") == 20
