"""User modules on the command line: memories, environments and tools."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from scrubjay.experiments.tasks import environments as names
from scrubjay.experiments.tasks.environments import EnvConfig

OWN_MEMORY = """
from dataclasses import dataclass
from scrubjay.memory import register
from scrubjay.memory.gru import GRUConfig

@dataclass(frozen=True)
class OwnConfig(GRUConfig):
    pass

register("mine", OwnConfig)
"""


@pytest.mark.matrix
def test_a_memory_of_a_user_module_is_registered(scrubjay, tmp_path, monkeypatch):
    """The module is imported in the processes of `compare` and when a run is loaded."""
    (tmp_path / "my_memory.py").write_text(OWN_MEMORY)
    monkeypatch.setenv("SCRUBJAY_IMPORT", "my_memory")
    flags = ["--total-steps", 64, "--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 3]
    arguments = ["--memories", "mine", "--recipes", "tmaze-demo", "--seeds", "0", "--out", "runs"]
    code, _, err = scrubjay("compare", *arguments, "--", "--set", "corridor_length=3", *flags)
    assert code == 0, err
    code, out, err = scrubjay("eval", "runs/tmaze-demo-mine-s0", "--episodes", "2")
    assert code == 0, err
    assert "tmaze-demo mine s0" in out
    code, out, err = scrubjay("list")
    assert code == 0, err
    assert re.search("mine +256 B", out)
    monkeypatch.delenv("SCRUBJAY_IMPORT")
    code, _, err = scrubjay("eval", "runs/tmaze-demo-mine-s0")
    assert code == 2
    assert "config.json: unknown memory 'mine'; choose from" in err
    assert err.endswith("; SCRUBJAY_IMPORT names a module that registers your own\n")


def test_an_unknown_memory_error_explains_scrubjay_import(here, monkeypatch):
    code, _, err = here("train", "tmaze-demo", "--memory", "mine")
    assert (code, "SCRUBJAY_IMPORT names a module that registers your own" in err) == (2, True)
    monkeypatch.setenv("SCRUBJAY_IMPORT", "./my_memory.py")
    code, _, err = here("list")
    assert (code, err) == (
        2,
        "scrubjay: SCRUBJAY_IMPORT=./my_memory.py: expected a module name, such as my_memory\n",
    )
    monkeypatch.setenv("SCRUBJAY_IMPORT", "json, my_memries")
    code, _, err = here("list")
    assert (code, err) == (2, "scrubjay: SCRUBJAY_IMPORT=my_memries: No module named 'my_memries'\n")


OWN_ENVIRONMENT = """
import gymnasium

class Walk(gymnasium.Env):
    observation_space = gymnasium.spaces.Discrete(3)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        import beside  # found only once the folder is on the path
        self.left = beside.STEPS
        return 0, {}

    def step(self, action):
        self.left -= 1
        return int(action), float(action), self.left == 0, False, {}

gymnasium.register("Walk-v0", entry_point=Walk)

def twice(word: str) -> str:
    "Say a word twice."
    return word * 2
