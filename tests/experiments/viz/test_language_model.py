"""Traces of a reading model: attention matches transformers, words can be clicked, sentences are retained."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch

from scrubjay.experiments.commands.main import main
from scrubjay.experiments.viz.language_model import (
    InfiniRetriRecorder,
    RetentionRecorder,
    record_calls,
    trace_reading,
    trace_retention,
)
from scrubjay.experiments.viz.look import render_page
from scrubjay.experiments.viz.trace import Trace, from_json, read_trace, to_json
from scrubjay.memory import context
from scrubjay.memory.context.identity import architecture
from scrubjay.memory.context.infiniretri import InfiniRetri
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights

pytestmark = pytest.mark.requires("transformers")

WORDS = ["?", "the", "jay", "hid", "a", "<b>worm</b>", "and", "flew"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="?"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?").save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    (path / "text.txt").write_text("the jay hid a <b>worm</b> and flew " * 20)
    return path


@pytest.fixture
def read(folder):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    tokens = torch.tensor([1, 2, 3, 4, 5, 6, 7, 1, 2])
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return model, tokens, trace_reading(model, tokenizer, tokens, [0, 1], "a model reads")


def test_it_is_what_the_model_attends_to_and_expects(read):
    model, tokens, trace = read
    assert from_json(to_json(trace)) == trace
    with torch.no_grad():
        output = model(tokens[None], output_attentions=True)
    log_probs = output.logits[0].log_softmax(-1)
    for layer, weights in enumerate(output.attentions):
        for time, row in enumerate(weights[0].mean(0)):
            recall = trace.steps[time].recalls[layer]
            assert recall.steps.tolist() == list(range(time + 1))
            assert np.abs(recall.weights - row[: time + 1].numpy()).max() <= recall.most / 255
        entropy = -(weights[0].double() * weights[0].double().clamp(min=1e-30).log()).sum(-1).mean(0)
        np.testing.assert_allclose(trace.tracks[f"entropy, layer {layer}"], entropy, atol=1e-6)
    losses = torch.nn.functional.cross_entropy(output.logits[0, :-1], tokens[1:], reduction="none")
    assert trace.tracks["loss of the token"][0] is None
    np.testing.assert_allclose(trace.tracks["loss of the token"][1:], losses, atol=1e-5)
    for step, row in zip(trace.steps, log_probs, strict=True):
        assert step.choice == WORDS[int(row.argmax())]
        assert max(step.options.values()) == pytest.approx(float(row.max().exp()), abs=1e-6)
    assert [step.text for step in trace.steps] == [WORDS[token] for token in tokens]


@pytest.mark.slow
def test_words_are_shown_as_one_text_and_lead_to_their_steps(read, open_page):
    *_, trace = read
    tab = open_page(render_page(trace))
    assert tab.inner_text("#said").replace("\n", "") == "".join(step.text for step in trace.steps)
    assert tab.evaluate("document.querySelectorAll('b').length") == 0
    tab.click(".word:nth-child(5)")
    assert tab.inner_text("#where").startswith("step 4 of 8")
    assert tab.evaluate("document.querySelector('.word.now').textContent") == "<b>worm</b>"
    assert tab.evaluate("document.querySelectorAll('.word.later').length") == 4
    warm = "getComputedStyle(document.querySelector('.word:nth-child({})')).backgroundColor"
    assert tab.evaluate(warm.format(6)) == "rgba(0, 0, 0, 0)" or ", 0)" in tab.evaluate(warm.format(6))
    assert ", 0)" not in tab.evaluate(warm.format(1))


@pytest.mark.slow
def test_inspect_writes_it(folder, tmp_path, capsys):
    words = ["inspect", str(folder), "--text", str(folder / "text.txt"), "--tokens", "20", "--layers", "1"]
    out = ["--out", str(tmp_path / "maps.png"), "--look", str(tmp_path / "read.json")]
    assert main([*words, *out]) == 0
    trace = read_trace(tmp_path / "read.json")
    assert (len(trace.steps), [one.name for one in trace.steps[3].recalls]) == (20, ["attention, layer 1"])
    assert [*trace.tables] == [
        "attention to token 0, by layer and head",
        "retrieval score, by layer and head",
    ]
    assert main([*words, "--out", str(tmp_path / "maps.png"), "--look", "read.txt"]) == 2
    assert "read.html" in capsys.readouterr().err


@pytest.mark.slow
def test_inspect_shows_what_a_policy_keeps(folder, tmp_path, capsys):
    words = ["inspect", str(folder), "--text", str(folder / "text.txt"), "--tokens", "20", "--layers", "1"]
    words += ["--out", str(tmp_path / "maps.png"), "--policy", "sinks", "--budget", "8"]
    assert main([*words, "--look", str(tmp_path / "kept.json"), "--prompt", "12"]) == 0
    trace = read_trace(tmp_path / "kept.json")
    assert [place for place, step in enumerate(trace.steps) if step.recalls] == [*range(11, 20)]
    assert len(trace.steps[-1].recalls[0].steps) == 8
    assert "retrieval score, by layer and head" in trace.tables
    capsys.readouterr()
    assert main(words) == 2
    assert "--look policy.html" in capsys.readouterr().err
    assert main([*words, "--look", "kept.html", "--budget", "2"]) == 2
    assert "budget=2" in capsys.readouterr().err


CHUNKS = ("chunks", "hip", "longheads", "quest")
SMALL = {
    **{name: {"budget": 16, "chunk_size": 2, "local_chunks": 3} for name in CHUNKS},
    "duo": {"num_sinks": 2, "recent": 6, "scores": ((0.9, 0.1, 0.2, 0.3), (0.0, 0.5, 0.1, 0.2))},
    "h2o": {"budget": 12, "recent": 5, "interval": 3},
    "recycled": {"budget": 12, "stride": 4},
    "refreshkv": {"budget": 12, "stride": 4},
    "snapkv": {"budget": 12, "window": 4},
    "task_kv": {"budget": 16, "window": 4, "num_sinks": 2, "recent": 5},
    "flexprefill": {"policy": "full", "block": 4, "gamma": 0.6, "min_budget": 4},
    "full": {},
    **{
        name: {"budget": 12, "window": 4}
        for name in ("adakv", "cake", "expected_attention", "keydiff", "kvzip", "pyramidkv", "zipvl")
    },
}


READS_A_PART = (*CHUNKS, "recycled", "refreshkv")


def trace_policy(tiny_chat: Any, name: str, **fields: Any) -> Trace:
    model, tokenizer = tiny_chat
    fields = fields or SMALL.get(name, {"budget": 10})
    if name == "kvzap":
        heads, width = model.config.num_key_value_heads, model.config.hidden_size
        maps = {layer: torch.randn(heads, width + 1) for layer in range(model.config.num_hidden_layers)}
        fields = {"budget": 12, "window": 4, "threshold": 0.0}
        fields["weights"] = KVzapWeights(maps, architecture(model), ()).register()
    cache = context.PolicyCache(context.make(name, **fields), model, track_tokens=True)
    tokens = torch.arange(40) % model.config.vocab_size
    return trace_retention(model, tokenizer, cache, tokens, 20, name)


@pytest.mark.one_in(4, rest="slow")
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
    assert names == ({"kept", "read", "fetched"} if name in READS_A_PART else {"kept"})


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


@pytest.mark.slow
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


TEXT = " ".join(f"Jay {number} hid <b>worm {number}</b> here." for number in range(30))


@pytest.fixture
def retrieval(tiny_chat):
    reader = InfiniRetri(*tiny_chat, chunk_tokens=48, top_k=6, phrase=4, layer=0, heads=[0])
    recorder, selections = InfiniRetriRecorder(reader, "Where?"), []

    def record(selection):
        selections.append(selection)
        recorder.record(selection)

    result = reader.read(TEXT, "Where?", progress=False, max_new_tokens=3, on_chunk=record)
    return recorder, selections, result


def test_what_is_shown_is_what_was_kept(retrieval):
    recorder, selections, result = retrieval
    trace = recorder.trace("a text", result)
    assert from_json(to_json(trace)) == trace
    assert "".join(step.text for step in trace.steps) == TEXT
    moments = [step for step in trace.steps if step.recalls]
    assert len(moments) == len(selections) > 2
    for step, selection in zip(moments, selections, strict=True):
        (recall,) = step.recalls
        assert recall.name == "kept"
        sentences = [selection.sentences[at] for at in selection.indices]
        assert [trace.steps[at].text for at in recall.steps] == [one.text for one in sentences]
        # The best retained sentence has the largest weight.
        best = max(selection.scores[at] for at in selection.indices)
        assert recall.most == pytest.approx(best)
    last = moments[-1].recalls[0].steps
    assert tuple(trace.steps[at].text.strip() for at in last) == result.sentences
    assert trace.about["answer"] == result.answer


def test_stopped_it_shows_what_was_read_by_then(retrieval):
    recorder, selections, _ = retrieval
    half = InfiniRetriRecorder(recorder._reader, "Where?")
    assert not half
    for selection in selections[:2]:
        half.record(selection)
    trace = half.trace("a text")
    assert TEXT.startswith("".join(step.text for step in trace.steps))
    assert "answer" not in trace.about


@pytest.mark.slow
def test_a_browser_shows_it(retrieval, open_page):
    recorder, _, result = retrieval
    tab = open_page(render_page(recorder.trace("a text", result)))
    assert tab.evaluate("document.querySelectorAll('b').length") == 0
    classes = tab.evaluate("[...document.querySelectorAll('#said .word')].map((word) => word.className)")
    recall = sum("dropped" not in names for names in classes)
    assert recall == len(result.sentences)
    assert "evicted" in tab.inner_text("#legend")
