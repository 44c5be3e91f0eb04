"""Measurement of attention elsewhere: equal logits, all turns, and a break-even length of known lines."""

import dataclasses
import math
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scrubjay.experiments.bench.decoding import SIZES
from scrubjay.experiments.bench.elsewhere import speed
from scrubjay.experiments.bench.elsewhere.speed import ElsewhereBench, fit_break_even, format_tokens
from scrubjay.memory.context import CacheShape
from scrubjay.memory.context.elsewhere import Link, count_traffic

pytestmark = pytest.mark.requires("transformers")

BENCH = ElsewhereBench(contexts=(40,), stores=(2,), block=16, turn=2, rounds=3)
SHAPE = CacheShape(layers=2, batch=1, heads=2, key_heads=1, key_width=64, value_width=64, itemsize=4)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    own = {"hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    sizes: Any = SIZES["4 layers of width 256"] | own
    return LlamaForCausalLM(LlamaConfig(**sizes)).eval()


def test_all_caches_are_timed_and_messages_are_as_large_as_the_model_of_traffic_says(model):
    with speed.open_caches(model, BENCH, 40) as caches:
        results = speed.measure(model, BENCH, caches)
        assert all(cache.get_seq_length() == 40 + 2 * 4 for cache in caches.values())  # one round warms up
        shape = next(iter(caches.values())).shape()
    assert shape == SHAPE
    assert {name: len(turns) for name, turns in results.items()} == {"full": 3, "2 processes": 3}
    expected = count_traffic(shape, 2) - shape.token_bytes  # the last block is not full
    headers = 2 * 2 * 2 * 400
    # The 48th token fills a block.
    assert all(expected < turn.sent_bytes < expected + headers for turn in results["2 processes"][:2])
    row = speed.format_row(40, "2 processes", results["2 processes"], results["full"], shape)
    assert row.startswith("| 40 | 2 processes | ")
    assert row.endswith(f" | {count_traffic(shape, 2):,} |")


@torch.no_grad()
def test_a_cache_that_was_filled_here_and_elsewhere_reads_the_same(model):
    logits = []
    with speed.open_caches(model, BENCH, 40) as caches:
        for cache in caches.values():
            cache.reset()
            torch.manual_seed(1)
            speed.fill(cache, model, 40)
            logits.append(model(torch.tensor([[3, 4, 5]]), cache=cache).logits)
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=1e-5)


def test_the_model_of_time_is_printed_beside_the_measurement(model, monkeypatch, capsys):
    monkeypatch.setattr(speed, "measure_link", lambda *_: Link(1e-3, 1e9, 1e9, 1e9))
    here, there = (speed.Turn(stores, seconds, seconds, 0.0, 0.0) for stores, seconds in ((0, 0.1), (2, 0.2)))
    bench = dataclasses.replace(BENCH, contexts=(1000, 2000))
    turns = {
        (n, name): [turn] for n in bench.contexts for name, turn in (("full", here), ("2 processes", there))
    }
    speed.print_model(bench, SHAPE, turns)
    output = capsys.readouterr().out
    more = 2 * 1 + count_traffic(SHAPE, 2) / 1e6 - 1000 * SHAPE.token_bytes / 2 / 1e6
    assert f"| 1,000 | {more:.1f} | 100.0 | 100.0 |" in output
    assert "It pays from 3," in output
    assert "from no length on by a line" in output


def test_constants_are_positive(model):
    link = speed.measure_link(BENCH, SHAPE, 1)
    assert all(0 < value < math.inf for value in dataclasses.astuple(link))


def test_the_break_even_length_of_known_lines():
    assert fit_break_even([(1000, 3.0), (2000, 2.0), (3000, 1.0)]) == pytest.approx(4000)
    assert fit_break_even([(1000, -1.0), (2000, -2.0)]) == 0
    assert fit_break_even([(1000, 1.0), (2000, 2.0)]) == fit_break_even([(1000, 1.0)]) == math.inf
    assert format_tokens(1234.4) == "1,234 tokens"
    assert format_tokens(math.inf) == "no length"
