"""`Runs`: one row per run, whatever is in its folder, as a data frame and as CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import random
import shutil
from typing import Any

import pandas as pd
import pytest

from scrubjay.experiments import EnvConfig, Run, Runs, train
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs.status import write_status
from scrubjay.memory.serialization import encode

from .damage import damage, files


@pytest.fixture
def copy(finished_run, tmp_path):
    return shutil.copytree(finished_run.path, tmp_path / "run")


def change(path, file, **fields):
    content = json.loads((path / file).read_text())
    (path / file).write_text(json.dumps(content | fields))


def only_row(path):
    (row,) = Runs.load(path).rows
    return row


def test_a_row_has_the_config_the_seed_the_status_and_the_scores(finished_run):
    row = only_row(finished_run.path)
    config, result = finished_run.config, finished_run.result
    assert row["run"] == str(finished_run.path)
    assert (row["status"], row["seed"]) == ("finished", config.seed)
    assert {name: row[name] for name in result} == result
    last = finished_run.metrics()[-1]
    assert (row["training_success"], row["training_return"]) == (
        last["charts/success"],
        last["charts/episodic_return"],
    )
    assert row["config.policy.memory.name"] == "gru"
    assert row["config.env.kwargs.corridor_length"] == 4

    def lookup(name):
        value: Any = encode(config)
        for part in name.split(".")[1:]:
            value = value[int(part) if isinstance(value, list) else part]
        return value

    settings = [name for name in row if name.startswith("config.")]
    assert len(settings) > 30
    assert all(row[name] == lookup(name) for name in settings)


def test_runs_of_all_kinds_and_states_are_below_one_folder(finished_run, tiny, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "b" / "done")
    for name, last_row in (("unfinished", True), ("stopped early", True), ("failed", False)):
        run = Run.create(tiny(seed=len(name)), tmp_path / name)
        if last_row:
            (run.path / "metrics.jsonl").write_text(
                '{"step": 32, "time/seconds": 2.5, "charts/success": 0.5}\n{"st'
            )
    write_status(tmp_path / "stopped early", "stopped early", 32)
    write_status(tmp_path / "failed", "failed", 8, "OSError: the bulb\nbroke")
    (tmp_path / "no run").mkdir()
    (tmp_path / "no run" / "result.json").write_text("{}")
    sizes = "--memory.dim 16 --total-steps 4096 --parameters 20000 --eval-items 2 --eval-longer 2"
    sequence_run = train(override("mqar", ["--memory", "gru", *sizes.split()]), tmp_path / "sequence")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text("{")
    frame = Runs.load(tmp_path).to_pandas().set_index("run")
    frame.index = frame.index.str.removeprefix(f"{tmp_path}{os.sep}")
    assert dict(frame.status) == {
        "b/done": "finished",
        "damaged": "damaged",
        "failed": "failed",
        "sequence": "finished",
        "stopped early": "stopped early",
        "unfinished": "unfinished",
    }
    assert frame.error["failed"] == "OSError: the bulb broke"
    assert "is not JSON" in frame.error["damaged"]
    assert frame.success.notna().to_dict() == {
        name: status == "finished" for name, status in frame.status.items()
    }
    for name in ("unfinished", "stopped early"):
        assert (frame.step[name], frame.seconds[name], frame.training_success[name]) == (32, 2.5, 0.5)
    assert frame.step["failed"] == 0
    assert frame.seed["unfinished"] == len("unfinished")
    config: Any = sequence_run.config
    for (count, span), score in config.accuracies(sequence_run.result).items():
        assert frame[f"success.num_items={count}.length={span}"]["sequence"] == score
    assert list(Runs.load(tmp_path / "b", tmp_path / "failed").to_pandas().status) == ["finished", "failed"]


def test_a_csv_file_has_the_values_of_the_data_frame(finished_run, copy):
    change(copy, "result.json", episodic_return=-0.5, success=float("nan"))
    runs = Runs.load(finished_run.path, copy)
    read, frame = pd.read_csv(io.StringIO(runs.to_csv())), runs.to_pandas()
    assert list(read.columns) == list(frame.columns) == runs.columns
    assert runs.columns[:6] == ["run", "status", "error", "seed", "step", "seconds"]
    for name in frame.columns:
        absent = frame[name].isna()
        assert list(read[name].isna()) == list(absent), name
        assert list(read[name][~absent]) == list(frame[name][~absent]), name
    assert read.episodic_return[1] == -0.5


FORMULAS = (
    *("=cmd|' /C calc'!A0", "+1", "-1+2", "@SUM(1)", " =1", "\t=1", "=1;=2", '"=1"', "\uff1d1", "\r=1"),
    "1;=2\n=3",
)


def test_no_text_in_a_csv_file_is_a_formula(copy):
    settings = {f"a{number}": text for number, text in enumerate(FORMULAS)}
    change(copy, "config.json", recipe="=1+1", env=encode(EnvConfig("CartPole-v1", {**settings, "=b": -1.5})))
    text = Runs.load(copy).to_csv()
    names, cells = csv.reader(io.StringIO(text))
    row = dict(zip(names, cells, strict=True))
    assert row["config.recipe"] == "'=1+1"
    assert row["config.env.kwargs.=b"] == "-1.5", "a number is no text"
    for value in row.values():
        is_number = value.lstrip("-").replace(".", "").isdecimal()
        assert is_number or not value.strip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "\uff1d"))
    # A program that splits cells at other characters sees quotes around each text.
    assert '"1;=2\n=3"' in text
    assert list(Runs.load(copy).to_pandas()["config.recipe"]) == ["=1+1"]


def test_a_run_of_anothers_environment_runs_no_code(copy, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evilmod.py").write_text("import pathlib; pathlib.Path('harm').touch()")
    for name in ("evilmod:make", "evilmod:Foo-v0", "evilmod.inner:make"):
        change(copy, "config.json", env=encode(EnvConfig(name, {"corridor_length": 4})))
        assert only_row(copy)["status"] == "finished"
    assert not (tmp_path / "harm").exists()


DAMAGES = {
    "status": ("result.json", '{"status": "won"}', "status='won' does not exist"),
    "score": ("result.json", '{"success": "=1"}', "success='=1' is not a number"),
    "seed": ("result.json", '{"success": 1, "seed": 3}', "'seed' is no score"),
    "setting": ("result.json", '{"config.seed": 3}', "'config.seed' is no score"),
    "scores": ("result.json", json.dumps(dict.fromkeys(map(str, range(1001)), 0)), "has 1,001 entries"),
    "metrics": ("metrics.jsonl", "[3]\n", "instead of a JSON object"),
    "text": ("metrics.jsonl", '{"step": "=1"}\n', "step='=1' is not a number"),
    "format": ("config.json", "{}", "has no format number"),
    "deep": ("config.json", "[" * 10**5, "nested too deeply"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_run_has_a_row_with_the_reason(name, copy):
    file, content, reason = DAMAGES[name]
    (copy / file).write_text(content)
    row = only_row(copy)
    assert row["status"] == "damaged"
    assert reason in row["error"]
    assert "success" not in row
    assert ("seed" in row) == (file != "config.json")


def test_settings_links_and_pipes_are_limited(copy, tmp_path):
    (copy / "link").symlink_to("/etc/passwd")
    assert "is a link or a special file" in only_row(copy)["error"]
    (row,) = Runs.load(copy, trust=True).rows
    assert row["status"] == "finished"
    (copy / "link").unlink()
    os.mkfifo(copy / "pipe")
    assert "is a link or a special file" in only_row(copy)["error"]
    (copy / "pipe").unlink()
    settings: dict[str, Any] = dict.fromkeys([f"a{number}" for number in range(1000)], 1)
    change(copy, "config.json", env=encode(EnvConfig("CartPole-v1", settings)))
    assert "the limit is 1,000" in only_row(copy)["error"]
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "loop").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="no run in"):
        Runs.load(tmp_path / "away")


@pytest.mark.parametrize("number", range(40))
def test_each_run_has_one_row_whatever_happened_to_it(number, finished_run, tmp_path):
    shutil.copytree(finished_run.path, tmp_path / "a")
    shutil.copytree(finished_run.path, tmp_path / "b")
    draw = random.Random(number)
    for _ in range(draw.choice((1, 2, 4))):
        if present := files(tmp_path / "a"):
            damage(draw.choice(present), draw)
    rows = Runs.load(tmp_path).rows
    assert [row["run"] for row in rows][-1] == str(tmp_path / "b")
    assert rows[-1]["status"] == "finished"
    assert len(rows) <= 2
    Runs(rows).to_pandas()
    assert len(list(csv.reader(io.StringIO(Runs(rows).to_csv())))) == len(rows) + 1


def test_a_run_in_two_of_the_folders_has_one_row(copy):
    rows = Runs.load(copy.parent, copy, f"{copy}/../{copy.name}").rows
    assert [row["run"] for row in rows] == [str(copy)]


def test_a_folder_without_runs_is_named(tmp_path, finished_run):
    with pytest.raises(ValueError, match=r"no run in .*: no folder in it has a config.json"):
        Runs.load(tmp_path)
    with pytest.raises(ValueError, match="nowhere is not a folder"):
        Runs.load(finished_run.path, "nowhere")


def test_an_extended_run_has_the_settings_of_its_last_total(copy):
    run = Run.load(copy).with_total_steps(384)
    run.write_extension()
    row = only_row(copy)
    assert (row["status"], row["config.total_steps"]) == ("unfinished", 384)
    assert row["config.extensions.0.done"] == 192
    assert dataclasses.asdict(Run.load(copy).config.extensions[0])["total"] == 384
