"""Sequence tasks: training, resumption, tests on longer sequences and comparisons."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from scrubjay.experiments import RECIPES, Run, resume, train, with_memory
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.experiments.runs.sequence import SequenceEngine, SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import MQAR, Induction, SelectiveCopy, Swaps
from scrubjay.experiments.viz.comparison import write_report
from scrubjay.memory import make_config

RECIPES_HERE = ("mqar", "needle", "multikey-needle", "selective-copy", "induction")


def tiny(memory: str = "gru", **fields: Any) -> SequenceTaskConfig:
    """Return a config of four batches of short sequences."""
    config = SequenceTaskConfig(
        recipe="tiny-mqar",
        suite=MQAR(vocab_size=20, length=16, num_items=4),
        memory=make_config(memory, dim=8),
        parameters=8_000,
        batch_rows=4,
        total_steps=4 * 64,
        eval_rows=6,
        eval_items=(1,),
        eval_longer=(2,),
    )
    return dataclasses.replace(config, **fields)


@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_stopped_and_resumed_equals_never_stopped(memory, tmp_path, assert_same, record):
    config = tiny(memory)
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with SequenceEngine(config, run.path) as engine:
        engine.update()
        engine.update()
        engine.save()
        engine.update()  # lost, as no checkpoint follows
    resume(run.path)
    assert [row["charts/items"] for row in record(run)] == [2, 4, 2, 4]
    assert_same(run, reference)
    assert (run.path / "curve.png").exists()


def tiny_swaps(**fields: Any) -> SequenceTaskConfig:
    """Return a config of eight batches of products of permutations."""
    suite = Swaps(size=4, num_items=3, vocab_size=24, length=16)
    return tiny(suite=suite, eval_items=(), total_steps=8 * 64, **fields)


def test_a_curriculum_adds_one_number_of_items_after_another(tmp_path, assert_same, record):
    config = tiny_swaps(curriculum=0.75)
    reference = train(config, tmp_path / "whole")
    assert [row["charts/items"] for row in record(reference)] == [1, 1, 1, 2, 1, 2, 1, 2]
    run = Run.create(config, tmp_path / "stopped")
    with SequenceEngine(config, run.path) as engine:
        for _ in range(4):
            engine.update()
        engine.save()
    resume(run.path)
    assert_same(run, reference)


def test_a_suite_decides_on_its_numbers_of_items():
    assert tiny_swaps().counts == tiny_swaps().counts_at(0, 512) == [1, 2, 3]
    assert tiny().counts == tiny().counts_at(0, 256) == [2, 4]
    slow = tiny_swaps(curriculum=1.0)
    assert [slow.counts_at(step, 512) for step in (0, 255, 256, 511, 512)] == [
        [1],
        [1],
        [1, 2],
        [1, 2],
        [1, 2, 3],
    ]


@pytest.mark.matrix
def test_killed_and_resumed_equals_never_stopped(tmp_path, start, assert_same):
    config = tiny(total_steps=400 * 64, checkpoint_seconds=0.1)
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "killed")
    process = start("resume", run.path, "--quiet")
    while process.poll() is None and not (run.step and run.metrics()[-1]["step"] > run.step):
        pass
    process.kill()
    process.wait()
    assert not run.is_finished
    resume(run.path)
    assert_same(run, reference)


def test_the_result_holds_accuracies_sizes_and_state_bytes(tmp_path):
    run = train(tiny(), tmp_path / "run")
    result, config = run.result, tiny()
    assert config.tests == [(1, 16), (1, 32), (4, 16), (4, 32)]
    assert [(test["num_items"], test["length"], test["asked"]) for test in result["tests"]] == [
        (1, 16, 6),
        (1, 32, 6),
        (4, 16, 24),
        (4, 32, 24),
    ]
    assert result["success"] == config.accuracies(result)[4, 16]
    assert abs(result["parameters"] - 8_000) <= 80
    assert result["state_bytes"] == 2 * 4 * (8 + 2 * 8)  # hidden vectors, and two inputs for the convolutions


def test_reading_in_pieces_is_reading_at_once(monkeypatch):
    """Sequences that do not fit into one batch are counted, too."""
    config = tiny(eval_rows=7)
    torch.manual_seed(0)
    model = config.make_model().double()
    pieces = config.count_correct(model, 2, 48)
    suite = config.suite.with_sizes(2, 48)
    with monkeypatch.context() as patch:
        patch.setattr("scrubjay.experiments.runs.sequence._EVAL_TOKENS", 48)
        assert config.count_correct(model, 2, 48)[1] == pieces[1] == 14
    token_pieces = []
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda tokens, *rest: token_pieces.append(tokens) or forward(tokens, *rest)
    )
    config.count_correct(model, 2, 48)
    tokens = torch.cat(token_pieces, dim=1)
    labels = suite.draw(7, seed_of_evaluation(config)).labels
    logits, _ = forward(tokens, model.initial_state(7))
    assert int((logits.argmax(dim=-1) == labels).sum()) == pieces[0]


def seed_of_evaluation(config: SequenceTaskConfig) -> int:
    from scrubjay.experiments.runs.config import derive_seed

    seed = derive_seed(config.seed, "evaluation")
    assert seed != derive_seed(config.seed, "sampling")
    return seed


@pytest.mark.one_in(2)
@pytest.mark.slow
@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_a_memory_learns_what_none_can(memory, tmp_path):
    suite = SelectiveCopy(vocab_size=6, length=24, num_items=2)
    config = tiny(suite=suite, parameters=60_000, batch_rows=32, total_steps=300 * 768, eval_rows=200)
    config = dataclasses.replace(config, memory=make_config(memory, dim=32), eval_longer=())
    assert train(config, tmp_path / "run").result["success"] > 0.9
    without = train(config.with_memory(make_config("none", dim=32)), tmp_path / "none").result["success"]
    assert without < 0.5  # 0.25 by guessing, more where the convolutions of its two blocks reach the data


@pytest.mark.parametrize("recipe", RECIPES_HERE)
def test_recipes_fit_their_budget_with_every_size_of_test(recipe):
    config: Any = RECIPES[recipe]()
    config.check()
    assert from_json(to_json(config)) == config
    fields = json.loads(to_json(config))
    assert fields["kind"] == "sequence-task"
    assert fields["suite"]["kind"] == config.suite.kind
    assert {length // config.suite.length for _, length in config.tests} >= {1, 2, 4, 8, 16}


def test_flags_reach_suite_and_memory():
    config: Any = override(
        "mqar",
        ["--memory", "hcam", "--memory.chunk-size", "8", "--suite.num-items", "4", "--num-blocks", "1"],
    )
    assert (config.label, config.memory.chunk_size, config.suite.num_items, config.num_blocks) == (
        "hcam",
        8,
        4,
        1,
    )
    config = override("induction", ["--suite.length", "32"])
    assert config.suite == Induction(length=32)


def test_a_wrong_suite_in_a_config_is_named():
    fields = json.loads(to_json(tiny()))
    fields["suite"]["kind"] = "mqr"
    with pytest.raises(ValueError, match=r"config\.suite\.kind='mqr': choose from induction, mqar"):
        from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"parameters": 100},
            "budget=100 parameters: no feed-forward width matches; .* of GRUConfig with width 8",
        ),
        ({"eval_items": (5,)}, "length=16: must be at least 20"),
        ({"suite": Induction(vocab_size=20, length=16), "eval_items": (2,)}, "num_items=2: induction"),
    ],
)
def test_impossible_settings_are_errors_before_training(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields).check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_rows": 0}, "batch_rows=0"),
        ({"eval_rows": 0}, "eval_rows=0"),
        ({"eval_longer": (0,)}, "eval_longer=0"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"curriculum": 1.5}, "curriculum=1.5: must be a share from 0 to 1"),
        ({"curriculum": float("nan")}, "curriculum=nan"),
    ],
)
def test_impossible_settings_are_refused_by_name(fields, message):
    with pytest.raises(ValueError, match=message):
        tiny(**fields)


def test_the_report_has_a_table_and_plots(tmp_path):
    runs = [train(tiny(memory), tmp_path / memory) for memory in ("none", "gru")]
    (tmp_path / "report").mkdir()
    table, scores, *plots = write_report(runs, tmp_path / "report", "the command")
    assert scores.name == "scores.jsonl"
    assert [plot.name for plot in plots] == ["curves.png", "lengths.png", "items.png", "state.png"]
    assert all(plot.stat().st_size > 5_000 for plot in plots)
    text = table.read_text()
    assert f"| tiny-mqar | gru | {runs[1].result['parameters']:,} | 192 |" in text
    assert "| memory | key-value pairs | 16 | 32 |" in text
    assert f"| gru | 4 | {runs[1].result['success']:.2f} |" in text


@pytest.mark.slow
def test_compare_trains_what_is_missing_and_goes_on(capfd, tmp_path):
    arguments = ["compare", "--memories", "none", "gru", "--recipes", "mqar", "--seeds", "0", "--jobs", "1"]
    flags = ["--suite.length", "16", "--suite.num-items", "2", "--total-steps", "128"]
    flags += ["--batch-rows", "4", "--eval-rows", "4", "--eval-items", "1", "--eval-longer", "2"]
    assert main([*arguments, "--out", str(tmp_path), "--", *flags]) == 0
    files = [line.rpartition("/")[2] for line in capfd.readouterr().out.splitlines()[-6:]]
    assert files == ["table.md", "scores.jsonl", "curves.png", "lengths.png", "items.png", "state.png"]
    table = (tmp_path / "table.md").read_text()
    for row in ("| mqar | gru | 1", "| mqar | gru |", "| memory | key-value pairs | 16 | 32 |", "| 1,536 |"):
        assert row in table
    for file in files[2:]:
        assert (tmp_path / file).stat().st_size > 5_000
    before = (tmp_path / "mqar-gru-s0" / "metrics.jsonl").read_text()
    assert main([*arguments, "--out", str(tmp_path), "--", *flags]) == 0
    assert (tmp_path / "mqar-gru-s0" / "metrics.jsonl").read_text() == before


def test_train_from_the_command_line(capsys, tmp_path):
    flags = ["--suite.length", "12", "--total-steps", "192", "--batch-rows", "4", "--eval-rows", "4"]
    arguments = ["train", "selective-copy", "--memory", "hcam", "--memory.dim", "16", "--parameters", "20000"]
    arguments += [
        "--suite.num-items",
        "3",
        "--eval-items",
        "2",
        "--eval-longer",
        "2",
        "--run-dir",
        str(tmp_path / "run"),
    ]
    assert main([*arguments, *flags]) == 0
    assert "done: success" in capsys.readouterr().out
    assert main(["plot", str(tmp_path / "run"), "--out", str(tmp_path / "curve.png")]) == 0
    assert main(["eval", str(tmp_path / "run")]) == 0
    assert "selective-copy hcam s0" in capsys.readouterr().out
    assert main(["export", str(tmp_path / "run")]) == 2
    assert "'sequence-task': it has no policy" in capsys.readouterr().err


def test_the_width_stays_with_another_memory():
    config: Any = with_memory(RECIPES["mqar"](), "hcam")
    assert config.memory.dim == RECIPES["mqar"]().memory.dim
