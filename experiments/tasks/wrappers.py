"""Wrappers of single environments by text, such as `FrameStackObservation(stack_size=4)`."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self, cast

import gymnasium

from scrubjay.experiments.cli.arguments import did_you_mean, parse_value
from scrubjay.experiments.tasks.faults import check_single, describe_import_error, exit_errors
from scrubjay.experiments.user_modules import make_importable

Scalar = bool | int | float | str | None

_CONSTRUCTOR_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    TypeError,
    ValueError,
    gymnasium.error.Error,
)
_MAX_LENGTH = 1_000
_NAME = r"[^\W\d]\w*"
_CALL = re.compile(rf"(?:(?P<module>{_NAME}(?:\.{_NAME})*):)?(?P<name>{_NAME})(?:\((?P<arguments>.*)\))?")
_TOKEN = re.compile(r"""\s*('[^']*'|"[^"]*"|[^\s,='"()\[\]]+|[,=()\[\]])\s*""")
_EXAMPLES = (
    "write it as Name, module:Name or module:Name(argument=value, ...), such as "
    "'FrameStackObservation(stack_size=4)' or 'ResizeObservation(shape=[84, 84])'"
)

_SAFE = frozenset({
    "AddRenderObservation", "AddWhiteNoise", "AtariPreprocessing", "ClipAction", "ClipReward",
    "DelayObservation", "DiscretizeAction", "DiscretizeObservation", "DtypeObservation",
    "FilterObservation", "FlattenObservation", "FrameStackObservation", "GrayscaleObservation",
    "MaxAndSkipObservation", "ObstructView", "OrderEnforcing", "PassiveEnvChecker",
    "RecordEpisodeStatistics", "RenderCollection", "RescaleAction", "RescaleObservation",
    "ReshapeObservation", "ResizeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit",
})  # fmt: skip
"""Wrappers of gymnasium that an untrusted file may name: they write no files and open no windows."""
_REFUSED = {
    "Autoreset": "the vector environment already resets its environments",
    "NormalizeObservation": "a run does not store its running statistics",
    "NormalizeReward": "a run does not store its running statistics",
}
"""Wrappers of gymnasium that would train or evaluate another task than the run says, with the reasons."""


