"""Measurements on a tiny model: what is written is what the model computes, and stopping changes nothing."""

import dataclasses
import json
import math
import random
from pathlib import Path

import pytest

pytest.importorskip("transformers")
pytest.importorskip("wonderwords")

import torch

from scrubjay.experiments import cli
from scrubjay.experiments.longcontext.agreement import AgreementOptions, write
from scrubjay.experiments.longcontext.answering import answer, answer_from_kept
from scrubjay.experiments.longcontext.curve import Curve
from scrubjay.experiments.longcontext.examples import Example, token_counter
from scrubjay.experiments.longcontext.haystack import HaystackOptions, cells, make_cell
from scrubjay.experiments.longcontext.needles import split_sentences
from scrubjay.experiments.longcontext.perplexity import PerplexityOptions, run_perplexity
from scrubjay.experiments.longcontext.reading import read, recompute, tokenize
from scrubjay.experiments.runs.records import Records, settle
from scrubjay.experiments.runs.stopping import Interrupted, StopRequest
from scrubjay.memory import context
from scrubjay.memory.reading.infiniretri import InfiniRetri


@pytest.fixture
def run(text, model_folder, tmp_path, capsys):
    """Run a measurement, and return its directory."""

    def call(what, *words, out="out"):
        common = ["--model", str(model_folder), "--out", str(tmp_path / out), "--quiet"]
        assert cli.main(["longcontext", what, str(text), *common, *map(str, words)]) == 0
        assert all(Path(line).exists() for line in capsys.readouterr().out.splitlines())
        return tmp_path / out

    return call


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_losses_are_those_of_the_model_in_one_pass(run, model, text):
    language, tokenizer = model
    out = run(
        "perplexity", "--methods", "full", "--tokens", 200, "--block", 64, "--budget", 16, "--recompute", 5
    )
    tokens = tokenize(tokenizer, text.read_text())[:201]
    with torch.no_grad():
        logits = language(tokens[None, :-1], use_cache=False).logits[0]
        expected = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none").double()
    curve = Curve(rows(out / "full.jsonl"))
    assert torch.allclose(torch.from_numpy(curve.nats), expected, atol=1e-4)
    assert curve.perplexity(16) == pytest.approx(expected[16:].mean().exp().item(), rel=1e-4)
    assert list(curve.ends) == [64, 128, 192, 200]
    for row in rows(out / "recompute.jsonl"):
        place = row["position"]
        fresh = recompute(language, tokens[place - 15 : place + 1]).log_softmax(dim=-1)
        assert row["nats"] == pytest.approx(-fresh[tokens[place + 1]].item(), abs=1e-5)
    assert (out / "curve.png").stat().st_size > 1000
    table = (out / "table.md").read_text()
    assert f"| full | 200 | {curve.perplexity():.2f} |" in table
    assert "scrubjay longcontext perplexity" in table


def test_a_stopped_stream_goes_on_to_the_same_end(run, text, model_folder, tmp_path, monkeypatch):
    flags = ("--methods", "sinks", "--budget", 24, "--block", 32)
    whole = Curve(rows(run("perplexity", *flags, "--tokens", 224, out="whole") / "sinks.jsonl"))
    options = PerplexityOptions(
        text=(text,),
        model=str(model_folder),
        methods=("sinks",),
        budget=24,
        block=32,
        tokens=224,
        out=tmp_path / "cut",
    )
    with monkeypatch.context() as patch:
        patch.setattr(StopRequest, "__enter__", lambda self: setattr(self, "signal_number", 2) or self)
        for _ in range(3):
            with pytest.raises(Interrupted):
                run_perplexity(options, "")
    assert len(rows(options.out / "sinks.jsonl")) == 3
    # And as if it were killed with blocks written since the cache was saved, the last of them half.
    with (options.out / "sinks.jsonl").open("a") as file:
        file.write(json.dumps({"first": 96, "nats": [9.0] * 32}) + '\n{"first": 12')
    cut = Curve(rows(run("perplexity", *flags, "--tokens", 224, out="cut") / "sinks.jsonl"))
    assert cut.nats == pytest.approx(whole.nats, abs=2e-5)
    assert len(list(options.out.glob("*.safetensors"))) == 1


def test_more_tokens_go_on_where_fewer_ended(run):
    flags = ("--methods", "window", "--budget", 24, "--block", 32)
    run("perplexity", *flags, "--tokens", 96)
    more = Curve(rows(run("perplexity", *flags, "--tokens", 160) / "window.jsonl"))
    whole = Curve(rows(run("perplexity", *flags, "--tokens", 160, out="whole") / "window.jsonl"))
    assert more.nats == pytest.approx(whole.nats, abs=2e-5)


