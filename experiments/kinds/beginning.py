"""The weights that a run begins with, where they are another run's: what differs where they do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.encoders.shape import is_image
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.kinds.base import Experiment
from scrubjay.experiments.runs.checkpoint import checkpoint_step, load_weights
from scrubjay.memory import serialization

_TOLD = 3
"""Differences that an error names at most."""


@dataclass(frozen=True)
class Source:
    """What is asked of the other run."""

    path: Path
    config: Experiment
    checkpoint: Path
    """Its newest."""
    spaces: Spaces | None
    """Of its environment; None where nothing acts, or nobody wrote them down."""


def weights_of(source: Source, config: Experiment) -> tuple[dict[str, Tensor], int]:
    """Return a run's newest weights, for `config` to begin with, and their step; nothing of it is executed.

    All that a policy's `state_dict` holds comes along, statistics of observations among it, if it has any.
    Raises ValueError, naming in one line what differs and how, if they do not fit.
    """
    ours, theirs = (one.acts or one.kind for one in (config, source.config))
    if ours != theirs:
        told = f"it trained the model of kind {theirs!r}, this run trains one of kind {ours!r}"
        raise _misfit(source, "name a run of the same kind", told)
    if source.spaces is not None:
        _check_spaces(source, source.spaces, config)
    weights = load_weights(source.checkpoint)
    shapes, found = (
        {name: tuple(value.shape) for name, value in part.items()}
        for part in (config.make_model().state_dict(), weights)
    )
    settings = _differences(_settings(config), _settings(source.config))
    named = [told for name, told in settings.items() if name.rpartition(".")[2] == "name"]
    if named or shapes != found:
        told = named or [*(settings or _differences(shapes, found)).values()]
        raise _misfit(source, "set it here as it is there, or name another run", *told)
    return weights, checkpoint_step(source.checkpoint)


def _misfit(source: Source, remedy: str, *differences: str) -> ValueError:
    told = ", ".join(" ".join(difference.split()) for difference in differences[:_TOLD])
    more = f" and {len(differences) - _TOLD} more" if len(differences) > _TOLD else ""
    return ValueError(f"init_from={str(source.path)!r} does not fit: {told}{more}; {remedy}")


def _settings(config: Any) -> dict[str, Any]:
    """Return what shapes the weights, by names such as `policy.memory.dim`."""
    encoded = serialization.encode(config)
    return flat({name: encoded[name] for name in config.shaped_by})


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Return the leaves of nested dicts and lists by the names that lead to them, such as `memory.dim`."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        inner: leaf
        for key, part in parts
        for inner, leaf in flat(part, f"{name}.{key}" if name else str(key)).items()
    }


def _differences(here: dict[str, Any], there: dict[str, Any]) -> dict[str, str]:
    """Return by name what is another value here than there, or only in one of the two, in words."""
    lacking = "nothing"
    return {
        name: f"{name} is {here.get(name, lacking)!r} here and {there.get(name, lacking)!r} there"
        for name in {**here, **there}
        if here.get(name, lacking) != there.get(name, lacking)
    }


def _check_spaces(source: Source, there: Spaces, config: Any) -> None:
    here = config.env.spaces()
    team = here.num_agents is not None
    if team and here.num_agents != there.num_agents and not config.policy.shared:
        told = f"the team has {here.num_agents} agents here and {there.num_agents} there"
        raise _misfit(source, "only policy.shared=True serves teams of other sizes", told)
    remedy = "choose an environment of the same spaces, or name another run"
    if here.action != there.action:
        raise _misfit(source, remedy, f"the action space is {here.action} here and {there.action} there")
    ours, theirs = leaf_spaces(here.observation), leaf_spaces(there.observation)
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs or not _read_alike(ours[name], theirs[name], team):
            part = f" of {name!r}" if name else ""
            seen = f"{ours.get(name, 'nothing')} here and {theirs.get(name, 'nothing')} there"
            raise _misfit(source, remedy, f"the observation space{part} is {seen}")


def _read_alike(here: spaces.Space, there: spaces.Space, team: bool) -> bool:
    """Return whether encoders that may have the same weights read two leaves of observations alike."""
    if here == there:
        return True
    if type(here) is not type(there) or not isinstance(here, spaces.Box | spaces.MultiBinary):
        return False
    # What belongs to a set of a team may be padded to other sizes; of what is not, weights have the sizes.
    ours, theirs = here.shape, there.shape or ()
    if len(ours) != len(theirs) or (ours != theirs and not team):
        return False
    # Bounds scale images and whole numbers, and nothing else.
    floats = all(np.issubdtype(space.dtype, np.floating) for space in (here, there))
    return isinstance(here, spaces.MultiBinary) or (floats and not is_image(here))
