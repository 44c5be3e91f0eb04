"""`scrubjay export --pretrained`, a policy as a folder with a model card, and `scrubjay results`."""

import csv
import logging
import shutil

import pytest
import torch
from huggingface_hub import ModelCard

from scrubjay.agents import Policy, TeamPolicy
from scrubjay.experiments import RECIPES, Run, train
from scrubjay.experiments.recipes.overrides import override

from .mistakes import TINY


@pytest.fixture(scope="module")
def team_run(tmp_path_factory):
    """Return a run of a small team after a short training."""
    config = override("uav-small", TINY.split())
    return train(config, tmp_path_factory.mktemp("export") / "team")


def assert_alike(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_run_becomes_a_folder_that_loads_and_tells_of_it(here, finished_run, tmp_path):
    code, out, err = here("export", finished_run.path, "--pretrained", "--out", "shared/policy")
    assert (code, err) == (0, "")
    assert "Policy.from_pretrained('shared/policy')" in out
    policy = Policy.from_pretrained(tmp_path / "shared" / "policy")
    assert_alike(finished_run.policy.state_dict(), policy.state_dict())
    data = ModelCard.load(tmp_path / "shared" / "policy" / "README.md").data.to_dict()
    config = finished_run.config
    assert data["environment"] == f"scrubjay.envs:{config.env.id}"
    assert (data["steps"], data["seeds"]) == (finished_run.step, [config.seed])
    (result,) = data["model-index"][0]["results"]
    metrics = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert metrics["mean_reward"] == finished_run.result["episodic_return"]


@pytest.mark.slow
def test_so_does_a_team(here, team_run, tmp_path):
    code, out, err = here("export", team_run.path, "--pretrained", "--out", "team")
    assert (code, err) == (0, "")
    assert "TeamPolicy.from_pretrained('team')" in out
    policy = TeamPolicy.from_pretrained(tmp_path / "team")
    assert_alike(Run.load(team_run.path).team_policy.state_dict(), policy.state_dict())


def test_a_step_goes_into_a_file_of_any_name(here, finished_run, tmp_path, caplog):
    code, out, err = here("export", finished_run.path, "--out", "shared/step")
    assert (code, err) == (0, "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "reloaded; outputs match the policy" in out
    assert (tmp_path / "shared" / "step").exists()


def test_what_cannot_be_exported_is_one_line_and_nothing_is_overwritten(
    usage_error, finished_run, tmp_path_factory
):
    config = (finished_run.path / "config.json").read_text()
    message = usage_error("export", finished_run.path, "--pretrained", "--out", finished_run.path)
    assert "is not the config of a policy" in message
    assert (finished_run.path / "config.json").read_text() == config
    assert "--onnx and --pretrained cannot be combined" in usage_error(
        "export", finished_run.path, "--pretrained", "--onnx"
    )
    probe = Run.create(RECIPES["ballet-probe"](), tmp_path_factory.mktemp("export") / "probe")
    assert "ballet-probe" in usage_error("export", probe.path, "--pretrained", "--out", "x")


def test_results_are_tabulated_and_written_as_csv(here, finished_run, team_run, tmp_path):
    for run in (finished_run, team_run):
        shutil.copytree(run.path, tmp_path / "runs" / run.path.name)
    (tmp_path / "runs" / "bad").mkdir()
    (tmp_path / "runs" / "bad" / "config.json").write_text("{}")
    code, out, err = here("results", "runs")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["run", "status", "seed", "step", "success", "return"]
    assert rows[1] == ["runs/bad", "damaged"]
    result = finished_run.result
    scores = [f"{result[name]:.3f}" for name in ("success", "episodic_return")]
    assert rows[2] == ["runs/finished", "finished", "0", "192", *scores]
    assert rows[3][:4] == ["runs/team", "finished", "0", str(team_run.step)]
    assert out.splitlines()[4].startswith("runs/bad: runs/bad/config.json: ")
    code, text, err = here("results", "runs", "--csv")
    assert (code, err) == (0, "")
    code, out, err = here("results", "runs", "--csv", "all.csv")
    assert (code, out, err) == (0, "all.csv: 3 runs\n", "")
    assert (tmp_path / "all.csv").read_text() == text
    assert [row["status"] for row in csv.DictReader(text.splitlines())] == ["damaged", "finished", "finished"]


def test_wrong_folders_and_files_of_results_are_one_line(usage_error, finished_run):
    assert "nowhere is not a folder" in usage_error("results", "nowhere")
    assert "needs at least one folder, before --csv" in usage_error("results", "--csv", "all.csv")
    config = finished_run.path / "config.json"
    before = config.read_text()
    assert "whose name ends in .csv" in usage_error("results", finished_run.path, "--csv", config)
    assert "expected one file" in usage_error("results", finished_run.path, "--csv", "a.csv", "b.csv")
    assert "No such file" in usage_error("results", finished_run.path, "--csv", "no/a.csv")
    assert config.read_text() == before
