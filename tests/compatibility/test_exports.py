"""Models that d9e860e wrote for other programs and for later give the answers they gave."""

import subprocess
import sys

import pytest
import torch
from material import MADE
from safetensors import safe_open
from safetensors.torch import load_file

from scrubjay.memory import SequenceModel

# A program that has nothing of this package.
PROGRAM = """
import sys
import torch
from safetensors.torch import load_file, save_file

program, said, answered = sys.argv[1:]
said = load_file(said)
state = {name.removeprefix("state."): value for name, value in said.items() if name.startswith("state.")}
policy = torch.export.load(program).module()
action, value, after = policy(said["observation"], state, said["start"])
after = {f"after.{name}": value.contiguous() for name, value in after.items()}
save_file({"action": action, "value": value, **after}, answered)
assert "scrubjay" not in sys.modules
"""


def assert_as_said(answered):
    said = load_file(MADE / "policy.said.safetensors")
    wanted = {name: value for name, value in said.items() if name in ("action", "value") or "after." in name}
    assert wanted.keys() == answered.keys()
    for name, value in wanted.items():
        assert torch.allclose(answered[name].double(), value.double(), rtol=1e-4, atol=1e-4), name


def test_an_exported_program_answers_as_it_did(tmp_path):
    files = MADE / "policy.pt2", MADE / "policy.said.safetensors", tmp_path / "answered.safetensors"
    subprocess.run([sys.executable, "-c", PROGRAM, *map(str, files)], check=True, cwd=tmp_path)
    assert_as_said(load_file(files[2]))


def test_an_onnx_model_answers_as_it_did():
    """It holds nothing of ours: what is tested is what other programs were told to hand it."""
    reference = pytest.importorskip("onnx.reference")
    session = reference.ReferenceEvaluator(str(MADE / "policy.onnx"))
    said = load_file(MADE / "policy.said.safetensors")
    states = [name for name in said if name.startswith("state.")]
    by_name = {"observation": said["observation"], "start": said["start"]}
    for name in states:
        (called,) = (one for one in session.input_names if one.endswith(name.removeprefix("state.")))
        by_name[called] = said[name]
    action, value, *after = session.run(None, {name: by_name[name].numpy() for name in session.input_names})
    order = [
        next(name.removeprefix("state.") for name in states if called.endswith(name.removeprefix("state.")))
        for called in session.input_names
        if called not in ("observation", "start")
    ]
    answered = {f"after.{name}": torch.as_tensor(one) for name, one in zip(order, after, strict=True)}
    assert_as_said({"action": torch.as_tensor(action), "value": torch.as_tensor(value), **answered})


def test_a_saved_sequence_model_says_what_it_said(tmp_path):
    model = SequenceModel.from_pretrained(MADE / "model").eval()
    said = load_file(MADE / "model.said.safetensors")
    with torch.no_grad():
        logits, _ = model(said["tokens"], model.initial_state(2))
    assert torch.allclose(logits, said["logits"], rtol=1e-4, atol=1e-4)
    new, _ = model.generate(said["tokens"], said["new"].shape[1], temperature=0)
    assert torch.equal(new, said["new"])
    model.save_pretrained(tmp_path)
    for name in ("config.json", "README.md"):
        assert (tmp_path / name).read_text() == (MADE / "model" / name).read_text()
    weights = "model.safetensors"
    with safe_open(tmp_path / weights, "pt") as ours, safe_open(MADE / "model" / weights, "pt") as theirs:
        assert sorted(ours.keys()) == sorted(theirs.keys())
        assert ours.metadata() == theirs.metadata()
