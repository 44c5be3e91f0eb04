from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv

from scrubjay.agents import Policy, Sampler, Segment

Envs = Callable[[int], SyncVectorEnv]


def leaves(segment: Segment) -> dict[str, torch.Tensor]:
    fields_by_name = {}
    for field in fields(segment):
        value = getattr(segment, field.name)
        fields_by_name |= value if isinstance(value, dict) else {field.name: value}
    return fields_by_name


def test_cat_undoes_rows(scripted_envs: Envs, make_policy: Callable[..., Policy]) -> None:
    segment = Sampler(scripted_envs(5), make_policy(), 7).collect()
    assert segment.num_rows == 5
    assert segment.num_steps == 35
    parts = [segment.rows(torch.tensor(index)) for index in ([0, 1], [2], [3, 4])]
    joined_leaves, original = leaves(Segment.cat(parts)), leaves(segment)
    assert joined_leaves.keys() == original.keys()
    assert all(torch.equal(joined_leaves[key], original[key]) for key in original)


def test_rows_keep_the_given_order(scripted_envs: Envs, make_policy: Callable[..., Policy]) -> None:
    segment = Sampler(scripted_envs(4), make_policy(), 3).collect()
    selected_leaves, original = leaves(segment.rows(torch.tensor([2, 0]))), leaves(segment)
    assert all(torch.equal(selected_leaves[key], original[key][[2, 0]]) for key in original)


def test_unequal_lengths_and_nothing_are_refused(
    scripted_envs: Envs, make_policy: Callable[..., Policy]
) -> None:
    policy = make_policy()
    segments = [Sampler(scripted_envs(2), policy, length).collect() for length in (3, 4)]
    with pytest.raises(ValueError, match=r"lengths \[3, 4\]"):
        Segment.cat(segments)
    with pytest.raises(ValueError, match="at least one"):
        Segment.cat([])


def test_to_changes_the_device_of_everything(make_policy: Callable[..., Policy], scripted_envs: Envs) -> None:
    segment = Sampler(scripted_envs(2), make_policy(observation_space=spaces.Box(-9, 9, (3,))), 3).collect()
    assert all(leaf.device.type == "meta" for leaf in leaves(segment.to("meta")).values())
