"""Untrusted run directories: no command runs their code or writes elsewhere, and each error is one line."""

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
from scrubjay.experiments.runs.engine import LocalEngine
from scrubjay.experiments.tasks import environments as names
from scrubjay.experiments.tasks.teams import TeamEnvConfig

EVIL = """
import pathlib
pathlib.Path(__file__).with_name("harm").touch()
def Foo(*args, **kwargs): raise ValueError("made")
teams = parallel_env = Foo
import gymnasium
gymnasium.register("Foo-v0", entry_point="evilmod:Foo")
"""
COMMANDS = [("eval",), ("play", "--out", "x.gif"), ("export",), ("plot",), ("resume", "--quiet")]
ENV_COMMANDS = [command for command in COMMANDS if command[0] in ("eval", "play", "resume")]
NAMES = [
    ("os:system", {}),
    ("evilmod:Foo", {}),
    ("evilmod:Foo-v0", {}),
    ("evilmod:scrubjay/TMaze-v0", {}),
    ("scrubjay.experiments.tasks.environments:UntrustedName", {}),
    ("GymV26Environment-v0", {"env_id": "evilmod:Foo-v0"}),
    ("CartPole-v1", {"vector_entry_point": "evilmod:Foo"}),
    ("InvertedPendulum-v5", {"xml_file": "evil.xml"}),
    ("CartPole-v1", {"render_mode": "human"}),
    ("CartPole-v1", {"render_mode": "human_rgb"}),
    ("scrubjay/TMaze-v0", {"corridor_length": 4, "render_mode": "human"}),
]


@pytest.fixture
def untrusted_run(finished_run, tmp_path, monkeypatch):
    """Yield the directory of an untrusted, unfinished run, in a folder with an untrusted module."""
    monkeypatch.setattr(names, "_USER_NAMES", set())  # as in a new process
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
    """Write a manifest that matches the changed files of a checkpoint."""
    files = ("model.safetensors", "training.pt")
    digests = {name: hashlib.sha256((checkpoint / name).read_bytes()).hexdigest() for name in files}
    (checkpoint / "manifest.json").write_text(json.dumps({"step": 1, "sha256": digests}))


def latest(path: Path) -> Path:
    checkpoint = Run.load(path).latest
    assert checkpoint is not None
    return checkpoint


@pytest.fixture
def expect_refusal(here, tmp_path):
    """Return a function that runs a command, checks that no untrusted code ran and returns its error line."""

    def run(command, path, *more):
        code, _, err = here(command[0], path, *command[1:], *more)
        assert not (tmp_path / "harm").exists()
        assert code == 2
        assert err.startswith("scrubjay: ")
        assert err.count("\n") == 1
        return err

    return run


