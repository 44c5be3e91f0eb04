"""Registered environments, the exports of `scrubjay.envs`, and their import in other processes."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest
from gymnasium.envs.registration import EnvSpec

from scrubjay import envs
from scrubjay.envs import list_environments
from scrubjay.envs.registration import register


def test_every_environment_has_a_single_and_a_batched_form() -> None:
    assert list_environments() == sorted(set(list_environments()))
    for name in list_environments():
        spec = gymnasium.spec(name)
        assert spec.entry_point
        assert spec.vector_entry_point == f"{spec.entry_point}Vector"


def test_an_id_that_the_user_registered_is_not_overwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    name = list_environments()[0]
    own = EnvSpec(name, entry_point="own.module:Environment")
    monkeypatch.setitem(gymnasium.registry, name, own)
    register()
    assert gymnasium.registry[name] is own


def test_the_package_lists_its_exports_and_subpackages() -> None:
    assert {*envs.__all__, "uav"} <= set(dir(envs))
    assert envs.uav.__name__ == "scrubjay.envs.uav"
    with pytest.raises(AttributeError, match=r"'scrubjay\.envs' has no attribute 'nothing'"):
        _ = envs.nothing


def run_python(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_made_in_a_fresh_process():
    code = (
        "import gymnasium\n"
        "env = gymnasium.make('scrubjay.envs:scrubjay/TMaze-v0', corridor_length=50)\n"
        "print(env.reset(seed=0)[0].shape, env.spec.id)\n"
        "env = gymnasium.make_vec('scrubjay.envs:scrubjay/RepeatPrevious-v0', num_envs=8,\n"
        "                         vectorization_mode='vector_entry_point', k=2)\n"
        "print(env.reset(seed=0)[0].shape)\n"
    )
    assert run_python(code).splitlines() == ["(4,) scrubjay/TMaze-v0", "(8,)"]


def test_import_is_cheap_and_may_be_repeated():
    code = (
        "import importlib, sys, gymnasium, scrubjay.envs\n"
        "importlib.reload(scrubjay.envs)\n"
        "print([m for m in ('torch', 'ray', 'PIL', 'scrubjay.envs.tmaze') if m in sys.modules])\n"
        "print(all(i in gymnasium.registry for i in scrubjay.envs.list_environments()))\n"
    )
    assert run_python(code).splitlines() == ["[]", "True"]


@pytest.mark.slow
def test_made_in_a_ray_worker():
    code = (
        "import ray, gymnasium\n"
        "ray.init(address='local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
        "@ray.remote\n"
        "def play():\n"
        "    env = gymnasium.make('scrubjay.envs:scrubjay/TMaze-v0', corridor_length=3)\n"
        "    env.reset(seed=0)\n"
        "    return [env.step(0)[0].tolist() for _ in range(3)]\n"
        "print(ray.get(play.remote()))\n"
        "ray.shutdown()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "[[0.0, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]]"
