"""Loading of initial weights from another run. If they do not match, the error names the differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from torch import Tensor

from scrubjay.agents.rl.encoders.images import is_image
from scrubjay.agents.rl.observations import leaf_spaces
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.config import Experiment
from scrubjay.memory import serialization

_MAX_DIFFERENCES = 3


def load_initial_weights(
    config: Experiment, source: Experiment, checkpoint: Path, source_spaces: Spaces | None
) -> dict[str, Tensor]:
    """Return the weights in `checkpoint` as initial weights of `config`.

    `source` is the config of the run that wrote the checkpoint, and `source_spaces` are the spaces of its
    environment. They are None if it has no environment or has not stored the spaces. The weights include
    everything in the policy's `state_dict`, such as observation statistics. No code of the source run is
    executed. Raises ValueError naming the differences if the weights do not match `config`.
    """
    ours, theirs = (one.policy_type or one.kind for one in (config, source))
    if ours != theirs:
        difference = f"it trained the model of kind {theirs!r}, this run trains one of kind {ours!r}"
        raise _mismatch_error(config, "name a run of the same kind", difference)
    if source_spaces is not None:
        _check_spaces(source_spaces, config)
    weights = load_weights(checkpoint)
    shapes, source_shapes = (
        {name: tuple(value.shape) for name, value in part.items()}
        for part in (config.make_model().state_dict(), weights)
    )
    settings = describe_differences(_settings(config), _settings(source))
    class_names = [text for name, text in settings.items() if name.rpartition(".")[2] == "name"]
    if class_names or shapes != source_shapes:
        differences = class_names or [*(settings or describe_differences(shapes, source_shapes)).values()]
        raise _mismatch_error(config, "use the same settings as that run, or name another run", *differences)
    return weights


def _mismatch_error(config: Experiment, remedy: str, *differences: str) -> ValueError:
    text = join_differences(differences)
    return ValueError(f"init_from={config.init_from!r} does not match this run: {text}; {remedy}")


def _settings(config: Any) -> dict[str, Any]:
    """Return the settings that determine weight shapes; keys are dotted names such as `policy.memory.dim`."""
    values = serialization.encode(config)
    return flatten({name: values[name] for name in config.shape_fields})


def flatten(value: Any, name: str = "") -> dict[str, Any]:
    """Flatten nested dicts and lists to one dict, whose keys are dotted names such as `memory.dim`."""
    if not isinstance(value, dict | list):
        return {name: value}
    parts = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        inner: leaf
        for key, part in parts
        for inner, leaf in flatten(part, f"{name}.{key}" if name else str(key)).items()
    }


def describe_differences(here: dict[str, Any], there: dict[str, Any]) -> dict[str, str]:
    """Return a dict from the name of each differing or missing value to a description of the difference."""
    missing = "nothing"
    return {
        name: f"{name} is {here.get(name, missing)!r} here and {there.get(name, missing)!r} there"
        for name in {**here, **there}
        if here.get(name, missing) != there.get(name, missing)
    }


def join_differences(differences: Sequence[str]) -> str:
    """Return the first three differences and the number of the others, for an error message."""
    text = ", ".join(" ".join(difference.split()) for difference in differences[:_MAX_DIFFERENCES])
    more = f" and {len(differences) - _MAX_DIFFERENCES} more" if len(differences) > _MAX_DIFFERENCES else ""
    return text + more


def _check_spaces(there: Spaces, config: Any) -> None:
    here = config.env.spaces()
    team = here.num_agents is not None
    has_one_size = team and (config.policy.identity or not config.policy.shared)
    if has_one_size and here.num_agents != there.num_agents:
        difference = f"the team has {here.num_agents} agents here and {there.num_agents} there"
        remedy = "only policy.shared=True with policy.identity=False supports teams of other sizes"
        raise _mismatch_error(config, remedy, difference)
    remedy = "choose an environment with the same spaces, or name another run"
    if here.action != there.action:
        raise _mismatch_error(
            config, remedy, f"the action space is {here.action} here and {there.action} there"
        )
    ours, theirs = leaf_spaces(here.observation), leaf_spaces(there.observation)
    for name in {**ours, **theirs}:
        if name not in ours or name not in theirs or not _read_alike(ours[name], theirs[name], team):
            part = f" of {name!r}" if name else ""
            difference = f"{ours.get(name, 'nothing')} here and {theirs.get(name, 'nothing')} there"
            raise _mismatch_error(config, remedy, f"the observation space{part} is {difference}")


def _read_alike(here: spaces.Space, there: spaces.Space, team: bool) -> bool:
    """Return True if encoders of the observation spaces `here` and `there` can share weights."""
    if here == there:
        return True
    if type(here) is not type(there) or not isinstance(here, spaces.Box | spaces.MultiBinary):
        return False
    # Entity sets of a team may be padded to other sizes; in all other cases weights depend on the sizes.
    ours, theirs = here.shape, there.shape or ()
    if len(ours) != len(theirs) or (ours != theirs and not team):
        return False
    # Bounds are used only to scale images and integers.
    floats = all(np.issubdtype(space.dtype, np.floating) for space in (here, there))
    return isinstance(here, spaces.MultiBinary) or (floats and not is_image(here))
