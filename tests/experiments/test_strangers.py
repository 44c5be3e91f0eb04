"""A stranger's run directory: no verb runs code of its, writes elsewhere, or refuses in more than a line."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import pickle
import shutil
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch

from scrubjay.experiments import EnvConfig, Run, resume, train
from scrubjay.experiments.kinds.local import LocalEngine
from scrubjay.experiments.tasks import names
from scrubjay.experiments.tasks.teams import TeamEnvConfig

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("harm").touch()
def Foo(*args, **kwargs): raise ValueError("made")
teams = parallel_env = Foo
import gymnasium
gymnasium.register("Foo-v0", entry_point="evilmod:Foo")
"""
VERBS = [("eval",), ("play", "--out", "x.gif"), ("export",), ("plot",), ("resume", "--quiet")]
ACTING = [verb for verb in VERBS if verb[0] in ("eval", "play", "resume")]
NAMES = [
    ("os:system", {}),
    ("evilmod:Foo", {}),
    ("evilmod:Foo-v0", {}),
    ("evilmod:scrubjay/TMaze-v0", {}),
    ("scrubjay.experiments.tasks.names:FoundName", {}),
    ("GymV26Environment-v0", {"env_id": "evilmod:Foo-v0"}),
    ("CartPole-v1", {"vector_entry_point": "evilmod:Foo"}),
    ("InvertedPendulum-v5", {"xml_file": "evil.xml"}),
]


@pytest.fixture
def stranger(finished_run, tmp_path, monkeypatch):
    """A directory as a stranger may send it, not finished, in a folder with a module of theirs."""
    monkeypatch.setattr(names, "_NAMED", set())  # as in a process of its own
    (tmp_path / "evilmod.py").write_text(EVIL)
    path = shutil.copytree(finished_run.path, tmp_path / "run")
    (path / "result.json").unlink()
    yield path
    sys.modules.pop("evilmod", None)
    gymnasium.registry.pop("Foo-v0", None)


def rewrite(path: Path, **env):
    fields = json.loads((path / "config.json").read_text())
    fields["env"].update(env)
    fields["total_steps"] *= 2
    (path / "config.json").write_text(json.dumps(fields))


def seal(checkpoint: Path):
    """Make the manifest say that all is as it was."""
    files = ("model.safetensors", "training.pt")
    digests = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in files}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 1, "sha256": digests}))


def latest(path: Path) -> Path:
    found = Run.load(path).latest
    assert found is not None
    return found


@pytest.fixture
def refusal(here, tmp_path):
    """Run a verb on the directory; return the one line that refuses it, having looked for harm."""

    def run(verb, path, *more):
        code, _, err = here(verb[0], path, *verb[1:], *more)
        assert not (tmp_path / "harm").exists()
        assert code == 2
        assert err.startswith("scrubjay: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.parametrize("verb", ACTING, ids=lambda verb: verb[0])
@pytest.mark.parametrize(("name", "kwargs"), NAMES)
def test_no_environment_is_made_that_a_file_alone_names(name, kwargs, verb, stranger, refusal):
    rewrite(stranger, id=name, kwargs=kwargs)
    assert "add --trust" in refusal(verb, stranger)


@pytest.mark.parametrize("verb", ACTING, ids=lambda verb: verb[0])
def test_nor_where_the_settings_are_the_users(verb, stranger, here, tmp_path):
    rewrite(stranger, id="evilmod:Foo")
    more = [] if verb[0] == "resume" else ["--set", "corridor_length=3"]
    code, _, err = here(verb[0], stranger, *verb[1:], *more)
    assert (code, "add --trust" in err) == (2, True)
    assert not (tmp_path / "harm").exists()


def test_nor_of_a_team(tmp_path, refusal):
    (tmp_path / "evilmod.py").write_text(EVIL)
    from scrubjay.experiments.kinds import to_json
    from scrubjay.experiments.kinds.team import TeamTaskConfig

    path = tmp_path / "run"
    path.mkdir()
    for name in ("os:system", "evilmod:parallel_env"):
        (path / "config.json").write_text(to_json(TeamTaskConfig(env=TeamEnvConfig(name))))
        assert "add --trust" in refusal(("resume",), path)
        assert "no checkpoint" in refusal(("eval",), path)
        with pytest.raises(ValueError, match="--trust"):
            Run.load(path).config.env.make_teams()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("verb", [("export",), ("plot",)], ids=lambda verb: verb[0])
def test_what_needs_no_environment_asks_for_none(verb, stranger, here, refusal, tmp_path):
    rewrite(stranger, id="evilmod:Foo")
    code, out, err = here(*verb[:1], stranger)
    assert code == 0, err
    assert out
    assert not (tmp_path / "harm").exists()
    (stranger / "environment.json").unlink()
    assert "add --trust" in refusal(verb, stranger)


def test_trust_makes_what_is_named_and_ones_own_run_needs_none(stranger, here, tmp_path):
    rewrite(stranger, id="evilmod:Foo")
    code, _, err = here("eval", stranger, "--trust")
    assert (code, "refuses" in err and "made" in err) == (2, True)
    assert (tmp_path / "harm").exists()
    assert Run.load(stranger).config.env.id == "evilmod:Foo"  # pyright: ignore[reportAttributeAccessIssue]


def test_who_names_the_environment_may_resume_it(stranger, here):
    rewrite(stranger, id="evilmod:Foo")
    assert "made" in here("resume", stranger, "--env", "evilmod:Foo")[2]
    assert "is not of the environment 'CartPole-v1'" in here("resume", stranger, "--env", "CartPole-v1")[2]


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("written", ["torch", "torch without a zip", "pickle"])
def test_no_training_state_is_unpickled(written, stranger, refusal, tmp_path):
    rewrite(stranger)
    checkpoint = latest(stranger)
    harm = {"learner": Harm(tmp_path / "harm"), "random": Harm(tmp_path / "harm")}
    if written == "pickle":
        (checkpoint / "training.pt").write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, checkpoint / "training.pt", _use_new_zipfile_serialization=written == "torch")
    seal(checkpoint)
    assert "add --trust" in refusal(("resume", "--quiet"), stranger)


