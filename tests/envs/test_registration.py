"""Registered environments and the exports of `scrubjay.envs`."""

from __future__ import annotations

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
