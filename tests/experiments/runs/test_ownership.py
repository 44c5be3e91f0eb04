"""A user's own run needs no `--trust` while its path, its config and its module's files are the same."""

import json
import logging
import os
import pickle
import secrets
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from scrubjay.experiments.runs import ownership
from scrubjay.experiments.runs.run import Run
from scrubjay.experiments.tasks import environments as names

WALK = """
import gymnasium

class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)
    left = 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = 4
        return 0, {}

    def step(self, action):
        self.left -= 1
        return int(action), float(action), self.left == 0, False, {}

gymnasium.register("Walk-v0", entry_point=Walk)
"""
SHORT = ["--total-steps", 64, "--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 3, "--quiet"]
COMMANDS = [
    ["eval", "{run}", "--episodes", 2],
    ["look", "{run}", "--out", "page.html"],
    ["resume", "{run}", "--total-steps", 96, "--quiet"],
    ["train", "--config", "{run}/config.json", "--run-dir", "again", "--quiet"],
]


@pytest.fixture
def forget(monkeypatch):
    """Return a function that makes the next command run as in a new process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = list(sys.path)

    def call():
        sys.path[:] = before
        names._USER_NAMES.clear()
        for name in [name for name in sys.modules if name.partition(".")[0] in ("walk", "own")]:
            del sys.modules[name]
        names.gymnasium.registry.pop("Walk-v0", None)

    yield call
    call()


@pytest.fixture
def state_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "scrubjay" / "runs"


@pytest.fixture
def own_run(here, tmp_path, monkeypatch, forget, state_folder):
    """Train a run of `walk:Walk` in the folder `home` and leave it as the current folder."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    Path("walk.py").write_text(WALK)
    code, _, err = here("train", "ppo", "--env", "walk:Walk", "--memory", "none", "--run-dir", "run", *SHORT)
    assert (code, err) == (0, "")
    forget()
    return tmp_path / "home" / "run"


@pytest.fixture
def call(here, forget):
    """Run a command as in a new process; return the exit code and the error line."""

    def run(command, path="run"):
        code, _, err = here(*(str(word).format(run=path) for word in command))
        forget()
        return code, err

    return run


def plant(folder: Path, file: str = "walk.py") -> Path:
    """Write a module that would create the folder `harm`."""
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(f"import os\nos.makedirs({str(folder / 'harm')!r})\n" + WALK)
    return folder


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_accept_the_users_own_run(command, own_run, call):
    assert call(command) == (0, "")


@pytest.mark.slow
def test_only_the_config_of_an_unchanged_own_run_admits_its_environment(own_run, call):
    command = ["train", "--config", "{run}", "--run-dir", "again", "--quiet"]
    assert call(command, "run/config.json") == (0, "")
    assert call(COMMANDS[0], "again") == (0, ""), "the new run is the user's own, too"
    Path("link.json").symlink_to("run/config.json")
    assert call([*command, "--run-dir", "third"], "link.json") == (0, "")
    shutil.copy("run/config.json", "config.json")
    Path("other.yaml").write_text(Path("run/config.json").read_text())
    Path("changed").mkdir()
    shutil.move("third", "changed/third")
    reasons = {
        "config.json": "this user did not train the run, or it was moved or copied",
        "other.yaml": "other.yaml names it and --env does not",
        "changed/third/config.json": "this user did not train the run, or it was moved or copied",
    }
    for path, reason in reasons.items():
        code, err = call([*command, "--run-dir", "none"], path)
        assert (code, err.count("\n"), reason in err, "add --trust" in err) == (2, 1, True, True)
    assert not Path("none").exists()
    assert call([*command, "--run-dir", "named", "--env", "walk:Walk"], "other.yaml") == (0, "")
    assert call([*command, "--run-dir", "trusted", "--trust"], "other.yaml") == (0, "")
    assert call(COMMANDS[0], "trusted") == (0, "")
    text = Path("run/config.json").read_text()
    Path("run/config.json").write_text(text.replace('"seed": 0', '"seed": 7'))
    code, err = call([*command, "--run-dir", "none"], "run/config.json")
    assert (code, "its config.json has changed since training" in err) == (2, True)


def test_a_record_is_readable_by_its_user_only(own_run, state_folder):
    (file,) = state_folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(state_folder.stat().st_mode) == 0o700
    assert json.loads(file.read_text())["run"] == str(own_run)


def test_an_extended_run_is_still_the_users_own(own_run, call):
    for total_steps in (96, 128):
        assert call(["resume", "run", "--total-steps", total_steps, "--quiet"]) == (0, "")
    assert call(COMMANDS[0]) == (0, "")


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("step", range(3))
def test_a_kill_during_an_extension_leaves_an_own_run(step, own_run, call, monkeypatch):
    """A kill before each of the three writes leaves a run that can be extended."""
    writes, write = [], ownership.write_atomically

    def write_or_stop(*arguments, **options):
        if len(writes) == step:
            raise KeyboardInterrupt
        writes.append(arguments)
        write(*arguments, **options)

    run = Run.load("run").with_total_steps(96)
    with monkeypatch.context() as patch:
        patch.setattr(ownership, "write_atomically", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            run.write_extension()
    assert call(["resume", "run", "--total-steps", 128, "--quiet"]) == (0, "")


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_a_module_of_the_same_name_in_another_folder_is_not_imported(
    command, own_run, call, tmp_path, monkeypatch
):
    elsewhere = plant(tmp_path / "elsewhere")
    monkeypatch.chdir(elsewhere)
    code, err = call(command, own_run)
    assert (code, err.count("\n")) == (2, 1)
    assert f"the module is {elsewhere / 'walk.py'} here and was {own_run.parent / 'walk.py'}" in err
    assert "add --trust" in err
    assert not (elsewhere / "harm").exists()


def test_a_command_in_a_folder_without_the_module_names_the_folder_of_training(
    own_run, call, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    code, err = call(COMMANDS[0], own_run)
    assert code == 2
    assert f"no module named 'walk' is found; training found it in {own_run.parent}" in err


def test_a_link_to_the_module_is_another_module(own_run, call, tmp_path, monkeypatch):
    """The folder of the link could hold other modules that the user's module imports."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "walk.py").symlink_to(own_run.parent / "walk.py")
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, err = call(COMMANDS[0], own_run)
    assert (code, "add --trust" in err) == (2, True)


def test_a_module_that_became_a_link_is_another_module(own_run, call, tmp_path):
    plant(tmp_path / "elsewhere")
    Path("walk.py").unlink()
    Path("walk.py").symlink_to(tmp_path / "elsewhere" / "walk.py")
    code, err = call(COMMANDS[0])
    assert (code, str(tmp_path / "elsewhere" / "walk.py") in err) == (2, True)
    assert not (tmp_path / "elsewhere" / "harm").exists()


@pytest.mark.parametrize("package", ["own", "own.inner"])
def test_the_packages_of_a_module_are_compared_too(
    package, here, call, forget, tmp_path, monkeypatch, state_folder
):
    home, path = tmp_path / "home", package.replace(".", "/")
    (home / path).mkdir(parents=True)
    (home / path / "walk.py").write_text(WALK)
    monkeypatch.chdir(home)
    words = ["train", "ppo", "--env", f"{package}.walk:Walk", "--memory", "none", "--run-dir", "run", *SHORT]
    assert here(*words)[0] == 0
    forget()
    assert call(COMMANDS[0]) == (0, "")
    elsewhere = plant(tmp_path / "elsewhere", f"{path}/__init__.py")
    (elsewhere / path / "walk.py").symlink_to(home / path / "walk.py")
    monkeypatch.chdir(elsewhere)
    code, err = call(COMMANDS[0], home / "run")
    assert (code, "add --trust" in err) == (2, True)
    assert not (elsewhere / "harm").exists()


def test_changed_moved_and_copied_runs_are_refused(own_run, call, here, forget):
    words = ["--env", "walk:Walk-v0", "--memory", "none", "--run-dir", "new", *SHORT]
    assert here("train", "ppo", *words)[0] == 0
    forget()
    shutil.copytree("new", "copy")
    code, err = call(COMMANDS[0], "copy")
    assert (code, "this user did not train the run, or it was moved or copied" in err) == (2, True)
    config = Path("new", "config.json")
    text = config.read_text()
    config.write_text(text + "\n")
    code, err = call(COMMANDS[0], "new")
    assert (code, "its config.json has changed since training" in err) == (2, True)
    config.write_text(text)
    assert call(COMMANDS[0], "new") == (0, "")
    os.rename("new", "moved")
    code, err = call(COMMANDS[0], "moved")
    assert (code, "add --trust" in err) == (2, True)
    os.rename("run", "new")  # another run at a known path
    code, err = call(COMMANDS[0], "new")
    assert (code, "its config.json has changed since training" in err) == (2, True)


def test_a_changed_run_is_not_made_the_users_own_by_an_extension(own_run, call):
    config = Path("run", "config.json")
    config.write_text(config.read_text() + "\n")
    assert call(["resume", "run", "--total-steps", 96, "--quiet", "--trust"]) == (0, "")
    code, err = call(COMMANDS[0])
    assert (code, "its config.json has changed since training" in err) == (2, True)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"paths": 3}', '{"paths": [3], "targets": []}', '{"modules": 3}', '{"modules": [3]}'],
)
def test_a_damaged_record_is_no_record(text, own_run, call, state_folder):
    (file,) = state_folder.iterdir()
    file.write_text(text)
    code, err = call(COMMANDS[0])
    assert (code, err.count("\n")) == (2, 1)
    assert "the record of the run cannot be read" in err


def test_the_states_of_an_own_run_are_not_unpickled(own_run, call, tmp_path, caplog):
    class Harm:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "harm"),)

    checkpoint = Run.load(own_run).latest
    assert checkpoint is not None
    training = torch.load(checkpoint / "training.pt", weights_only=True)
    payload = torch.frombuffer(bytearray(pickle.dumps(Harm())), dtype=torch.uint8)
    for entry in training["samplers"]:
        entry["sampler"] |= {"env": None, "pickled env": {"numpy array": payload}}
    torch.save(training, checkpoint / "training.pt")
    with caplog.at_level(logging.WARNING):
        call(COMMANDS[2])
    assert not (tmp_path / "harm").exists()


SCALE = "import gymnasium\nScale = gymnasium.wrappers.TimeLimit\n"
"""Module `own` with the wrapper `Scale`."""


@pytest.fixture
def wrapped_run(here, tmp_path, monkeypatch, forget, state_folder):
    """Train a run of `walk:Walk` with a wrapper of `own.py` in the folder `home`."""
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    Path("walk.py").write_text(WALK)
    Path("own.py").write_text(SCALE)
    words = ["--wrap", "TimeLimit(max_episode_steps=9)", "--wrap", "own:Scale(max_episode_steps=3)"]
    words += ["--memory", "none", "--run-dir", "run", *SHORT]
    code, _, err = here("train", "ppo", "--env", "walk:Walk", *words)
    assert (code, err) == (0, "")
    forget()
    return tmp_path / "home" / "run"


def test_commands_accept_the_users_own_wrapper(wrapped_run, call):
    for command in sorted(COMMANDS, key=lambda command: command[0] == "resume"):
        assert call(command) == (0, "")


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_the_module_of_a_wrapper_is_compared_too(command, wrapped_run, call, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text(f"import os\nos.makedirs({str(elsewhere / 'harm')!r})\n" + SCALE)
    monkeypatch.chdir(elsewhere)
    monkeypatch.syspath_prepend(str(wrapped_run.parent))
    sys.path.insert(0, str(elsewhere))  # walk.py is the module of training, own.py is another one
    code, err = call(command, wrapped_run)
    assert (code, err.count("\n"), "add --trust" in err) == (2, 1, True)
    assert f"the module is {elsewhere / 'own.py'} here and was {wrapped_run.parent / 'own.py'}" in err
    assert not (elsewhere / "harm").exists()


ENCODER = """
from torch import nn

class Embed(nn.Embedding):
    def forward(self, observation):
        return super().forward(observation)

def make(space, dim):
    return Embed(int(space.n), dim)
"""


def test_the_module_of_an_encoder_is_compared_too(here, call, forget, tmp_path, monkeypatch, state_folder):
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    monkeypatch.chdir(home)
    Path("own.py").write_text(ENCODER)
    words = ["--env", "FrozenLake-v1", "--policy.encoder", "own:make", "--memory", "none", "--run-dir", "run"]
    code, _, err = here("train", "ppo", *words, *SHORT)
    assert (code, err) == (0, "")
    forget()
    for command in sorted(COMMANDS, key=lambda command: command[0] == "resume"):
        assert call(command) == (0, "")
    shutil.copytree("run", "copy")
    shutil.copy("run/config.json", "other.yaml")
    train = ["train", "--config", "other.yaml", "--total-steps", "64", "--quiet", "--run-dir"]
    for command in (COMMANDS[0], [*train, "none"]):
        code, err = call(command, "copy")
        assert (code, err.count("\n"), "add --trust" in err) == (2, 1, True)
        assert "encoder 'own:make': " in err
        assert "own" not in sys.modules
    assert "other.yaml names it and --policy.encoder does not" in err
    assert call([*train, "named", "--policy.encoder", "own:make"]) == (0, "")
    assert call([*COMMANDS[0], "--trust"], "copy") == (0, "")
    elsewhere.mkdir()
    (elsewhere / "own.py").write_text(f"import os\nos.makedirs({str(elsewhere / 'harm')!r})\n" + ENCODER)
    monkeypatch.chdir(elsewhere)
    code, err = call(COMMANDS[0], home / "run")
    assert code == 2
    assert f"the module is {elsewhere / 'own.py'} here and was {home / 'own.py'} in training" in err
    assert not (elsewhere / "harm").exists()


def test_a_wrapper_without_its_module_names_the_folder_of_training(wrapped_run, call):
    Path("own.py").unlink()
    code, err = call(COMMANDS[0])
    assert code == 2
    assert f"no module named 'own' is found; training found it in {wrapped_run.parent}" in err


def test_a_record_of_a_version_without_wrappers_is_valid(own_run, call, state_folder):
    (file,) = state_folder.iterdir()
    fields = json.loads(file.read_text())
    (module,) = fields.pop("modules")
    file.write_text(json.dumps({**fields, **module}))
    assert call(COMMANDS[0]) == (0, "")
    file.write_text(json.dumps({**fields, "paths": [], "targets": []}))
    assert "the module is" in call(COMMANDS[0])[1]


def test_training_continues_without_a_folder_for_records(here, tmp_path, monkeypatch, forget, caplog):
    (tmp_path / "walk.py").write_text(WALK)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    code, _, err = here("train", "ppo", "--env", "walk:Walk", "--memory", "none", "--run-dir", "run", *SHORT)
    assert code == 0, err
    assert "later commands need --trust" in caplog.text


def test_an_extension_continues_if_its_record_cannot_be_written(
    own_run, state_folder, call, caplog, monkeypatch
):
    """The result of the run is deleted before its record is written, so an error there would lose it."""
    (record,) = state_folder.iterdir()
    monkeypatch.setattr(secrets, "token_hex", lambda _: "taken")
    record.with_name(f".{record.name}.taken.writing").mkdir()  # in the place of the temporary file
    assert call(["resume", "run", "--total-steps", 96, "--quiet"])[0] == 0
    assert "later commands need --trust" in caplog.text
    assert "its config.json has changed" in call(COMMANDS[0])[1]


def test_runs_of_known_environments_leave_no_record(here, state_folder):
    words = ["--memory", "none", "--set", "corridor_length=3", "--run-dir", "run", *SHORT]
    assert here("train", "tmaze-demo", *words)[0] == 0
    assert not state_folder.exists()


def test_an_environment_with_a_setting_of_text_is_recorded(here, state_folder, call):
    """Some of gymnasium's environments read a file that a text names, so a text in a file needs trust."""
    words = ["--env", "Blackjack-v1", "--set", "natural=often", "--memory", "none", *SHORT]
    assert here("train", "ppo", *words, "--run-dir", "run")[0] == 0
    names._USER_NAMES.clear()
    assert call(COMMANDS[0]) == (0, "")
    shutil.rmtree(state_folder)
    assert "add --trust" in call(COMMANDS[0])[1]


@pytest.mark.slow
def test_workers_on_ray_import_the_modules_of_an_own_run(tmp_path, monkeypatch):
    (tmp_path / "walk.py").write_text(WALK)
    (tmp_path / "own.py").write_text(SCALE)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    ray = ["--engine", "ray", "--num-env-runners", "1"]
    wrap = ["--wrap", "own:Scale(max_episode_steps=9)"]
    for words in (
        ["train", "ppo", "--env", "walk:Walk", *wrap, "--memory", "none", "--run-dir", "run", *SHORT],
        ["resume", "run", "--total-steps", "96", "--quiet", *ray],
    ):
        done = subprocess.run(
            [sys.executable, "-P", "-m", "scrubjay", *map(str, words)],
            cwd=tmp_path,
            env=variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