def test_an_answer_is_what_generate_writes(model):
    language, tokenizer = model
    example = Example("w1 w2", "w3 w4 w5 " * 7, "w6", "w7", ("never",), 9)
    given = answer(language, tokenizer, context.make("full"), example, block=5)
    tokens = tokenize(tokenizer, example.render(tokenizer))
    expected = language.generate(
        tokens[None], do_sample=False, max_new_tokens=9, attention_mask=torch.ones(1, len(tokens))
    )
    assert given.text == tokenizer.decode(expected[0, len(tokens) :], skip_special_tokens=True)
    assert (given.score, given.tokens) == (0, len(tokens))
    first = given.text.split()[0]
    early = answer(
        language,
        tokenizer,
        context.make("full"),
        Example("w1 w2", "w3 w4 w5 " * 7, "w6", "w7", (first,), 9),
        5,
    )
    assert (early.text, early.score) == (first, 1)


def test_infiniretri_answers_from_what_it_kept(model, tmp_path):
    language, tokenizer = model
    example = Example("w1 w2", "w3 w4 w5 w6 . " * 20, "w7", "w8", ("never",), 5)
    reader = InfiniRetri(language, tokenizer, chunk_tokens=20, layer=1, heads=[0])
    kept = reader.read(example.context, example.question, max_new_tokens=1, progress=False)
    given = answer_from_kept(language, tokenizer, reader, example, 7, tmp_path, quiet=True)
    shorter = dataclasses.replace(example, context=" ".join(kept.sentences))
    assert 0 < len(shorter.context) < len(example.context) / 4
    assert given.text == answer(language, tokenizer, context.make("full"), shorter, block=7).text
    assert not list(tmp_path.iterdir())
    assert given.tokens == kept.tokens_read > len(tokenize(tokenizer, shorter.context))


def test_the_grid_is_filled_once(run):
    flags = (
        "--lengths",
        100,
        200,
        "--depths",
        0,
        50,
        "--methods",
        "full",
        "window",
        "sinks",
        "--budget",
        32,
    )
    out = run("haystack", *flags)
    before = rows(out / "answers.jsonl")
    keys = {(row["length"], row["depth"], row["method"]) for row in before}
    assert len(before) == len(keys) == 2 * 2 * 3
    assert all(row["tokens"] <= row["length"] for row in before)
    assert (out / "map.png").stat().st_size > 1000
    after = rows(run("haystack", *flags, "--samples", 2) / "answers.jsonl")
    assert after[: len(before)] == before
    assert len(after) == 2 * len(before)
    assert (out / "table.md").read_text().count("| needle, ") == 3


def test_cells_have_needles_where_they_say_and_differ_by_sample(model, text):
    _, tokenizer = model
    options = HaystackOptions(
        text=(text,), lengths=(300,), depths=(0.0, 50.0, 100.0), tasks=("needle", "single_1"), samples=2
    )
    sentences, count = split_sentences(text.read_text()), token_counter(tokenizer)
    seen = set()
    for cell in cells(options):
        example = make_cell(cell, sentences, count, seed=0)
        assert count(example) <= 300
        if cell.depth is not None:
            pieces = split_sentences(example.context)
            (place,) = [i for i, piece in enumerate(pieces) if "secret" in piece]
            assert place == round((len(pieces) - 1) * cell.depth / 100)
        seen.add((cell.task, cell.sample, example.references))
    assert len({references for _, _, references in seen}) == (3 + 1) * 2


def test_turns_are_timed_once_for_each(run):
    flags = ("--methods", "full", "sinks", "--budget", 16, "--steps", 2, "--repeats", 2, "--full-until", 64)
    out = run("speed", *flags, "--contexts", 32, 128)
    before = rows(out / "turns.jsonl")
    found = [(row["context"], row["method"]) for row in before]
    # By turns, and full only as far as it was asked to hold all.
    assert (
        found
        == [(32, "recompute"), (32, "full"), (32, "sinks")] * 2 + [(128, "recompute"), (128, "sinks")] * 2
    )
    assert all(row["cpu"] > 0 for row in before)
    after = rows(run("speed", *flags, "--contexts", 32, 64, 128) / "turns.jsonl")
    assert after[: len(before)] == before
    assert {row["context"] for row in after[len(before) :]} == {64}
    assert (out / "speed.png").stat().st_size > 1000


def test_timed_tokens_come_one_by_one(run, model, monkeypatch):
    kind, lengths = type(model[0]), []
    forward = kind.forward

    def noted(self, input_ids, **keywords):
        lengths.append(input_ids.shape[1])
        return forward(self, input_ids, **keywords)

    monkeypatch.setattr(kind, "forward", noted)
    run("speed", "--methods", "snapkv", "--budget", 40, "--steps", 3, "--repeats", 1, "--contexts", 48)
    assert lengths == [48, 40, 1, 1, 1]  # the prompt, recompute, and the steps


