"""Loggers with the services' own clients: logged data, resumed runs, failures during training."""

from __future__ import annotations

import json
import logging
import signal
import sqlite3
import struct
import sys
from contextlib import closing
from typing import Any

import pytest

from scrubjay.experiments import Run, resume, train
from scrubjay.experiments.progress import GracefulInterrupt
from scrubjay.experiments.runs import loggers
from scrubjay.experiments.training import TrainingStartError

from ..conftest import is_timing

UNREACHABLE = "http://127.0.0.1:9"
_BLOCK = 2**15


def messages(log):
    """Yield the messages of a W&B file: a LevelDB log after a header of 7 bytes."""
    assert log.startswith(b":W&B")
    place, message = 7, b""
    while place + 7 <= len(log):
        if _BLOCK - place % _BLOCK < 7:  # too short for a header, hence padding
            place += _BLOCK - place % _BLOCK
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        message += log[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a complete record or its last part
            yield message
            message = b""


@pytest.fixture
def wandb_records(tmp_path, monkeypatch, require):
    """Make W&B write to disk; return a function that reads the records of each opened run."""
    require("wandb")
    import wandb
    from wandb.proto import wandb_internal_pb2

    record: Any = wandb_internal_pb2

    for name, value in {"MODE": "offline", "DIR": tmp_path, "SILENT": "true", "PROJECT": "mazes"}.items():
        monkeypatch.setenv(f"WANDB_{name}", str(value))

    def read():
        wandb.teardown()  # its process has written all data when it exits
        files = tmp_path.glob("wandb/offline-run-*/*.wandb")
        sorted_files = sorted(files, key=lambda path: path.stat().st_mtime)
        return [
            [record.Record.FromString(data) for data in messages(file.read_bytes())] for file in sorted_files
        ]

    return read


@pytest.fixture
def mlflow_client(tmp_path, monkeypatch, require):
    """Make MLflow store its runs in a file; return its client."""
    require("mlflow", "sqlalchemy", "alembic")
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mazes")
    return mlflow.MlflowClient()


def stop_at(step):
    """Return a callback that sends Ctrl-C at a step."""

    def press(now, row):
        if now == step:
            signal.raise_signal(signal.SIGINT)

    return press


def interrupt_run(config, path, logger) -> Any:
    """Return a run interrupted by Ctrl-C after two updates."""
    with pytest.raises(GracefulInterrupt):
        train(config, path, logger=logger, on_update=stop_at(2 * config.steps_per_update))
    return Run.load(path)


def history(records):
    """Return the metrics in W&B's records by step."""
    rows = {}
    for record in records:
        if record.WhichOneof("record_type") == "history":
            row = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            rows[record.history.step.num] = row
    return rows


def metrics_of(rows):
    """Return the metrics without timings and without the service's own columns."""
    return {
        name: value
        for name, value in rows.items()
        if not is_timing(name) and name != "step" and name[0] != "_"
    }


@pytest.mark.slow
def test_wandb_is_told_every_row_and_goes_on_in_the_same_run(tiny, tmp_path, wandb_records):
    run = interrupt_run(tiny(), tmp_path / "run", "wandb")
    resume(run.path, logger="wandb")
    before, after = wandb_records()
    service_runs = [record.run for records in (before, after) for record in records if record.HasField("run")]
    id = json.loads((run.path / "loggers.json").read_text())["wandb"]
    assert {one.run_id for one in service_runs} == {id}
    assert {one.project for one in service_runs} == {"mazes"}
    config = {item.key: json.loads(item.value_json) for item in service_runs[0].config.update}
    assert config["env"]["id"] == run.config.env.id
    rows = history(before) | history(after)
    run_rows = {row["step"]: row for row in run.metrics()}
    assert list(rows) == list(run_rows)
    assert min(history(after)) > max(history(before))
    for step, row in run_rows.items():
        assert metrics_of(rows[step]) == pytest.approx(metrics_of(row))
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in after
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["result/episodic_return"] == run.result["episodic_return"]


@pytest.mark.slow
def test_mlflow_is_told_every_row_and_goes_on_in_the_same_run(tiny, tmp_path, mlflow_client):
    run = interrupt_run(tiny(), tmp_path / "run", "mlflow")
    experiment = mlflow_client.get_experiment_by_name("mazes").experiment_id
    (there,) = mlflow_client.search_runs([experiment])
    assert there.info.status == "KILLED"
    resume(run.path, logger="mlflow")
    (there,) = mlflow_client.search_runs([experiment])
    assert there.info.status == "FINISHED"
    assert there.info.run_id == json.loads((run.path / "loggers.json").read_text())["mlflow"]
    assert there.info.run_name == "run"
    assert there.data.params["env.id"] == run.config.env.id
    for name in metrics_of(run.metrics()[0]):
        expected = {row["step"]: row[name] for row in run.metrics() if name in row}
        points = mlflow_client.get_metric_history(there.info.run_id, name)
        assert {point.step: point.value for point in points} == pytest.approx(expected)
    assert there.data.metrics["result/episodic_return"] == run.result["episodic_return"]


@pytest.mark.slow
def test_a_logger_that_fails_later_is_said_once_and_ends_nothing(tiny, tmp_path, mlflow_client, caplog):
    def lose(step, row):
        with closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
            store.execute("DROP TABLE IF EXISTS metrics")
            store.commit()

    with caplog.at_level(logging.WARNING, "scrubjay"):
        run: Any = train(tiny(), tmp_path / "run", on_update=lose, logger="mlflow")
    assert run.is_finished
    assert len(run.metrics()) == run.config.planned_steps // run.config.steps_per_update > 2
    (warning,) = [
        record.getMessage() for record in caplog.records if "logging to mlflow stopped" in record.getMessage()
    ]
    assert warning.startswith("logging to mlflow stopped (")
    assert "metrics" in warning
    assert "\n" not in warning


@pytest.mark.slow
def test_a_service_that_is_not_there_at_the_start_is_one_line(tiny, tmp_path, monkeypatch, mlflow_client):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", UNREACHABLE)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrainingStartError, match="mlflow cannot be reached: ") as refusal:
        train(tiny(), tmp_path / "run", logger="mlflow")
    assert "\n" not in str(refusal.value)
    assert Run.load(tmp_path / "run").metrics() == []


@pytest.mark.parametrize("name", loggers.LOGGERS)
def test_a_missing_package_is_one_line_with_its_extra(name, usage_error, monkeypatch, tmp_path, finished_run):
    monkeypatch.setitem(sys.modules, name, None)
    remedy = f"pip install 'scrubjay[{name}]'"
    assert remedy in usage_error("train", "tmaze", "--logger", name)
    assert remedy in usage_error("resume", finished_run.path, "--logger", name)
    assert list(tmp_path.glob("runs")) == []


def test_another_logger_is_one_line(usage_error, tiny, tmp_path):
    assert "choose from mlflow, wandb" in usage_error("train", "tmaze", "--logger", "tensorbord")
    launch = ("launch", "tmaze", "--address", UNREACHABLE)
    assert "choose from mlflow, wandb" in usage_error(*launch, "--logger", "tensorbord")
    assert "no dashboard" in usage_error(*launch, "--logger", "wandb"), (
        "it is taken before the recipe is read"
    )
    with pytest.raises(ValueError, match="unknown logger 'wandbb'"):
        train(tiny(), tmp_path / "run", logger="wandbb")
    assert not (tmp_path / "run").exists()


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"wandb": 3}',
        '{"wandb": "../../x"}',
        '{"wandb": ""}',
        '{"who": "a"}',
        '{"mlflow": null}',
    ],
)
def test_a_strangers_name_of_a_run_is_checked(text, tiny, tmp_path, wandb_records):
    run = Run.create(tiny(), tmp_path / "run")
    (run.path / "loggers.json").write_text(text)
    with pytest.raises(TrainingStartError, match=r"loggers\.json"):
        resume(run.path, logger="wandb")
    assert wandb_records() == []
    assert resume(run.path).is_finished, "without a logger the file is not read"
