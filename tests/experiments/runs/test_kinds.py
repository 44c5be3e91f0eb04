from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.rl.policy import PolicyConfig
from scrubjay.agents.rl.ppo import PPOConfig
from scrubjay.experiments import EnvConfig, TrainConfig
from scrubjay.experiments.cli.arguments import parse_setting
from scrubjay.experiments.runs.kinds import from_json, to_json
from scrubjay.memory import list_memories, make_config

kwarg_values = st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
configs = st.builds(
    TrainConfig,
    recipe=st.text(),
    env=st.builds(
        EnvConfig,
        id=st.text(),
        kwargs=st.dictionaries(st.text(), kwarg_values),
        num_envs=st.integers(1, 1000),
        subprocesses=st.booleans(),
    ),
    policy=st.builds(
        PolicyConfig,
        memory=st.builds(
            make_config, st.sampled_from(list_memories()), dim=st.integers(4, 64).map(lambda half: 2 * half)
        ),
        reconstruction=st.booleans(),
    ),
    learner=st.builds(
        PPOConfig,
        gamma=st.floats(0, 1),
        epochs=st.integers(1, 9),
        target_kl=st.none() | st.floats(0, 1, exclude_min=True),
    ),
    total_steps=st.integers(1, 10**12),
    seed=st.integers(0, 2**40),
    device=st.sampled_from(["auto", "cpu", "cuda"]),
)


def with_types(value: Any) -> Any:
    """Return a value with its types, since 1 == 1.0 == True."""
    if dataclasses.is_dataclass(value):
        fields = {field.name: with_types(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return type(value), fields
    if isinstance(value, dict):
        return {name: with_types(item) for name, item in value.items()}
    return type(value), value


@given(configs)
def test_config_survives_json_types_included(config):
    assert with_types(from_json(to_json(config), trust=True)) == with_types(config)
    assert from_json(to_json(config)) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["policy"]["memory"].update(name="gruu"), "gruu"),
        (lambda c: c["policy"]["memory"].update(dim=7), "dim=7"),
        (lambda c: c["policy"]["memory"].update(wings=2), "no field wings"),
        (lambda c: c.update(device="tpu"), "config.device='tpu': choose from auto, cpu, cuda"),
        (lambda c: c.update(total_steps="many"), "config.total_steps='many': expected int"),
        (lambda c: c.update(seed=True), "config.seed=True: expected int"),
        (lambda c: c["learner"].update(lambda_=1), "config.learner has no field lambda_"),
        (lambda c: c.update(kind="bake"), "kind='bake'"),
    ],
)
def test_an_invalid_config_field_is_named(tiny, change, message):
    fields = json.loads(to_json(tiny()))
    change(fields)
    with pytest.raises(ValueError, match=message):
        from_json(json.dumps(fields))


@pytest.mark.parametrize("number", [None, 1, 3, "2", 2.0, True, [2]])
def test_a_config_of_another_format_is_refused(tiny, number):
    """A config of another version is never read with another meaning."""
    fields = json.loads(to_json(tiny()))
    fields["format"] = number
    if number is None:
        del fields["format"]
    with pytest.raises(
        ValueError, match=r"config.json has .*format.*: Scrubjay 0.* reads format 2; load it with"
    ):
        from_json(json.dumps(fields))


def test_updates_are_rounded_up(tiny):
    assert tiny(total_steps=1).planned_steps == 32
    assert tiny(total_steps=32).planned_steps == 32
    assert tiny(total_steps=33).planned_steps == 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("corridor-length=50", ("corridor_length", 50)),
        ("x=1e-3", ("x", 0.001)),
        ("active=true", ("active", True)),
        ("name=a=b", ("name", "a=b")),
    ],
)
def test_settings_get_their_type(text, expected):
    assert with_types(dict([parse_setting(text)])) == with_types(dict([expected]))


def test_a_setting_without_value_is_refused():
    with pytest.raises(ValueError, match="'corridor': write it as name=value"):
        parse_setting("corridor")
