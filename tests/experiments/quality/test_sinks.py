"""Sinks of trained windows: what a head gives the first token, written out, and a run that goes on."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scrubjay.experiments.quality.sinks import SinksBench, first_token_attention, run, task
from scrubjay.memory.parts.window import WindowAttention


@pytest.mark.parametrize("memory", ["gtrxl", "hcam"])
def test_the_first_token_gets_what_all_do_where_scores_are_alike(memory):
    config = task(SinksBench(memory=memory), "softmax", 0)
    model = config.make_model()
    for name, parameter in model.named_parameters():
        if ".query." in name or "_bias" in name:
            torch.nn.init.zeros_(parameter)
    (tokens, _) = config.suite.draw(3, 0, 0)
    for first in first_token_attention(model, tokens).values():
        expected = sum(1 / count for count in range(1, 65)) / 64
        assert first.shape == (3, 2, 4)
        torch.testing.assert_close(first, torch.full_like(first, expected))


def test_a_head_of_sigmoids_may_give_nothing_to_anyone():
    config = task(SinksBench(), "sigmoid", 0)
    model = config.make_model()
    for module in model.modules():
        if isinstance(module, WindowAttention):
            module.offset = -20.0
    (tokens, _) = config.suite.draw(3, 0, 0)
    attention = first_token_attention(model, tokens)
    assert attention["attention"].max() < 1e-6
    assert attention["share"].min() > 0.01


def test_results_are_kept_and_gone_on_from(tmp_path):
    bench = SinksBench(
        activations=("sigmoid",), seeds=(0,), total_steps=2048, sequences=2, out=tmp_path, quiet=True
    )
    table = run(bench, "sinks").read_text()
    assert "| sigmoid, untrained |" in table
    rows = (tmp_path / "scores.jsonl").read_text()
    assert len(rows.splitlines()) == 2
    assert run(bench, "sinks").read_text() == table
    assert (tmp_path / "scores.jsonl").read_text() == rows
    with pytest.raises(ValueError, match="sequences=2, now 3"):
        run(dataclasses.replace(bench, sequences=3), "sinks")