def test_a_policy_that_drops_nothing_agrees_with_full(run):
    out = run(
        *("agreement", "--methods", "sinks", "window", "--budget", 128, "--length", 60, "--prompts", 2),
        *("--new-tokens", 6, "--block", 16),
    )
    found = rows(out / "stretches.jsonl")
    assert len(found) == 2 * 3
    assert {row["agreement"] for row in found} == {1.0}
    assert max(abs(row["divergence"]) for row in found) < 1e-5


def test_divergence_is_that_of_the_two_distributions(run, model, text):
    language, tokenizer = model
    out = run(
        "agreement", "--methods", "window", "--budget", 8, "--length", 60, "--prompts", 1, "--new-tokens", 5
    )
    full, window = rows(out / "stretches.jsonl")
    assert (full["method"], full["divergence"], full["agreement"]) == ("full", 0, 1)
    options = AgreementOptions(text=(text,), budget=8, length=60, new_tokens=5)
    start = random.Random(0).randint(0, len(tokenize(tokenizer, text.read_text())) - 60)
    assert start == window["start"]
    stretch = tokenize(tokenizer, text.read_text())[start : start + 60]
    whole = write(language, context.make("full"), stretch, options)
    cut = write(language, context.make("window", budget=8), stretch, options, whole.tokens)
    expected = torch.nn.functional.kl_div(
        cut.log_probabilities, whole.log_probabilities, log_target=True, reduction="batchmean"
    ).item()
    assert expected > 0.01
    assert window["divergence"] == pytest.approx(expected, rel=1e-3)
    assert window["agreement"] == (cut.tokens == whole.tokens).double().mean().item()


def test_half_precision_halves_the_cache(run, text, capsys):
    held = {}
    for dtype in ("float32", "bfloat16"):
        flags = ("--methods", "sinks", "--budget", 16, "--tokens", 60, "--block", 16, "--dtype", dtype)
        held[dtype] = rows(run("perplexity", *flags, out=dtype) / "sinks.jsonl")[-1]["cache_bytes"]
    assert held["float32"] == 2 * held["bfloat16"]
    assert cli.main(["longcontext", "perplexity", str(text), "--dtype", "int8"]) == 2
    assert "dtype='int8'" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["snapkv", "recycled", "chunks"])
def test_a_prompt_is_cut_only_where_its_end_does_not_choose(name, model):
    language, _ = model
    policy = context.make(name, budget=80)
    calls = []
    handle = language.register_forward_pre_hook(
        lambda _, args, __: calls.append(args[0].shape[1]), with_kwargs=True
    )
    with handle:
        list(read(language, context.PolicyCache(policy, language), torch.arange(90), 32))
    assert calls == ([32, 32, 26] if name == "chunks" else [90])


def test_results_of_other_settings_are_not_mixed(run, text, model_folder, capsys, tmp_path):
    out = run("perplexity", "--methods", "full", "--tokens", 40, "--budget", 16)
    words = ["longcontext", "perplexity", str(text), "--out", str(out), "--budget", "8", "--methods", "full"]
    assert cli.main(words) == 2
    assert "choose another --out" in capsys.readouterr().err
    for flags, told in (
        (["--tokens", "900", "--model", str(model_folder)], "901 tokens are needed, "),
        (["--methods", "sink"], "did you mean 'sinks'"),
        (["--tokens", "0"], "tokens=0"),
        (["--recompute", "9", "--tokens", "12"], "recompute=9"),
    ):
        assert cli.main(["longcontext", "perplexity", str(text), "--out", str(tmp_path / "n"), *flags]) == 2
        assert told in capsys.readouterr().err
    assert cli.main(["longcontext", "perplexity", str(tmp_path / "none.txt")]) == 2
    assert "no file" in capsys.readouterr().err


def test_a_line_cut_off_is_dropped(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.append({"a": 1, "b": None})
    records.append({"a": 2, "b": 0.5})
    with records.path.open("a") as file:
        file.write('{"a": 3, ')
    again = Records(records.path)
    assert again.rows == records.rows
    assert again.find(b=None) == [{"a": 1, "b": None}]
    again.append({"a": 4})
    assert Records(records.path).rows == again.rows


def test_settings_are_kept_and_compared(tmp_path):
    settle(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    settle(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    with pytest.raises(ValueError, match="budget=8, now 9"):
        settle(tmp_path / "x", {"budget": 9, "lengths": (1, 2)})


def test_a_curve_of_equal_chances_has_their_perplexity():
    curve = Curve([{"nats": [math.log(7)] * 4, "cpu": 2.0}, {"nats": [math.log(7)] * 2, "cpu": 1.0}])
    assert curve.perplexity() == pytest.approx(7)
    assert curve.milliseconds("cpu") == pytest.approx(500)
    assert curve.milliseconds("cpu", 0.5) == pytest.approx(500)