@pytest.mark.one_in(3)
@pytest.mark.parametrize("command", ENV_COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(("name", "kwargs"), NAMES)
def test_an_environment_that_only_the_file_names_is_not_made(
    name, kwargs, command, untrusted_run, expect_refusal
):
    rewrite(untrusted_run, id=name, kwargs=kwargs)
    assert "add --trust" in expect_refusal(command, untrusted_run)


@pytest.mark.parametrize("command", ENV_COMMANDS, ids=lambda command: command[0])
def test_settings_of_the_user_do_not_trust_the_environment(command, untrusted_run, here, tmp_path):
    rewrite(untrusted_run, id="evilmod:Foo")
    more = [] if command[0] == "resume" else ["--set", "corridor_length=3"]
    code, _, err = here(command[0], untrusted_run, *command[1:], *more)
    assert (code, "add --trust" in err) == (2, True)
    assert not (tmp_path / "harm").exists()


def test_a_team_environment_that_only_the_file_names_is_not_made(tmp_path, expect_refusal):
    (tmp_path / "evilmod.py").write_text(EVIL)
    from scrubjay.experiments.runs.kinds import to_json
    from scrubjay.experiments.runs.reinforcement import TeamTaskConfig

    path = tmp_path / "run"
    path.mkdir()
    for name in ("os:system", "evilmod:parallel_env"):
        (path / "config.json").write_text(to_json(TeamTaskConfig(env=TeamEnvConfig(name))))
        assert "add --trust" in expect_refusal(("resume",), path)
        assert "no checkpoint" in expect_refusal(("eval",), path)
        with pytest.raises(ValueError, match="--trust"):
            Run.load(path).config.env.make_batch()  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("command", [("export",), ("plot",)], ids=lambda command: command[0])
def test_export_and_plot_make_no_environment(command, untrusted_run, here, expect_refusal, tmp_path):
    rewrite(untrusted_run, id="evilmod:Foo")
    code, out, err = here(*command[:1], untrusted_run)
    assert code == 0, err
    assert out
    assert not (tmp_path / "harm").exists()
    (untrusted_run / "environment.json").unlink()
    assert "add --trust" in expect_refusal(command, untrusted_run)


def test_trust_makes_the_environment_that_the_file_names(untrusted_run, here, tmp_path):
    rewrite(untrusted_run, id="evilmod:Foo")
    code, _, err = here("eval", untrusted_run, "--trust")
    assert (code, "rejects" in err and "made" in err) == (2, True)
    assert (tmp_path / "harm").exists()
    assert Run.load(untrusted_run).config.env.id == "evilmod:Foo"  # pyright: ignore[reportAttributeAccessIssue]


def test_a_user_who_names_the_environment_may_resume_it(untrusted_run, here):
    rewrite(untrusted_run, id="evilmod:Foo")
    assert "made" in here("resume", untrusted_run, "--env", "evilmod:Foo")[2]
    assert (
        "does not use the environment 'CartPole-v1'"
        in here("resume", untrusted_run, "--env", "CartPole-v1")[2]
    )


class Harm:
    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("file_format", ["torch", "torch without a zip", "pickle"])
def test_no_training_state_is_unpickled(file_format, untrusted_run, expect_refusal, tmp_path):
    rewrite(untrusted_run)
    checkpoint = latest(untrusted_run)
    harm = {"learner": Harm(tmp_path / "harm"), "random": Harm(tmp_path / "harm")}
    if file_format == "pickle":
        (checkpoint / "training.pt").write_bytes(pickle.dumps(harm))
    else:
        torch.save(harm, checkpoint / "training.pt", _use_new_zipfile_serialization=file_format == "torch")
    seal(checkpoint)
    for trust in ((), ("--trust",)):
        error = expect_refusal(("resume", "--quiet", *trust), untrusted_run)
        assert "is not plain data and is refused" in error


def test_no_environment_state_is_unpickled(untrusted_run, here, tmp_path, caplog):
    rewrite(untrusted_run)
    checkpoint = latest(untrusted_run)
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    payload = torch.frombuffer(bytearray(pickle.dumps(Harm(tmp_path / "harm"))), dtype=torch.uint8)
    for entry in training["samplers"]:
        entry["sampler"] |= {"env": None, "pickled env": {"numpy array": payload}}
    torch.save(training, checkpoint / "training.pt")
    seal(checkpoint)
    with caplog.at_level(logging.WARNING):
        code, _, err = here("resume", untrusted_run, "--quiet")
    assert code == 0, err
    assert "new episodes" in caplog.text
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("key", ["learner", "samplers", "random", "seconds"])
def test_an_invalid_training_state_is_an_error_of_one_line(key, untrusted_run, expect_refusal):
    rewrite(untrusted_run)
    checkpoint = latest(untrusted_run)
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    torch.save(training | {key: [3]}, checkpoint / "training.pt")
    seal(checkpoint)
    assert "does not match this run" in expect_refusal(("resume", "--quiet"), untrusted_run)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
@pytest.mark.parametrize(
    "place", ["metrics.jsonl", ".result.json.writing", "checkpoints/step_00000001", "log.txt"]
)
def test_no_command_writes_through_a_link(place, command, untrusted_run, expect_refusal, tmp_path):
    rewrite(untrusted_run)
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (untrusted_run / place).unlink(missing_ok=True)
    (untrusted_run / place).symlink_to(precious)
    assert "is a link" in expect_refusal(command, untrusted_run)
    assert precious.read_text() == "mine"


LINKS = [".lock", "curve.png", "policy.pt2", "episode.gif", ".curve.png.writing", "log.txt"]
WRITERS = [
    ("plot",),
    ("resume", "--quiet"),
    ("play", "--max-steps", "2"),
    ("export",),
    ("export", "--pretrained"),
]


def digests(folder: Path) -> dict[str, str]:
    files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
    return {str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.mark.one_in(5, rest="slow")
@pytest.mark.parametrize("command", WRITERS, ids=" ".join)
def test_no_command_changes_a_file_that_has_another_name(command, untrusted_run, here, tmp_path):
    rewrite(untrusted_run)
    for name in LINKS:
        (untrusted_run / name).write_text("mine")
    Run.load(untrusted_run).policy.save_pretrained(untrusted_run / "pretrained")
    backup = shutil.copytree(untrusted_run, tmp_path / "backup", copy_function=os.link)
    before = digests(backup)
    code, _, err = here(command[0], untrusted_run, *command[1:])
    assert code == 0, err
    assert digests(backup) == before


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("name", ["step_x", "step_..", "step_-1", "step_1 ", "step_" + "9" * 30, "step_٣"])
def test_folders_with_other_names_are_no_checkpoints(name, untrusted_run, here):
    rewrite(untrusted_run)
    shutil.copytree(latest(untrusted_run), untrusted_run / "checkpoints" / name)
    assert Run.load(untrusted_run).step == 192
    code, _, err = here("resume", untrusted_run, "--quiet")
    assert code == 0, err
    assert (untrusted_run / "checkpoints" / name).is_dir()


@pytest.mark.parametrize("manifest", ["[]", "3", '{"sha256": 3}', '{"sha256": {"../x": 1}}', "[" * 100_000])
def test_a_checkpoint_with_an_invalid_manifest_is_ignored(manifest, untrusted_run):
    (latest(untrusted_run) / "manifest.json").write_text(manifest)
    assert Run.load(untrusted_run).latest is None or Run.load(untrusted_run).step < 192


@pytest.mark.parametrize("text", ["[]", "3", '{"kind": []}', '{"kind": "train", "env": 3}', "[" * 100_000])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_an_invalid_config_is_an_error_of_one_line(text, command, untrusted_run, expect_refusal):
    (untrusted_run / "config.json").write_text(text)
    expect_refusal(command, untrusted_run)


def test_invalid_weights_and_spaces_are_errors_of_one_line(untrusted_run, expect_refusal):
    (untrusted_run / "environment.json").write_text(
        '{"observation": {"space": "Box", "shape": [1000000000000]}}'
    )
    assert "environment.json" in expect_refusal(("export",), untrusted_run)
    checkpoint = latest(untrusted_run)
    (checkpoint / "model.safetensors").write_bytes(b"\xff" * 64)
    seal(checkpoint)
    assert "model.safetensors" in expect_refusal(("export",), untrusted_run)


class Odd(gymnasium.Env):
    """Environment whose state is not plain data."""

    observation_space = action_space = gymnasium.spaces.Discrete(5)

    def __init__(self):
        self.generator = np.random.default_rng(0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        return self._observe(), {}

    def step(self, action):
        observation = self._observe()
        return observation, float(observation == action), bool(observation == 0), False, {}

    def get_state(self):
        return {"generator": self.generator}

    def set_state(self, state):
        self.generator = state["generator"]

    def _observe(self):
        return int(self.generator.integers(5))


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("trust", [False, True])
def test_a_state_that_is_not_plain_data_is_restored_only_with_trust(
    trust, tiny, tmp_path, monkeypatch, caplog, assert_same
):
    monkeypatch.setitem(sys.modules, "odd", sys.modules[__name__])
    monkeypatch.setattr(Odd, "__module__", "odd")
    config = tiny(env=EnvConfig("odd:Odd", num_envs=4), eval_episodes=0)
    reference = train(config, tmp_path / "whole")
    run = Run.create(config, tmp_path / "stopped")
    with LocalEngine(config, run.path) as engine:
        engine.update()
        engine.save()
    with caplog.at_level(logging.WARNING):
        resume(run.path, trust=trust)  # this process has named the environment
    assert ("new episodes" in caplog.text) != trust
    if trust:
        assert_same(run, reference)
    assert run.is_finished


def test_a_learner_state_that_is_not_plain_data_is_refused_before_training(tiny, tmp_path, monkeypatch):
    from scrubjay.agents.rl.ppo import PPO

    monkeypatch.setattr(PPO, "get_state", lambda self: {"generator": np.random.default_rng(0)})
    with pytest.raises(TypeError, match="PPOConfig's learner"):
        train(tiny(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_copies_of_an_untrusted_config_stay_untrusted(untrusted_run):
    rewrite(untrusted_run, id="evilmod:Foo")
    env = Run.load(untrusted_run).config.env  # pyright: ignore[reportAttributeAccessIssue]
    for same in (dataclasses.replace(env, num_envs=1), pickle.loads(pickle.dumps(env))):
        for make in (same.make, same.make_batch, same.spaces, same.facts, same.success_without_memory):
            with pytest.raises(ValueError, match="--trust"):
                make()
