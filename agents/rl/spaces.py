"""What a policy must know of an environment before it is built: its spaces; and these as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from gymnasium import spaces
from gymnasium.spaces import Space

_MOST_NUMBERS = 2**24
"""In one observation or action: a policy's first and last layers are that wide."""
_MOST_AGENTS = 2**12
_DEEPEST = 8
_MOST_SPACES = 2**10
"""Parts of one space, at any depth."""
_MOST_AXES = 32
_MISREAD = (LookupError, TypeError, AttributeError, AssertionError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Spaces:
    """Observation and action space of one agent, and of a team how many agents there are, all alike."""

    observation: Space
    action: Space
    num_agents: int | None = None
    """Of a team; None where one agent is alone."""

    @classmethod
    def of(cls, envs: Any) -> Self:
        """Return the spaces of rows of a gymnasium vector environment, or of a `TeamEnv`."""
        agents = getattr(envs, "possible_agents", None)
        return cls(
            envs.single_observation_space,
            envs.single_action_space,
            None if agents is None else len(agents),
        )

    def misfit(self, met: Spaces) -> str | None:
        """Return in words why a policy for these spaces cannot act where those are met; None if it can.

        Shapes, types and numbers of choices must be alike; bounds of numbers need not.
        """
        if self.num_agents != met.num_agents:
            return f"{self.num_agents} agents in place of {met.num_agents}"
        for what, ours, theirs in (
            ("observation", self.observation, met.observation),
            ("action", self.action, met.action),
        ):
            if _form(ours) != _form(theirs):
                return f"its {what} is {ours!s:.200} in place of {theirs!s:.200}"
        return None

    def to_plain(self) -> dict[str, Any]:
        """Return what JSON can write. Raises TypeError on a space that no policy supports."""
        return {
            "observation": _written(self.observation),
            "action": _written(self.action),
            "num_agents": self.num_agents,
        }

    @classmethod
    def from_plain(cls, fields: Any) -> Self:
        """Return what `to_plain` wrote; raises ValueError on all else, and on sizes that cannot be meant."""
        try:
            num_agents = fields["num_agents"]
            return cls(
                _Reader().read(fields["observation"]),
                _Reader().read(fields["action"]),
                None if num_agents is None else _whole(num_agents, 1, _MOST_AGENTS),
            )
        except KeyError as error:
            raise ValueError(f"not the spaces of an environment: it lacks {error}") from error
        except _MISREAD as error:
            raise ValueError("not the spaces of an environment: a part is not of its form") from error


def _form(space: Space) -> Any:
    """Return what a policy's layers depend on."""
    if isinstance(space, spaces.Dict):
        return {key: _form(part) for key, part in space.spaces.items()}
    if isinstance(space, spaces.Tuple):
        return [_form(part) for part in space.spaces]
    if isinstance(space, spaces.Discrete):
        return "Discrete", int(space.n), int(space.start), space.dtype
    if isinstance(space, spaces.MultiDiscrete):
        return "MultiDiscrete", space.nvec.tolist(), np.asarray(space.start).tolist(), space.dtype
    return type(space), space.shape, space.dtype


def _written(space: spaces.Space) -> dict[str, Any]:
    if isinstance(space, spaces.Dict):
        return {"space": "Dict", "parts": [[key, _written(part)] for key, part in space.spaces.items()]}
    if isinstance(space, spaces.Tuple):
        return {"space": "Tuple", "parts": [_written(part) for part in space.spaces]}
    if isinstance(space, spaces.Discrete):
        return {"space": "Discrete", "n": int(space.n), "start": int(space.start), "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiDiscrete):
        sizes = {"n": space.nvec.tolist(), "start": np.asarray(space.start).tolist()}
        return {"space": "MultiDiscrete", **sizes, "dtype": space.dtype.name}
    if isinstance(space, spaces.MultiBinary):
        return {"space": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
    if isinstance(space, spaces.Box):
        bounds = {"low": _bound(space.low), "high": _bound(space.high)}
        return {"space": "Box", "shape": list(space.shape), **bounds, "dtype": space.dtype.name}
    raise TypeError(
        f"space {space}: expected Box, Discrete, MultiDiscrete, MultiBinary, or a Dict or Tuple of these"
    )


def _bound(values: np.ndarray) -> Any:
    """Return one number if all are alike, as those of pictures are, else all of them in one list."""
    flat = [_number(value) for value in values.reshape(-1).tolist()]
    return flat[0] if flat and all(value == flat[0] for value in flat) else flat


def _number(value: float) -> int | float | str:
    return str(value) if isinstance(value, float) and math.isinf(value) else value


class _Reader:
    """Reads spaces, and stops before it has made room for more numbers than an environment shows."""

    def __init__(self) -> None:
        self.left, self.spaces_left = _MOST_NUMBERS, _MOST_SPACES

    def read(self, value: Any, depth: int = 0) -> spaces.Space:
        if depth > _DEEPEST:
            raise ValueError(f"spaces within spaces, more than {_DEEPEST} deep")
        self.spaces_left -= 1
        if self.spaces_left < 0:
            raise ValueError(f"more than {_MOST_SPACES:,} spaces")
        readers: dict[str, Callable[[Mapping[str, Any], int], spaces.Space]] = {
            "Box": self._box,
            "Dict": self._dict,
            "Discrete": self._discrete,
            "MultiBinary": self._multi_binary,
            "MultiDiscrete": self._multi_discrete,
            "Tuple": lambda v, d: spaces.Tuple([self.read(part, d + 1) for part in v["parts"]]),
        }
        name = value.get("space") if isinstance(value, dict) else value
        if not isinstance(name, str) or name not in readers:
            raise ValueError(f"space {name!r:.40}: choose from {', '.join(readers)}")
        return readers[name](value, depth)

    def _box(self, value: Mapping[str, Any], _: int) -> spaces.Box:
        dtype = _dtype(value["dtype"], "biuf")
        shape = _shape(value["shape"], 0)
        self._take(math.prod(shape))
        low, high = (_bounds(value[name], shape, dtype) for name in ("low", "high"))
        if (low > high).any():
            raise ValueError("low is above high")
        return spaces.Box(low, high, dtype=dtype.type)

    def _dict(self, value: Mapping[str, Any], depth: int) -> spaces.Dict:
        parts: Any = [(_key(key), self.read(part, depth + 1)) for key, part in value["parts"]]
        return spaces.Dict(parts)

    def _discrete(self, value: Mapping[str, Any], _: int) -> spaces.Discrete:
        size = self._take(_whole(value["n"], 1))
        start = _whole(value["start"], -(2**62), 2**62)
        return spaces.Discrete(size, start=start, dtype=_dtype(value["dtype"], "iu").type)

    def _multi_binary(self, value: Mapping[str, Any], _: int) -> spaces.MultiBinary:
        size = value["n"]
        many = list(_shape(size if isinstance(size, list) else [size], 1))
        self._take(math.prod(many))
        return spaces.MultiBinary(many if isinstance(size, list) else size)

    def _multi_discrete(self, value: Mapping[str, Any], _: int) -> spaces.MultiDiscrete:
        sizes, start = (_numbers(value[name]) for name in ("n", "start"))
        if sizes.dtype.kind != "i" or start.dtype.kind != "i":
            raise ValueError(f"n={value['n']!r:.40} and start={value['start']!r:.40}: expected whole numbers")
        # One layer scores the choices of all, each padded to the most that one has.
        self._take(sizes.size * max((_whole(size, 1) for size in sizes.reshape(-1).tolist()), default=0))
        return spaces.MultiDiscrete(sizes, dtype=_dtype(value["dtype"], "iu").type, start=start)

    def _take(self, count: int) -> int:
        self.left -= count
        if self.left < 0:
            raise ValueError(f"more than {_MOST_NUMBERS:,} numbers or choices")
        return count


def _bounds(value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    numbers = [_bound_of(item) for item in (value if isinstance(value, list) else [value])]
    return np.full(shape, numbers[0], dtype) if len(numbers) == 1 else np.array(numbers, dtype).reshape(shape)


def _bound_of(value: Any) -> float:
    if value in ("inf", "-inf"):
        return float(value)
    if type(value) not in (int, float, bool) or value != value:  # noqa: PLR0124  (NaN is no bound)
        raise ValueError(f"{value!r:.40}: expected a number")
    return value


def _shape(value: Any, least: int) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > _MOST_AXES:
        raise ValueError(f"{value!r:.40}: expected a list of at most {_MOST_AXES} sizes")
    return tuple(_whole(size, least) for size in value)


def _numbers(value: Any) -> np.ndarray:
    """Return nested lists as an array; of what is no such, or too deep, one that holds no numbers."""
    try:
        return np.array(value)
    except (ValueError, OverflowError):
        return np.array(None)


def _dtype(name: Any, kinds: str) -> np.dtype:
    dtype = np.dtype(name) if isinstance(name, str) and name.isalnum() else None
    if dtype is None or dtype.kind not in kinds or dtype.name != name:
        raise ValueError(f"dtype={name!r:.40}: expected a number's, such as float32")
    return dtype


def _key(value: Any) -> str | int:
    if type(value) not in (str, int):
        raise ValueError(f"key {value!r:.40}: expected a string or a number")
    return value


def _whole(value: Any, least: int, most: int = _MOST_NUMBERS) -> int:
    if type(value) is not int or not least <= value <= most:
        raise ValueError(f"{value!r:.40}: expected a whole number from {least} to {most:,}")
    return value
