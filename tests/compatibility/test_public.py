"""What d9e860e promised (`public.json`) is still there: more may be, nothing less, by the same defaults."""

import contextlib
import copy
import io
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from collect import PARTS, commands, flags, missing, said

PROMISED = json.loads(Path(__file__).with_name("public.json").read_text())
REPLACED = {
    "configs": {("ballet",), ("ballet-probe",), ("ballet-probe-4",), ("ballet-probe-8",), ("tmaze",)},
    "members": {
        ("scrubjay.experiments.TrainConfig", "engine"),
        ("scrubjay.experiments.TrainConfig", "run"),
        ("scrubjay.memory.context.LayerMemory", "attend", "scale"),
        ("scrubjay.memory.context.LayerMemory", "compress", "scale"),
        ("scrubjay.memory.context.LayerMemory", "generate", "scale"),
        ("scrubjay.memory.context.LayerMemory", "retrieve", "scale"),
        ("scrubjay.memory.context.PolicyCache", "step", "position_ids"),
    },
    "memory configs": {("hcam on ballet-probe",), ("hcam on ballet-probe-4",), ("hcam on ballet-probe-8",)},
    "ops": {
        ("scrubjay::chunk_retrieval",),
        ("scrubjay::chunk_retrieval_backward",),
        ("scrubjay::chunk_summary",),
        ("scrubjay::chunk_summary_backward",),
        ("scrubjay::sink_attention_backward",),
        ("scrubjay::write_steps",),
        ("scrubjay::write_steps_",),
    },
    "tables": {("bank", "user_version")},
}
"""What CHANGELOG names a substitute for: recipes by which memories learned with no seed, or not with all, by
others; a config is data, and `experiments.train(config)` trains it; slots of policies get all that a model
does to scores where they got its scale; torch's operators are called through the functions of
`scrubjay.kernels`, whose own arguments are promised; a bank's file is brought to a layout with days among
its words."""
WHOLE = ("members", "layouts", "ops", "tables", "files", "choices", "configs", "memory configs")


@cache
def found(part):
    return PARTS[part]()


known_commands = cache(commands)


def check(promised, now, where=""):
    """Fail with one line for each thing that is lost or another."""
    lost = [*missing(promised, now, where)]
    if lost:
        pytest.fail("\n".join(lost), pytrace=False)


def test_nothing_promised_goes_untested():
    assert {*WHOLE, "names", "flags", "benches"} == set(PROMISED)


@pytest.mark.parametrize("package", PROMISED["names"])
def test_a_package_exports_its_names(package):
    check(PROMISED["names"][package], found("names").get(package, []), package)


@pytest.mark.parametrize("part", WHOLE)
def test_what_is_promised_is_there(part):
    promised = copy.deepcopy(PROMISED[part])
    for *owners, name in REPLACED.get(part, ()):
        owner = promised
        for key in owners:
            owner = owner[key]
        owner.remove(name) if isinstance(owner, list) else owner.pop(name)
    check(promised, found(part), part)


@pytest.mark.parametrize("command", PROMISED["flags"])
def test_a_command_has_its_flags_and_defaults(command):
    words = known_commands().get(command)
    assert words is not None, f"scrubjay {command} is missing"
    promised, now = PROMISED["flags"][command], flags(*words)
    if command in {f"train {recipe}" for (recipe,) in REPLACED["configs"]}:
        promised, now = list(promised), list(now)
    check(promised, now, f"scrubjay {command}")


@pytest.mark.parametrize("module", PROMISED["benches"])
def test_a_measurement_is_where_it_was(module):
    assert module in found("benches")


@pytest.mark.parametrize("recipe", PROMISED["choices"]["recipes"])
def test_every_memory_has_its_flags_on_every_recipe(recipe):
    at, like = (
        ("memory.", "mqar") if "memory" in PROMISED["configs"][recipe] else ("policy.memory.", "tmaze-demo")
    )
    for memory in PROMISED["choices"]["memories"]:
        promised = PROMISED["flags"][f"train {like} --memory {memory}"]
        names = [name for name in promised if name.startswith(f"--{at}")]
        check(
            names,
            list(flags("train", recipe, "--memory", memory)),
            f"scrubjay train {recipe} --memory {memory}",
        )


def test_the_command_is_a_module_too():
    """A cluster's head is told to run it so, whatever version submits."""
    done = subprocess.run(
        [sys.executable, "-m", "scrubjay.experiments.cli", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("scrubjay ")


def test_bad_words_are_refused_in_one_line():
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        said("trian")
    assert errors.getvalue().count("\n") == 1
    assert "train" in errors.getvalue()


def test_what_is_lost_or_changed_is_told():
    promised = {"a": ["x", "y"], "b": {"c": 1}, "d": "e"}
    assert list(missing(promised, promised | {"new": 1})) == []
    now = {"a": ["y", "z"], "b": {"c": 2}}
    assert list(missing(promised, now)) == ["a > x is missing", "b > c was 1, is 2", "d is missing"]
    assert list(missing(["x", "y"], ["y", "x"], "a")) == ["a was in the order ['x', 'y'], is ['y', 'x']"]
