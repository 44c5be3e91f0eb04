"""`scrubjay export --pretrained`: the run's policy in a folder, and its card tells of the run."""

import logging
from pathlib import Path

import torch
from huggingface_hub import ModelCard

from scrubjay.agents import Policy, TeamPolicy
from scrubjay.experiments import Run

KEPT = Path(__file__).parents[2] / "compatibility" / "d9e860e"
"""Runs of an older version."""


def assert_alike(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_run_becomes_a_folder_that_loads_and_tells_of_it(here, finished_run, tmp_path):
    code, out, err = here("export", finished_run.path, "--pretrained", "--out", "shared/policy")
    assert (code, err) == (0, "")
    assert "Policy.from_pretrained('shared/policy')" in out
    loaded = Policy.from_pretrained(tmp_path / "shared" / "policy")
    assert_alike(finished_run.policy.state_dict(), loaded.state_dict())
    data = ModelCard.load(tmp_path / "shared" / "policy" / "README.md").data.to_dict()
    config = finished_run.config
    assert data["environment"] == f"scrubjay.envs:{config.env.id}"
    assert (data["steps"], data["seeds"]) == (finished_run.step, [config.seed])
    (result,) = data["model-index"][0]["results"]
    told = {metric["type"]: metric["value"] for metric in result["metrics"]}
    assert told["mean_reward"] == finished_run.result["episodic_return"]


def test_so_does_a_team_of_an_older_version(here, tmp_path):
    code, out, err = here("export", KEPT / "team", "--pretrained", "--out", "team")
    assert (code, err) == (0, "")
    assert "TeamPolicy.from_pretrained('team')" in out
    loaded = TeamPolicy.from_pretrained(tmp_path / "team")
    assert_alike(Run.load(KEPT / "team").team_policy.state_dict(), loaded.state_dict())


def test_a_step_goes_into_a_file_of_any_name(here, finished_run, tmp_path, caplog):
    code, out, err = here("export", finished_run.path, "--out", "shared/step")
    assert (code, err) == (0, "")
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert "reloaded, and equal to the policy" in out
    assert (tmp_path / "shared" / "step").exists()


def test_what_cannot_be_exported_is_one_line_and_nothing_is_overwritten(refused, finished_run):
    config = (finished_run.path / "config.json").read_text()
    told = refused("export", finished_run.path, "--pretrained", "--out", finished_run.path)
    assert "something else than a policy" in told
    assert (finished_run.path / "config.json").read_text() == config
    assert "give one of them" in refused("export", finished_run.path, "--pretrained", "--onnx")
    assert "ballet-probe" in refused("export", KEPT / "probe", "--pretrained", "--out", "x")
