"""Runs that d9e860e began go on to the end it reached, and serve for all that a run is for."""

import dataclasses
import io
import json
import os
import pickletools
import shutil
import zipfile
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from collect import tiny_run
from material import MADE, RUNS, play_agent, play_team, untimed
from safetensors.torch import load_file

from scrubjay.experiments import Run, resume, train
from scrubjay.experiments.cli import main

PROMISED = json.loads(MADE.with_name("public.json").read_text())
# On one machine the end is the same bit for bit, whatever the threads; other processors round otherwise.
CLOSE: Any = {"rel": 1e-4, "abs": 1e-4}


@pytest.fixture
def run(tmp_path):
    """Return a copy of a run: `run("team")`."""

    def copied(name):
        return shutil.copytree(MADE / name, tmp_path / name)

    return copied


@pytest.fixture
def scrubjay(tmp_path, monkeypatch):
    """Run the command, in an empty folder; return what it says."""
    monkeypatch.chdir(tmp_path)

    def command(*words):
        out = io.StringIO()
        with redirect_stdout(out):
            assert main([str(word) for word in words]) == 0
        return out.getvalue()

    return command


def assert_as_expected(name, run):
    expected = json.loads((MADE / f"{name}.expected.json").read_text())
    rows = [untimed(row) for row in run.metrics()]
    assert len(rows) == len(expected["rows"])
    for row, wanted in zip(rows, expected["rows"], strict=True):
        assert {key: row[key] for key in wanted} == pytest.approx(wanted, **CLOSE)
    result = untimed(run.result)
    tests = zip(result.pop("tests", []), expected["result"].pop("tests", []), strict=True)
    assert all({key: found[key] for key in wanted} == wanted for found, wanted in tests)
    assert {key: result[key] for key in expected["result"]} == pytest.approx(expected["result"], **CLOSE)


def assert_close(found, wanted):
    for name, value in wanted.items():
        if name != "observations":
            assert torch.allclose(found[name].double(), value.double(), rtol=1e-4, atol=1e-4), name


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_to_its_end(name, run):
    stopped = Run.load(run(name))
    assert not stopped.finished
    assert 0 < stopped.step < stopped.config.planned_steps
    with pytest.raises(ValueError, match=r"older versions pickled it.*--trust"):
        resume(stopped.path)
    done = resume(stopped.path, trust=True)
    assert done.finished
    assert_as_expected(name, done)


def test_it_goes_on_further_and_another_begins_with_its_weights(run, tmp_path):
    done: Any = resume(run("agent"), trust=True)
    before = done.step
    further = resume(done.path, total_steps=before + 1)
    assert further.result["step"] == further.step > before
    fields = {"init_from": str(done.path), "total_steps": 32, "eval_episodes": 0}
    begun = train(dataclasses.replace(done.config, **fields), tmp_path / "begun")
    assert begun.config.init_step == further.step


@pytest.mark.parametrize("name", ["agent", "team"])
def test_the_command_resumes_and_draws(name, run, scrubjay, capsys):
    path = run(name)
    assert main(["resume", str(path), "--quiet"]) == 2
    assert "add --trust" in capsys.readouterr().err
    assert "done" in scrubjay("resume", path, "--quiet", "--trust")
    assert_as_expected(name, Run.load(path))
    scrubjay("plot", path, "--out", "curve.svg")
    assert "<svg" in (path.parent / "curve.svg").read_text()
    assert "is finished" in scrubjay("resume", path)


def test_the_agent_acts_as_it_did():
    acted = load_file(MADE / "agent.acted.safetensors")
    assert_close(play_agent(Run.load(MADE / "agent").policy, acted["observations"]), acted)


def test_the_team_acts_as_it_did_in_the_same_world():
    assert_close(play_team(Run.load(MADE / "team").team_policy), load_file(MADE / "team.acted.safetensors"))


