"""Benchmark of sparse reading: a small model reads a prompt, and each contender is compared with it."""

import pytest
import torch

from scrubjay.experiments.bench.prefill import speed
from scrubjay.experiments.bench.prefill.speed import ComparingPolicy, PrefillBench
from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.policies.flexprefill import FlexPrefillPolicy

pytestmark = pytest.mark.requires("transformers")


@torch.no_grad()
def test_the_model_reads_as_without_a_comparison(tiny_chat):
    model, _ = tiny_chat
    ids = torch.arange(60)[None] % model.config.vocab_size
    readers = tuple(FlexPrefillPolicy(block=4, gamma=gamma, min_budget=4) for gamma in (0.3, 0.9, 1.0))
    policy = ComparingPolicy(readers=readers)
    out = model(ids, cache=PolicyCache(policy, model)).logits
    torch.testing.assert_close(out, model(ids, cache=PolicyCache(context.make("full"), model)).logits)
    results = policy.results
    assert len(results) == 3 * model.config.num_hidden_layers
    few, many, everything = results[:3]
    assert few.tokens == 60
    assert 0 < few.share < many.share < 1
    assert few.error > many.error > everything.error == 0


def test_a_table_of_all_lengths(tiny_chat, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed.context, "load_model", lambda *_, **__: tiny_chat)
    text = tmp_path / "text.txt"
    text.write_text("one two three " * 200)
    bench = PrefillBench(text, None, lengths=(260, 280), gammas=(0.5, 0.9), every=1, min_budget=128)
    speed.main(bench)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| 2")]
    assert [line.split(" | ")[:2] for line in lines] == [
        ["| 260", "0.5"], ["| 260", "0.9"], ["| 280", "0.5"], ["| 280", "0.9"],
    ]  # fmt: skip
    with pytest.raises(ValueError, match="another title"):
        speed.main(PrefillBench(text, None, lengths=(10**6,)))