@dataclass(frozen=True)
class WrapperCall:
    """Name of a wrapper and the keyword arguments of its constructor."""

    text: str
    """Text that `parse` has read."""
    module: str
    """Module of the wrapper; empty for wrappers in `gymnasium.wrappers`."""
    name: str
    kwargs: dict[str, Scalar | tuple[Scalar, ...]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `Name`, `module:Name` or `module:Name(argument=value, ...)`. Raises ValueError on other text.

        A value is a number, a text with or without quotes, true, false, none, or a list such as [84, 84].
        """
        call = _CALL.fullmatch(text.strip()) if len(text) <= _MAX_LENGTH else None
        if call is None:
            raise ValueError(f"wrapper {str(text)!r:.80}: {_EXAMPLES}")
        try:
            kwargs = dict(_read_arguments(call["arguments"] or ""))
        except ValueError as error:
            raise ValueError(f"wrapper {str(text)!r:.80}: {error}; {_EXAMPLES}") from None
        return cls(text, call["module"] or "", call["name"], kwargs)

    @property
    def is_safe(self) -> bool:
        """True if an untrusted file may name this wrapper."""
        return not self.module and self.name in _SAFE

    def apply(self, env: gymnasium.Env[Any, Any], env_name: str) -> gymnasium.Env[Any, Any]:
        """Return the wrapped environment.

        Raises ValueError if the wrapper does not exist, or rejects its arguments or the environment.
        """
        where = f"{env_name} with {self.text}"
        with exit_errors(where):
            wrapper = self._load() if self.module else self._load_from_gymnasium()
        try:
            with exit_errors(where):
                wrapped_env = wrapper(env, **self.kwargs)
        except ImportError as error:
            raise ValueError(self._describe_import_error(error)) from error
        except _CONSTRUCTOR_ERRORS as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(
                f"environment {str(env_name)!r}: wrapper {str(self.text)!r} rejects it or the "
                f"arguments: {reason}"
            ) from error
        return check_single(wrapped_env, where)

    def _load(self) -> Callable[..., Any]:
        """Import the module and return its wrapper."""
        make_importable(self.module)
        try:
            wrapper = getattr(importlib.import_module(self.module), self.name)
        except ImportError as error:
            raise ValueError(self._describe_import_error(error)) from error
        except AttributeError as error:
            raise ValueError(f"wrapper {str(self.text)!r}: {error}") from error
        if not callable(wrapper):
            kind = type(wrapper).__name__
            raise TypeError(f"wrapper {str(self.text)!r}: {self.name} is a {kind}, not a callable")
        return cast(Callable[..., Any], wrapper)

    def _describe_import_error(self, error: ImportError) -> str:
        return describe_import_error(f"{self.module or 'gymnasium'}:{self.name}", error, "wrapper")

    def _load_from_gymnasium(self) -> Callable[..., Any]:
        """Return the wrapper with this name in `gymnasium.wrappers`."""
        if self.name in _REFUSED:
            raise ValueError(f"wrapper {self.name!r} is not supported: {_REFUSED[self.name]}")
        names = [name for name in gymnasium.wrappers.__all__ if name not in _REFUSED]
        try:
            wrapper = getattr(gymnasium.wrappers, self.name) if self.name in names else None
        except ImportError as error:
            raise ValueError(self._describe_import_error(error)) from error
        if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
            raise ValueError(  # noqa: TRY004  (an unknown name)
                f"unknown wrapper {self.name!r}{did_you_mean(self.name, names)}; a name without a module is "
                "that of a class in gymnasium.wrappers for one environment; write module:Name for others"
            )
        for parameter in inspect.signature(wrapper).parameters.values():
            if parameter.default is parameter.empty and "Callable" in str(parameter.annotation):
                raise ValueError(
                    f"wrapper {self.name!r} needs a function as {parameter.name!r}, which no text can be; "
                    "write a wrapper of your own and name it as module:Name"
                )
        return wrapper


def _read_arguments(text: str) -> Iterator[tuple[str, Scalar | tuple[Scalar, ...]]]:
    """Read `name=value, ...`. Raises ValueError on other text, and on a name that occurs twice."""
    tokens, names = _split(text), set[str]()
    while tokens:
        name, equals = tokens.pop(0), tokens.pop(0) if tokens else ""
        if not name.isidentifier() or equals != "=":
            raise ValueError(f"{name!r} must be an argument as name=value")
        if name in names:
            raise ValueError(f"the argument {name!r} occurs twice")
        names.add(name)
        yield name, _read_value(tokens)
        if tokens and tokens.pop(0) != ",":
            raise ValueError(f"a comma must follow the value of {name!r}")


def _read_value(tokens: list[str]) -> Scalar | tuple[Scalar, ...]:
    """Remove a scalar or a list from the front of `tokens` and return it."""
    if not tokens or tokens[0] not in ("[", "("):
        return _read_scalar(tokens)
    end, values = {"[": "]", "(": ")"}[tokens.pop(0)], []
    while tokens and tokens[0] != end:
        values.append(_read_scalar(tokens))
        if tokens and tokens[0] == ",":
            tokens.pop(0)
        elif tokens and tokens[0] != end:
            break
    if not tokens or tokens.pop(0) != end:
        raise ValueError(f"a list of values must end with {end!r}")
    return tuple(values)


def _read_scalar(tokens: list[str]) -> Scalar:
    token = tokens.pop(0) if tokens else ""
    if not token or token in ",=()[]":
        raise ValueError("an argument has no value")
    if token[0] in "'\"":
        return token[1:-1]
    return None if token.lower() in ("none", "null") else parse_value(token)


def _split(text: str) -> list[str]:
    tokens, position = [], 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            if not text[position:].strip():
                break
            raise ValueError(f"{text[position:]!r:.40} cannot be read")
        tokens.append(match[1])
        position = match.end()
    return tokens
