"""Recipes of sequence modeling: settings follow the group, and the test is longer than the training."""

import dataclasses

import pytest
import torch

from scrubjay.experiments import RECIPES
from scrubjay.experiments.runs.sequence import SequenceEngine, SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import count_swaps

NAMES = [name for name in RECIPES if RECIPES[name].make.__module__.endswith("recipes.sequences")]


def make(name: str) -> SequenceTaskConfig:
    config = RECIPES[name]()
    assert isinstance(config, SequenceTaskConfig)
    return config


@pytest.mark.parametrize(("name", "items"), [("state-tracking", 3), ("state-tracking-s5", 5)])
def test_a_permutation_has_as_many_householders_as_swaps(name, items):
    settings = RECIPES[name].settings["gated_delta"]
    assert settings["householders"] == count_swaps(items).max()
    assert settings["negative_eigenvalues"]


def test_the_last_stage_has_all_permutations_of_five_items():
    config = make("state-tracking-s5")
    total = config.total_steps
    assert config.counts_at(0, total) == [1]
    assert config.counts_at(total, total) == list(range(1, count_swaps(5).max() + 1))


@pytest.mark.parametrize("name", NAMES)
def test_tests_are_longer_than_the_training(name):
    config = make(name)
    assert max(config.eval_longer) > 1
    sample = config.suite.draw(2, seed=0)
    assert sample.tokens.shape == (2, config.suite.length)
    assert sample.tokens.max() < config.suite.vocab_size


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", NAMES)
def test_a_first_update_changes_the_model(name, tmp_path):
    with SequenceEngine(dataclasses.replace(make(name), seed=1), tmp_path) as engine:
        before = [parameter.clone() for parameter in engine.model.parameters()]
        engine.update()
        pairs = zip(before, engine.model.parameters(), strict=True)
        assert any(not torch.equal(old, new) for old, new in pairs)
