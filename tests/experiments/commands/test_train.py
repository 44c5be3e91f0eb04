"""`scrubjay train` begins what is new, and nothing that somebody else began."""

from __future__ import annotations

import json
import shutil

import pytest

from .forked import run

TINY = ["--total-steps", "64", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "2"]


@pytest.fixture
def stranger(finished_run, tmp_path):
    """A run as a stranger may send it, not finished."""
    path = shutil.copytree(finished_run.path, tmp_path / "run")
    (path / "result.json").unlink()
    return path


@pytest.mark.parametrize("left", ["checkpoints", "metrics.jsonl", "result.json", "environment.json"])
def test_training_begins_in_no_directory_that_holds_what_another_left(left, stranger, tmp_path):
    """It would go on from a stranger's weights, or take a stranger's result for its own."""
    if left == "result.json":
        (stranger / left).write_text('{"success": 1}')
    for path in list(stranger.iterdir()):
        if path.name not in (left, ".lock"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    ended = run(["train", "tmaze", "--run-dir", "run", *TINY], tmp_path, seconds=30)
    assert ended.code == 2
    assert f"run holds {left} of a run without its config.json" in ended.err
    assert sorted(path.name for path in stranger.iterdir()) == sorted({left, ".lock"})


def test_nor_where_a_run_is(stranger, tmp_path):
    fields = json.loads((stranger / "config.json").read_text())
    fields["env"]["id"] = "evilmod:Foo"
    (stranger / "config.json").write_text(json.dumps(fields))
    (tmp_path / "evilmod.py").write_text("import pathlib; pathlib.Path('harm').touch()")
    before = {path: path.read_bytes() for path in stranger.rglob("*.json*")}
    for more in ([], ["--trust"]):
        ended = run(["train", "tmaze", "--run-dir", "run", *more], tmp_path, seconds=30)
        assert ended.code == 2
        assert "already holds a run" in ended.err or "unknown option '--trust'" in ended.err
    assert not (tmp_path / "harm").exists()
    assert {path: path.read_bytes() for path in stranger.rglob("*.json*")} == before
