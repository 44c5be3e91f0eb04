"""Tests of streamed perplexity: losses equal those of the model, and resumption changes nothing."""

import json

import pytest
import torch

from scrubjay.experiments.commands import main
from scrubjay.experiments.lm.perplexity import PerplexityOptions, run_perplexity
from scrubjay.experiments.lm.reading import Curve, recompute, tokenize
from scrubjay.experiments.progress import GracefulInterrupt, StopRequest

pytestmark = pytest.mark.requires("transformers")


def test_losses_are_those_of_the_model_in_one_pass(run, model, text, rows):
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


@pytest.mark.slow
def test_a_stopped_stream_goes_on_to_the_same_end(run, text, model_folder, tmp_path, monkeypatch, rows):
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
            with pytest.raises(GracefulInterrupt):
                run_perplexity(options, "")
    assert len(rows(options.out / "sinks.jsonl")) == 3
    # And as if it were killed with blocks written since the cache was saved, the last of them half.
    with (options.out / "sinks.jsonl").open("a") as file:
        block = {"first": 96, "nats": [9.0] * 32, "wall": 1.0, "cpu": 1.0, "resident": 1, "cache_bytes": 1}
        file.write(json.dumps(block) + '\n{"first": 12')
    cut = Curve(rows(run("perplexity", *flags, "--tokens", 224, out="cut") / "sinks.jsonl"))
    assert cut.nats == pytest.approx(whole.nats, abs=2e-5)
    assert len(list(options.out.glob("*.safetensors"))) == 1


@pytest.mark.slow
def test_more_tokens_go_on_where_fewer_ended(run, rows):
    flags = ("--methods", "window", "--budget", 24, "--block", 32)
    run("perplexity", *flags, "--tokens", 96)
    more = Curve(rows(run("perplexity", *flags, "--tokens", 160) / "window.jsonl"))
    whole = Curve(rows(run("perplexity", *flags, "--tokens", 160, out="whole") / "window.jsonl"))
    assert more.nats == pytest.approx(whole.nats, abs=2e-5)


def test_half_precision_halves_the_cache(run, text, capsys, rows):
    cache_bytes = {}
    for dtype in ("float32", "bfloat16"):
        flags = ("--methods", "sinks", "--budget", 16, "--tokens", 60, "--block", 16, "--dtype", dtype)
        cache_bytes[dtype] = rows(run("perplexity", *flags, out=dtype) / "sinks.jsonl")[-1]["cache_bytes"]
    assert cache_bytes["float32"] == 2 * cache_bytes["bfloat16"]
    assert main.main(["longcontext", "perplexity", str(text), "--dtype", "int8"]) == 2
    assert "dtype='int8'" in capsys.readouterr().err


@pytest.mark.slow
def test_results_of_other_settings_are_not_mixed(run, text, model_folder, capsys, tmp_path):
    out = run("perplexity", "--methods", "full", "--tokens", 40, "--budget", 16)
    words = ["longcontext", "perplexity", str(text), "--out", str(out), "--budget", "8", "--methods", "full"]
    assert main.main(words) == 2
    assert "choose another --out" in capsys.readouterr().err
    for flags, message in (
        (["--tokens", "900", "--model", str(model_folder)], "901 tokens are needed, "),
        (["--methods", "sink"], "did you mean 'sinks'"),
        (["--tokens", "0"], "tokens=0"),
        (["--recompute", "9", "--tokens", "12"], "recompute=9"),
    ):
        assert main.main(["longcontext", "perplexity", str(text), "--out", str(tmp_path / "n"), *flags]) == 2
        assert message in capsys.readouterr().err
    assert main.main(["longcontext", "perplexity", str(tmp_path / "none.txt")]) == 2
    assert "no file" in capsys.readouterr().err
