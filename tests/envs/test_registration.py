"""Environments by their names, and the face that knows them."""

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


def test_what_a_user_registered_by_our_name_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    name = list_environments()[0]
    own = EnvSpec(name, entry_point="own.module:Environment")
    monkeypatch.setitem(gymnasium.registry, name, own)
    register()
    assert gymnasium.registry[name] is own


def test_the_face_tells_its_names_and_its_packages() -> None:
    assert {*envs.__all__, "uav"} <= set(dir(envs))
    assert envs.uav.__name__ == "scrubjay.envs.uav"
    with pytest.raises(AttributeError, match=r"'scrubjay\.envs' has no attribute 'nothing'"):
        _ = envs.nothing