"""
SHORT = ["--total-steps", 64, "--env.num-envs", 4, "--segment-length", 8, "--eval-episodes", 3, "--quiet"]


@pytest.fixture
def folder(here, tmp_path):
    """Yield a folder with user modules."""
    (tmp_path / "walk.py").write_text(OWN_ENVIRONMENT)
    (tmp_path / "beside.py").write_text("STEPS = 4\n")
    yield tmp_path
    for name in ("walk", "beside"):
        sys.modules.pop(name, None)
    gymnasium.registry.pop("Walk-v0", None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["memory", "add", "b.db", "remember:this"],
        ["memory", "add", "b.db", "note=walk:Walk"],
        ["memory", "search", "b.db", "walk:Walk"],
        ["agent", "walk:Walk?", "--model", "anthropic:claude", "--tools", "none"],
        ["agent", "hi?", "--model", "walk:Walk", "--tools", "none"],
        ["train", "walk:Walk"],
        ["train", "tmaze-demo", "--run-dir", "walk:Walk", "--set", "corridor_length=3", *SHORT],
        ["train", "ppo", "--env", "walk.Walk"],
        ["train", "ppo", "--env", "json:loads"],
        ["list", "--trust"],
    ],
    ids=lambda arguments: " ".join(map(str, arguments[:4])),
)
def test_an_argument_with_a_colon_is_not_imported(here, folder, arguments):
    for name in ("org", "msvcrt", "langchain_anthropic"):  # optional packages try to import them
        (folder / f"{name}.py").write_text(f"open({str(folder / 'ran')!r}, 'w').close()\n")
    here("memory", "add", "b.db", "a fact")
    here(*arguments)
    assert str(folder) not in sys.path
    assert not (folder / "ran").exists()


WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder
from scrubjay.experiments.commands.main import main

class WithoutExtras(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in ("popgym", "minigrid", "mpe2"):
            path = [folder for folder in sys.path if "site-packages" not in folder]
        return PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = WithoutExtras
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    "what", ["popgym:popgym-RepeatPreviousEasy-v0", "minigrid:MiniGrid-MemoryS7-v0", "recipe"]
)
def test_environments_that_the_user_did_not_name_are_not_imported_from_the_folder(
    finished_run, tmp_path, what
):
    """A run may use environments of three extras. A local module must not replace a missing extra."""
    for name in ("popgym", "minigrid", "mpe2"):
        (tmp_path / f"{name}.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    arguments = ["train", "spread", "--run-dir", "new"]
    if what != "recipe":  # in an untrusted run
        shutil.copytree(finished_run.path, tmp_path / "run")
        fields = json.loads((tmp_path / "run" / "config.json").read_text())
        fields["env"] |= {"id": what, "kwargs": {}}
        (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
        arguments = ["eval", "run", "--episodes", "2"]
    command = [sys.executable, "-P", "-c", WITHOUT_EXTRAS, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert "pip install 'scrubjay[" in done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["walk:Walk", "walk:Walk-v0"])
def test_an_environment_of_the_current_folder_is_found_with_its_imports(here, folder, name):
    before = list(sys.path)
    code, _, err = here("train", "ppo", "--env", name, "--memory", "none", "--run-dir", "run", *SHORT)
    assert (code, sys.path) == (0, [*before, str(folder)]), err
    sys.path.remove(str(folder))
    sys.modules.pop("walk")
    names._USER_NAMES.clear()
    gymnasium.registry.pop("Walk-v0")
    os.rename("run", "moved")
    code, _, err = here("eval", "moved", "--episodes", 2)
    assert (code, "--trust" in err) == (2, True)
    assert str(folder) not in sys.path
    code, _, err = here("eval", "moved", "--episodes", 2, "--trust")
    assert (code, sys.path) == (0, [*before, str(folder)]), err


def test_tools_of_the_current_folder_are_found(here, folder, tiny_chat):
    for part in tiny_chat:
        part.save_pretrained(folder / "model")
    arguments = ["--model", "model", "--max-steps", 1, "--max-tokens", 4, "--planning", "json"]
    code, _, err = here("agent", "hi?", "--tools", "walk:twice", *arguments)
    assert (code, sys.path[-1]) == (0, str(folder)), err


def test_programs_that_use_the_library_keep_their_path(folder):
    with pytest.raises(ValueError, match="No module named 'walk'"):
        EnvConfig("walk:Walk").make()
    assert str(folder) not in sys.path


ON_RAY = ["--engine", "ray", "--num-env-runners", 1, "--memory", "none", *SHORT]


def run_as_installed(folder: Path, *arguments: object) -> None:
    """Run the command in `folder`, which is not on the import path, as for an installed command."""
    command = [sys.executable, "-P", "-m", "scrubjay", *map(str, arguments)]
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        command,
        cwd=folder,
        env={**variables, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_workers_import_nothing_of_the_current_folder_that_the_driver_does_not(tmp_path):
    """Ray puts the current folder first on the import path, so a local module would hide an installed one."""
    code = f"open({str(tmp_path / 'ran')!r}, 'w').close()\nraise ImportError\n"
    for name in ("gymnasium", "tree", "torch_geometric"):
        (tmp_path / f"{name}.py").write_text(code)
    run_as_installed(tmp_path, "train", "tmaze-demo", "--run-dir", "run", *ON_RAY)
    assert not (tmp_path / "ran").exists()


@pytest.mark.matrix
def test_workers_find_modules_of_the_user_behind_installed_ones(tmp_path):
    (tmp_path / "walk.py").write_text(OWN_ENVIRONMENT)
    (tmp_path / "beside.py").write_text("STEPS = 4\n")
    (tmp_path / "gymnasium.py").write_text("raise ImportError\n")
    run_as_installed(tmp_path, "train", "ppo", "--env", "walk:Walk", "--run-dir", "run", *ON_RAY)
    arguments = ["--param", "env=walk:Walk", "--out", "sweep", "--memory", "none", *SHORT[:-1]]
    run_as_installed(tmp_path, "sweep", "ppo", *arguments)