def test_nor_what_an_environment_is_said_to_have_pickled(stranger, here, tmp_path, caplog):
    rewrite(stranger)
    checkpoint = latest(stranger)
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    written = torch.frombuffer(bytearray(pickle.dumps(Harm(tmp_path / "harm"))), dtype=torch.uint8)
    for entry in training["samplers"]:
        entry["sampler"] |= {"env": None, "pickled env": {"numpy array": written}}
    torch.save(training, checkpoint / "training.pt")
    seal(checkpoint)
    with caplog.at_level(logging.WARNING):
        code, _, err = here("resume", stranger, "--quiet")
    assert code == 0, err
    assert "fresh episodes" in caplog.text
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("lost", ["learner", "samplers", "random", "seconds"])
def test_a_state_of_another_kind_is_one_line(lost, stranger, refusal):
    rewrite(stranger)
    checkpoint = latest(stranger)
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    torch.save(training | {lost: [3]}, checkpoint / "training.pt")
    seal(checkpoint)
    assert "does not fit this run" in refusal(("resume", "--quiet"), stranger)


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
@pytest.mark.parametrize(
    "place", ["metrics.jsonl", ".result.json.writing", "checkpoints/step_00000001", "log.txt"]
)
def test_no_verb_writes_through_a_link(place, verb, stranger, refusal, tmp_path):
    rewrite(stranger)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (stranger / place).unlink(missing_ok=True)
    (stranger / place).symlink_to(precious)
    assert "is a link" in refusal(verb, stranger)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("name", ["step_x", "step_..", "step_-1", "step_1 ", "step_" + "9" * 30, "step_٣"])
def test_checkpoints_of_other_names_are_none(name, stranger, here):
    rewrite(stranger)
    shutil.copytree(latest(stranger), stranger / "checkpoints" / name)
    assert Run.load(stranger).step == 192
    code, _, err = here("resume", stranger, "--quiet")
    assert code == 0, err
    assert (stranger / "checkpoints" / name).is_dir()


@pytest.mark.parametrize("manifest", ["[]", "3", '{"sha256": 3}', '{"sha256": {"../x": 1}}', "[" * 100_000])
def test_a_manifest_of_another_kind_is_of_no_checkpoint(manifest, stranger):
    (latest(stranger) / "manifest.json").write_text(manifest)
    assert Run.load(stranger).latest is None or Run.load(stranger).step < 192


@pytest.mark.parametrize("text", ["[]", "3", '{"kind": []}', '{"kind": "train", "env": 3}', "[" * 100_000])
@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: verb[0])
def test_a_config_of_another_kind_is_one_line(text, verb, stranger, refusal):
    (stranger / "config.json").write_text(text)
    refusal(verb, stranger)


def test_weights_and_spaces_of_another_kind_are_one_line(stranger, refusal):
    (stranger / "environment.json").write_text('{"observation": {"space": "Box", "shape": [1000000000000]}}')
    assert "environment.json" in refusal(("export",), stranger)
    checkpoint = latest(stranger)
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 64)
    seal(checkpoint)
    assert "model.safetensors" in refusal(("export",), stranger)


class Odd(gymnasium.Env):
    """An environment whose state is no plain data."""

    observation_space = action_space = gymnasium.spaces.Discrete(5)

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        return self._seen(), {}

    def step(self, action):
        seen = self._seen()
        return seen, float(seen == action), bool(seen == 0), False, {}

    def get_state(self):
        return {"generator": self.generator}

    def set_state(self, state):
        self.generator = state["generator"]

    def _seen(self):
        return int(self.generator.integers(5))


@pytest.mark.parametrize("trust", [False, True])
def test_a_state_that_is_no_plain_data_goes_on_exactly_only_with_trust(
    trust, tiny, tmp_path, monkeypatch, caplog, assert_same
):
    monkeypatch.setitem(sys.modules, "odd", sys.modules[__name__])
    monkeypatch.setattr(Odd, "__module__", "odd")
    config = tiny(env=EnvConfig("odd:Odd", num_envs=4), eval_episodes=0)
    whole = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.save()
    with caplog.at_level(logging.WARNING):
        resume(run.path, trust=trust)  # which this process has named
    assert ("fresh episodes" in caplog.text) != trust
    if trust:
        assert_same(run, whole)
    assert run.finished


def test_a_learner_whose_state_is_no_plain_data_is_refused_before_anything_is_written(
    tiny, tmp_path, monkeypatch
):
    from scrubjay.agents.rl.ppo import PPO

    monkeypatch.setattr(PPO, "get_state", lambda self: {"generator": np.random.default_rng(0)})
    with pytest.raises(TypeError, match="PPOConfig's learner"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_mark_stays_on_a_name_that_was_only_found(stranger):
    rewrite(stranger, id="evilmod:Foo")
    env = Run.load(stranger).config.env  # pyright: ignore[reportAttributeAccessIssue]
    for same in (dataclasses.replace(env, num_envs=1), pickle.loads(pickle.dumps(env))):
        for make in (same.make, same.make_rows, same.spaces, same.facts, same.success_without_memory):
            with pytest.raises(ValueError, match="--trust"):
                make()
