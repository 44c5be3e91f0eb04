"""Stored runs, policies and models can still be loaded: `stored/` has one of each, in today's format.

After a change of a format, raise `memory.serialization.FORMAT` and write the files again:
`python -m tests.experiments.runs.test_file_formats` from the root of the repository.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scrubjay.agents import PolicyConfig, PPOConfig
from scrubjay.agents.rl.policy import Policy
from scrubjay.experiments import EnvConfig, Run, TrainConfig, resume, train
from scrubjay.experiments.runs.checkpoint import load_training
from scrubjay.memory import make_config
from scrubjay.memory.sequence import SequenceConfig, SequenceModel
from scrubjay.memory.serialization import FORMAT

STORED = Path(__file__).with_name("stored")
CONFIG = TrainConfig(
    recipe="stored",
    env=EnvConfig("scrubjay/TMaze-v0", {"corridor_length": 4}, num_envs=2),
    # The default of `images` when the files were written.
    policy=PolicyConfig(
        memory=make_config("hcam", dim=8, chunk_size=2, num_chunks=2, top_k=1), images="convolution"
    ),
    # The default rate and minimum when the files were written.
    learner=PPOConfig(learning_rate=3e-4, epochs=1, num_minibatches=2, least_deviation=0.0),
    total_steps=16,
    segment_length=8,
    device="cpu",
    eval_episodes=2,
)


def outputs(run: Run, model: SequenceModel) -> dict[str, Any]:
    """Return numbers that depend on all weights: sums of the weights, and the logits of two tokens."""
    logits, _ = model(torch.tensor([[1, 2]]), model.initial_state(1))
    sums = {name: value.double().sum().item() for name, value in run.policy.state_dict().items()}
    return {"sums": sums, "logits": logits.flatten().tolist()}


def write() -> None:
    """Write `stored/` again."""
    shutil.rmtree(STORED, ignore_errors=True)
    run = train(CONFIG, STORED / "run")
    for file in [*run.path.glob("events.out.*"), run.path / "curve.png", run.path / ".lock"]:
        file.unlink(missing_ok=True)
    run.policy.save_pretrained(STORED / "policy")
    torch.manual_seed(0)
    model = SequenceConfig(5, make_config("gated_delta", dim=8), num_blocks=1).build()
    model.save_pretrained(STORED / "model")
    for card in STORED.rglob("README.md"):
        card.unlink()
    (STORED / "outputs.json").write_text(json.dumps(outputs(run, model), indent=1) + "\n")


def test_stored_files_are_read_with_the_same_meaning():
    run = Run.load(STORED / "run")
    assert run.config == CONFIG
    assert (run.step, run.result["episodes"], len(run.metrics())) == (16, 2, 1)
    policy = Policy.from_pretrained(STORED / "policy")
    weights = run.policy.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in policy.state_dict().items())
    model = SequenceModel.from_pretrained(STORED / "model", local_files_only=True)
    expected = json.loads((STORED / "outputs.json").read_text())
    actual = outputs(run, model)
    assert actual["sums"] == pytest.approx(expected["sums"], abs=1e-9)
    assert actual["logits"] == pytest.approx(expected["logits"], abs=1e-5)


def test_a_stored_run_is_trained_further(tmp_path):
    path = shutil.copytree(STORED / "run", tmp_path / "run")
    before = load_training(Run.load(path).checkpoint)
    run = resume(path, total_steps=32)
    assert run.step == 32
    assert [row["step"] for row in run.metrics()] == [16, 32]
    after = load_training(run.checkpoint)
    assert after.keys() == before.keys()
    assert after["samplers"][0].keys() == before["samplers"][0].keys()


def test_each_stored_config_has_the_number_of_its_format():
    for name in ("run", "policy", "model"):
        assert json.loads((STORED / name / "config.json").read_text())["format"] == FORMAT


if __name__ == "__main__":
    write()
