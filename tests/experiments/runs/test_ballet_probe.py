"""The Ballet probe: its observations, permutation of slots, independent questions and resumption."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from scrubjay.envs.ballet import world
from scrubjay.envs.ballet.env import MOVE_OFFSET, SHAPE_OFFSET, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.experiments import RECIPES, Run, resume, train, with_memory
from scrubjay.experiments.runs.ballet_probe import (
    BalletProbe,
    BalletProbeConfig,
    ProbeEngine,
    watch,
)
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.viz.accuracy import plot_spans
from scrubjay.experiments.viz.comparison import write_report
from scrubjay.memory import list_memories, make_config


def tiny(memory="gru", **fields):
    """Return a config of four batches of the shortest ballets."""
    config = BalletProbeConfig(
        recipe="tiny-probe", num_dancers=2, delay=1, batch_questions=8, total_steps=500, eval_episodes=10
    )
    settings = {"memory": make_config(memory, dim=16), "eval_dancers": (1, 3), "eval_delays": (2,)}
    return dataclasses.replace(config, **{**settings, **fields})


def test_observations_contain_the_answer_to_every_question():
    """Read the answers off the observations alone, by replaying the named dance."""
    envs = tiny().make_envs(40, num_dancers=8, delay=3)
    ballets = watch(envs)
    assert ballets.observations.shape == (40, 8 * 18, SLOTS * SLOT_SIZE + 14)
    moves = ballets.observations[:, :, : SLOTS * SLOT_SIZE].unflatten(-1, (SLOTS, SLOT_SIZE))[
        ..., MOVE_OFFSET:SHAPE_OFFSET
    ]
    named_dances = ballets.questions[:, :, SLOTS * SLOT_SIZE :]
    assert (ballets.observations[:, :, SLOTS * SLOT_SIZE] == 1).all()
    assert (named_dances.sum(dim=-1) == 1).all()
    for row in range(40):
        slot_moves = moves[row].argmax(dim=-1)
        dances = [slot_moves[:, slot][slot_moves[:, slot] != world.NO_MOVE].tolist() for slot in range(SLOTS)]
        for question, answer in zip(named_dances[row].argmax(dim=-1), ballets.answers[row], strict=True):
            assert dances[answer] == world.DANCE_MOVES[question - 1].tolist()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory", list_memories())
def test_slots_may_be_permuted_and_answers_follow(memory):
    torch.manual_seed(0)
    model = BalletProbe(make_config(memory, dim=16)).double()
    ballets = watch(tiny().make_envs(5, num_dancers=3, delay=2))
    ballets = ballets._replace(
        observations=ballets.observations.double(), questions=ballets.questions.double()
    )
    order = torch.randperm(SLOTS)

    def permute(symbols):
        slots = symbols[..., : SLOTS * SLOT_SIZE].unflatten(-1, (SLOTS, SLOT_SIZE))[..., order, :]
        return torch.cat([slots.flatten(-2), symbols[..., SLOTS * SLOT_SIZE :]], dim=-1)

    other = ballets._replace(observations=permute(ballets.observations), questions=permute(ballets.questions))
    torch.testing.assert_close(model(other), model(ballets)[..., order], rtol=1e-9, atol=1e-9)


def test_questions_cannot_help_each_other_and_empty_slots_are_never_named():
    torch.manual_seed(0)
    model = BalletProbe(make_config("gru", dim=16)).double()
    ballets = watch(tiny().make_envs(5, num_dancers=4, delay=2))
    ballets = ballets._replace(
        observations=ballets.observations.double(), questions=ballets.questions.double()
    )
    together = model(ballets)
    for question in range(4):
        alone = model(ballets._replace(questions=ballets.questions[:, question : question + 1]))
        torch.testing.assert_close(alone[:, 0], together[:, question], rtol=1e-9, atol=1e-9)
    occupied_slots = np.zeros((5, SLOTS), dtype=np.bool_)
    occupied_slots[np.arange(5)[:, None], ballets.answers.numpy()] = True
    assert ((together > -math.inf).all(dim=1).numpy() == occupied_slots).all()
    assert ((together > -math.inf).any(dim=1).numpy() == occupied_slots).all()


def test_without_memory_the_answer_is_a_guess(tmp_path):
    config = tiny("none", eval_episodes=400, eval_dancers=(4,))
    result = train(config, tmp_path / "none").result
    for test in result["tests"]:
        chance = 1 / test["num_dancers"]
        assert test["asked"] == 400 * test["num_dancers"]
        # Answers of one ballet are not independent; the number of correct ones varies by at most sqrt(n).
        error = 5 * math.sqrt(chance * (1 - chance) * test["num_dancers"] / test["asked"])
        assert abs(test["right"] / test["asked"] - chance) < error


def test_training_has_fewer_dancers_too():
    counts = {count: tiny(num_dancers=count).counts for count in (1, 2, 3, 4, 8)}
    assert counts == {1: [1], 2: [2], 3: [2, 3], 4: [2, 4], 8: [2, 4, 8]}


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_stopped_and_resumed_equals_never_stopped(memory, tmp_path, record):
    config = tiny(memory, num_dancers=4)
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with ProbeEngine(config, run.path) as engine:
        engine.update()
        engine.update()
        engine.save()
        engine.update()  # lost, as no checkpoint follows
    resume(run.path)
    assert [row["charts/dancers"] for row in record(run)] == [2, 4, 2, 4]
    assert record(run) == record(reference)
    assert {**run.result, "seconds": 0} == {**reference.result, "seconds": 0}


def test_the_test_covers_training_and_beyond():
    config = tiny()
    assert config.tests == [(dancers, delay) for dancers in (1, 2, 3) for delay in (1, 2)]
    assert config.count_correct(BalletProbe(config.memory), 3, 2)[1] == 30
    # 70 episodes take two batches of 64; the second batch is truncated.
    longer_config = dataclasses.replace(config, eval_episodes=70)
    assert longer_config.count_correct(BalletProbe(config.memory), 1, 1)[1] == 70


def test_training_and_test_have_seeds_of_their_own(tmp_path, monkeypatch):
    seeds: list[int] = []

    class SeedRecorder(BalletVector):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
            seeds.extend([] if seed is None else [seed])
            return super().reset(seed=seed, options=options)

    monkeypatch.setattr("scrubjay.experiments.runs.ballet_probe.BalletVector", SeedRecorder)
    config = tiny("none", num_dancers=4)
    train(config, tmp_path / "run")
    two, four, *tests = seeds
    assert len(tests) == len(config.tests)
    assert two == four
    assert set(tests) == {tests[0]} != {two}


def test_batches_of_more_dancers_are_the_same_ballets_grown(tmp_path):
    run = Run.create(tiny("none", num_dancers=4, batch_questions=256), tmp_path / "run")
    with ProbeEngine(run.config, run.path) as engine:
        for _ in range(3):
            for envs in engine.envs.values():
                watch(envs)
        two, four = (envs.dance[:64] for envs in engine.envs.values())
    np.testing.assert_array_equal(two, four[:, :2])


def test_with_memory_sets_the_probes_defaults_of_that_memory():
    config = with_memory(RECIPES["ballet-probe-8"](), "hcam")
    assert vars(config.memory)["top_k"] == 16
    assert vars(with_memory(RECIPES["tmaze"](), "hcam").memory)["top_k"] == 4
    assert from_json(to_json(config)) == config
    assert json.loads(to_json(config))["kind"] == "ballet-probe"


@pytest.mark.slow
def test_reports_plot_accuracy_over_delays_and_dancers(tmp_path):
    runs = [train(tiny("none", seed=seed), tmp_path / str(seed)) for seed in (0, 1)]
    assert plot_spans(runs, tmp_path / "delays.png").stat().st_size > 10_000
    assert (runs[0].path / "curve.png").exists()
    (tmp_path / "report").mkdir()
    table, _, *plots = write_report(runs, tmp_path / "report", "the command")
    assert [plot.name for plot in plots] == ["curves.png", "delays.png", "dancers.png"]
    assert f"| tiny-probe | none | {sum(run.result['success'] for run in runs) / 2:.2f}" in table.read_text()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_questions": 1}, "batch_questions=1: must be at least num_dancers=2"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"learning_rate": math.inf}, "learning_rate=inf: must be positive and finite"),
        ({"learning_rate": 1e39}, r"learning_rate=1e\+39: must be at most 3.4e\+38"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_dancers": 9}, "num_dancers=9"),
        ({"eval_delays": (-1,)}, "delay=-1"),
        ({"eval_delays": (0,)}, "delay=0"),
        ({"eval_dancers": (0,)}, "num_dancers=0"),
    ],
)
def test_impossible_ballets_are_errors_before_training(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields).check()
