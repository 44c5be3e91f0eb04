"""Tests of the agreement of policies with the full cache."""

import random

import pytest
import torch

from scrubjay.experiments.lm.agreement import AgreementOptions, write
from scrubjay.experiments.lm.reading import tokenize
from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")


def test_a_policy_that_drops_nothing_agrees_with_full(run, rows):
    out = run(
        *("agreement", "--methods", "sinks", "window", "--budget", 128, "--length", 60, "--prompts", 2),
        *("--new-tokens", 6, "--block", 16),
    )
    excerpts = rows(out / "stretches.jsonl")
    assert len(excerpts) == 2 * 3
    assert {row["agreement"] for row in excerpts} == {1.0}
    assert max(abs(row["divergence"]) for row in excerpts) < 1e-5


def test_divergence_is_that_of_the_two_distributions(run, model, text, rows):
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