def test_the_agent_is_evaluated_played_and_exported(run, scrubjay):
    path = run("agent")
    said = scrubjay("eval", path, "--episodes", 6, "--set", "corridor_length=6")
    assert "tmaze-demo hcam s0 at step 96" in said
    assert "6 episodes" in said
    assert "frames, return" in scrubjay("play", path, "--out", "episode.gif", "--set", "corridor_length=3")
    assert (path.parent / "episode.gif").read_bytes().startswith(b"GIF89a")
    assert "equal to the policy" in scrubjay("export", path)
    assert (path / "policy.pt2").exists()


def test_the_team_is_evaluated_and_played(run, scrubjay):
    path = run("team")
    assert "return of the team" in scrubjay("eval", path, "--episodes", 2)
    said = scrubjay(
        "play", "uav", "--policy", path, "--out", "team.gif", "--max-steps", 3, "--coverage", "map.png"
    )
    assert "4 frames" in said
    assert (path.parent / "map.png").exists()


@pytest.mark.slow
def test_what_each_of_the_team_could_gain_is_told(run, scrubjay):
    said = scrubjay(
        "eval", run("team"), "--episodes", 2, "--best-response", "--response-steps", 100, "--trust"
    )
    assert "after: epsilon" in said


@pytest.mark.parametrize("recipe", PROMISED["configs"])
def test_every_config_is_read_and_written_again(recipe, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(PROMISED["configs"][recipe]))
    again = Run.create(Run.load(tmp_path).config, tmp_path / "again")
    assert json.loads((again.path / "config.json").read_text()) == PROMISED["configs"][recipe]


@pytest.mark.parametrize("memory", PROMISED["memory configs"])
def test_every_memory_of_a_config_is_read(memory, tmp_path):
    config = PROMISED["configs"]["tmaze-demo"]
    config["policy"]["memory"] = PROMISED["memory configs"][memory]
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = Run.create(Run.load(tmp_path).config, tmp_path / "again")
    assert json.loads((again.path / "config.json").read_text()) == config


def test_training_is_told_by_flags_as_ever(scrubjay, tmp_path):
    scrubjay(
        "train", "ppo", "--env", "scrubjay/RepeatPrevious-v0", "--set", "k=2", "--memory", "hcam",
        "--memory.dim", 8, "--policy.memory.chunk-size", 4, "--ppo.epochs", 1, "--env.num-envs", 4,
        "--total-steps", 8, "--segment-length", 2, "--eval-episodes", 0, "--run-dir", "made", "--quiet",
    )  # fmt: skip
    config = json.loads((tmp_path / "made" / "config.json").read_text())
    assert config["env"]["kwargs"] == {"k": 2}
    memory = config["policy"]["memory"]
    assert (memory["name"], memory["dim"], memory["chunk_size"]) == ("hcam", 8, 4)


def modules_in(checkpoint):
    """Return the modules that unpickling a checkpoint's training state would import."""
    with zipfile.ZipFile(checkpoint / "training.pt") as file:
        (name,) = (name for name in file.namelist() if name.endswith("data.pkl"))
        operations = list(pickletools.genops(file.read(name)))
    assert not any(operation.name == "STACK_GLOBAL" for operation, _, _ in operations)
    return {str(value).partition(" ")[0] for operation, value, _ in operations if operation.name == "GLOBAL"}


@pytest.mark.parametrize("name", RUNS)
def test_no_training_state_names_a_module_of_ours(name):
    (checkpoint,) = (MADE / name / "checkpoints").iterdir()
    roots = {module.partition(".")[0] for module in modules_in(checkpoint)}
    assert roots <= {"torch", "numpy", "collections", "_codecs"}


def test_nor_does_one_that_is_written_now(tmp_path):
    latest = tiny_run(tmp_path / "run").latest
    assert latest is not None
    assert {module.partition(".")[0] for module in modules_in(latest)} <= {"torch", "collections"}


def test_a_torn_checkpoint_is_passed_over(run):
    path = run("agent")
    (checkpoint,) = (path / "checkpoints").iterdir()
    os.truncate(checkpoint / "training.pt", 1000)
    assert Run.load(path).latest is None
