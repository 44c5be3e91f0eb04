"""Creation of gymnasium environments by name, single or vectorized, and trust of these names.

A name read from a file must not execute code unless it is safe. Environments of Scrubjay and gymnasium are
safe, and so are names that the user passed in this process.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec, VectorizeMode, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.agents.rl.masks.detection import offers_masks
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.envs import list_environments
from scrubjay.envs.previous_step import Input, PreviousStep, PreviousSteps
from scrubjay.envs.text import TextMode, TextObservation, has_text
from scrubjay.experiments.cli.failures import BrokenEnvError, check_at_least
from scrubjay.experiments.files import MAX_BYTES, parse_object
from scrubjay.experiments.tasks.faults import (
    ExitGuard,
    check_single,
    describe_import_error,
    environment_errors,
    exit_errors,
    install_hint,
    is_plain,
    try_out,
)
from scrubjay.experiments.tasks.wrappers import WrapperCall
from scrubjay.experiments.user_modules import make_importable

SETTING_ERRORS = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""Errors that an environment may raise for invalid settings."""
KwargValue = bool | int | float | str
"""Value of an environment's setting."""

_EXTRA_SINGLE = re.compile(r"popgym:popgym-\w+-v\d+|minigrid:(?:MiniGrid|BabyAI)-[\w-]+-v\d+", re.ASCII)
_EXTRA_TEAM = re.compile(r"mpe2\.simple\w*_v\d+:parallel_env", re.ASCII)
_MODULES = {"ALE/": "ale_py", "popgym-": "popgym", "MiniGrid-": "minigrid", "BabyAI-": "minigrid"}
"""Module that registers the gymnasium ids with a prefix; it is also the name of an extra, except for ALE."""
_SAFE_SETTINGS = frozenset({"map_name", "render_mode"})
_SAFE_RENDER_MODES = (None, "rgb_array", "rgb_array_list", "ansi", "ansi_list")
"""Render modes that open no window."""

_USER_NAMES: set[tuple[str, frozenset[tuple[str, Any]]]] = set()


@dataclass(frozen=True)
class EnvConfig:
    """Environment, its settings and the number of parallel copies."""

    id: str = "CartPole-v1"
    """Gymnasium id, `module:Id-v0` (imports the module first), or `module:callable` returning an env."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Keyword arguments of the environment; change one with `--set name=value`."""
    num_envs: int = 16
    """Number of parallel environments."""
    inputs: tuple[Input, ...] = ("observation",)
    """Inputs of the policy: the observation, and optionally the previous action and reward."""
    subprocesses: bool = False
    """Run each environment in its own process; faster only if a step takes more than about 0.2 ms."""
    text: TextMode = "encode"
    """Text in observations: encode it as a set of words, or drop it."""
    wrappers: tuple[str, ...] = ()
    """Wrappers of each environment, the innermost first. Each is a name in gymnasium.wrappers or
    module:Wrapper, with arguments in parentheses, such as "FrameStackObservation(stack_size=4)"."""

    def __post_init__(self) -> None:
        check_at_least(self, 1, "num_envs")
        if isinstance(self.wrappers, str):
            raise TypeError(f"wrappers={self.wrappers!r}: pass a tuple of texts, one for each wrapper")
        for wrapper in self.wrappers:
            WrapperCall.parse(wrapper)

    @property
    def num_processes(self) -> int:
        """Number of processes in which the environments run, besides that of the learner."""
        return self.num_envs if self.subprocesses else 0

    def make(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Return one environment.

        Raises:
            ValueError: If a name or a setting is unknown or untrusted.
            BrokenEnvError: If the code of the environment fails.
        """
        admit(self.id, self.kwargs)
        for wrapper in self.wrappers:
            admit_part("wrapper", wrapper)
        kwargs: dict[str, Any] = dict(self.kwargs)
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        function = load_callable(self.id)
        with construction_errors(self.id, kwargs, is_id=function is None):
            env = gymnasium.make(gymnasium_id(self.id), **kwargs) if function is None else function(**kwargs)
        env = check_single(env, self.id)
        for wrapper in self.wrappers:
            env = WrapperCall.parse(wrapper).apply(env, self.id)
        env = self._convert_text(env)
        return PreviousStep(env, self.inputs) if self._adds_inputs else env

    def _convert_text(self, env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        if not has_text(env.observation_space):
            return env
        try:
            return TextObservation(env, self.text)
        except ValueError as error:
            raise ValueError(f"environment {str(self.id)!r}: {error}") from error

    @property
    def _adds_inputs(self) -> bool:
        return self.inputs != ("observation",)

    def as_untrusted(self) -> Self:
        """Return a copy of this config with its names marked as untrusted, for configs read from files.

        The id or a wrapper is not marked if it is safe or if the user named it in this process.
        """
        name = mark_untrusted(self.id, self.kwargs, is_safe(self.id, self.kwargs))
        wrappers = [
            mark_untrusted_part("wrapper", text, WrapperCall.parse(text).is_safe) for text in self.wrappers
        ]
        return replace(self, id=name, wrappers=tuple(wrappers))

    @property
    def is_safe(self) -> bool:
        """True if an untrusted file may name this environment and its wrappers."""
        return is_safe(self.id, self.kwargs) and all(
            WrapperCall.parse(wrapper).is_safe for wrapper in self.wrappers
        )

    def facts(self) -> EnvFacts:
        """Return the environment's properties that a run stores."""
        with self.make() as env, environment_errors(self.id):
            spaces = Spaces(env.observation_space, env.action_space, action_masks=offers_masks(env))
            if self.wrappers:  # a wrapper may show more, such as the steps before
                return EnvFacts(spaces)
            return EnvFacts(spaces, getattr(env.unwrapped, "success_without_memory", None))

    def try_out(self) -> None:
        """Play some random steps, to find faults of a user's environment before training.

        Raises:
            EnvFaultError: On invalid observations or rewards.
            BrokenEnvError: If its code fails.
        """
        with self.make() as env, environment_errors(self.id):
            try_out(env)

    def spaces(self) -> Spaces:
        """Return the spaces of one environment."""
        return self.facts().spaces

    def success_without_memory(self) -> float | None:
        """Return the best success rate without memory, if the environment has this attribute."""
        return self.facts().success_without_memory

    def reward_threshold(self) -> float | None:
        """Return the return at which gymnasium's registry counts the task as solved.

        Return None if there is no such return, or if a wrapper changes rewards.
        """
        with self.make() as env:
            spec, layer = env.spec, env
            while isinstance(layer, gymnasium.Wrapper):
                if isinstance(layer, gymnasium.RewardWrapper):
                    return None
                layer = layer.env
        threshold = None if spec is None else spec.reward_threshold
        return None if threshold is None else float(threshold)

    def make_batch(self, num_envs: int | None = None) -> VectorEnv[Any, Any, Any]:
        """Return a vector environment that resets in the last step of an episode (SAME_STEP).

        The environment's own vector implementation is used if it supports this autoreset mode, and if it has
        the spaces and the settings of the single environment. Wrappers apply to single environments only.
        """
        count = self.num_envs if num_envs is None else num_envs
        with self.make() as env:  # a single environment reports a bad id or setting best
            single = env.env if isinstance(env, PreviousStep) else env
            has_own = load_callable(self.id) is None and not self.subprocesses and not self.wrappers
            batched = self._make_batched(count, single) if has_own else None
        if batched is not None:
            return PreviousSteps(batched, self.inputs) if self._adds_inputs else batched
        if self.subprocesses:
            make_guarded = lambda: ExitGuard(self.make())
            return AsyncVectorEnv([make_guarded] * count, autoreset_mode=AutoresetMode.SAME_STEP)
        return SyncVectorEnv([self.make] * count, autoreset_mode=AutoresetMode.SAME_STEP)

    def _make_batched(self, count: int, single: gymnasium.Env[Any, Any]) -> VectorEnv[Any, Any, Any] | None:
        """Return the own vector implementation of `single`; None if there is none or it behaves otherwise."""
        creator = None if single.spec is None else _find_vector_creator(single.spec)
        if creator is None:
            return None
        kwargs: dict[str, Any] = dict(self.kwargs)
        # Set only if supported: gymnasium's vector environments fail half-constructed on unknown arguments.
        if "autoreset_mode" in inspect.signature(creator).parameters:
            kwargs["autoreset_mode"] = AutoresetMode.SAME_STEP
        with exit_errors(self.id):
            envs = gymnasium.make_vec(
                gymnasium_id(self.id),
                num_envs=count,
                vectorization_mode=VectorizeMode.VECTOR_ENTRY_POINT,
                **kwargs,
            )
        if (
            envs.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP
            and envs.single_observation_space == single.observation_space
            and envs.single_action_space == single.action_space
        ):
            return envs
        envs.close()
        return None


@contextlib.contextmanager
def construction_errors(name: str, kwargs: Mapping[str, Any], is_id: bool = False) -> Iterator[None]:
    """Add the name of the environment to errors of its constructor, which is called in the `with` block.

    `is_id` is True if the name is a gymnasium id. Raises ValueError if a name, a module, a file or one of the
    settings `kwargs` is the reason, BrokenEnvError for other errors of the environment's code, and the errors
    of `exit_errors`.
    """
    try:
        with exit_errors(name):
            yield
    except ImportError as error:
        raise ValueError(describe_import_error(name, error)) from error
    except gymnasium.error.Error as error:
        is_unknown = is_id and isinstance(error, gymnasium.error.UnregisteredEnv)
        reason = " ".join(str(error).split())
        message = _describe_unknown(name, reason) if is_unknown else f"environment {name!r}: {reason}"
        raise ValueError(message) from error
    except SETTING_ERRORS as error:
        raise ValueError(describe_setting_error(name, kwargs, error)) from error
    except OSError as error:
        raise ValueError(f"environment {str(name)!r}: {error}") from error
    except Exception as error:
        if is_plain(error):
            raise
        raise BrokenEnvError.from_error(name, error) from error


def _find_vector_creator(spec: EnvSpec) -> Callable[..., Any] | None:
    """Return the creator of an environment's own vector implementation.

    Returns None if the creator does not accept every setting of the single environment, or if a setting that
    both have has another default. The vector environment would then be another task.
    """
    if spec.entry_point is None or spec.vector_entry_point is None or spec.additional_wrappers:
        return None
    single, vector = (
        load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        for entry_point in (spec.entry_point, spec.vector_entry_point)
    )
    ours, theirs = inspect.signature(single).parameters, inspect.signature(vector).parameters
    settings = {*spec.kwargs, *(() if spec.max_episode_steps is None else ("max_episode_steps",))}
    accepts_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in theirs.values())
    if not accepts_all and not settings <= theirs.keys():
        return None
    shared = (ours.keys() & theirs.keys()) - settings
    has_same_defaults = all(repr(ours[name].default) == repr(theirs[name].default) for name in shared)
    return vector if has_same_defaults else None


def with_names(env: Any, id: str, *wrappers: str) -> Any:
    """Return a copy of the config of an environment or a team with this id and these wrappers.

    A team has no wrappers.
    """
    return replace(env, id=id, **{"wrappers": wrappers} if wrappers or env.wrappers else {})


def gymnasium_id(name: str) -> str:
    """Return the environment id with which gymnasium can create the environment.

    An id of Scrubjay gets the prefix `scrubjay.envs:`, the module that registers it. Another id is unchanged.
    """
    return f"scrubjay.envs:{name}" if name.startswith("scrubjay/") else name


def load_callable(name: str) -> Callable[..., gymnasium.Env[Any, Any]] | None:
    """Import and return the function of `module:callable`; None if `name` is a gymnasium id."""
    module, colon, attribute = name.partition(":")
    if not colon:
        return None
    make_env_importable(name)  # gymnasium then imports the module of an id itself
    if "/" in attribute or re.search(r"-v\d+$", attribute):
        return None
    try:
        with exit_errors(name):
            function = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise ValueError(describe_import_error(name, error)) from error
    except AttributeError as error:
        raise ValueError(
            f"environment {name!r}: {error}; write module:callable with an importable module"
        ) from error
    if not callable(function):
        raise TypeError(f"environment {name!r}: {attribute} is a {type(function).__name__}, not a callable")
    return cast(Callable[..., gymnasium.Env[Any, Any]], function)


def describe_setting_error(name: str, kwargs: Mapping[str, Any], error: Exception) -> str:
    """Return an error message with the rejected settings of an environment and the reason."""
    unknown = re.search(r"unexpected keyword argument '(.*?)'(?: was|\Z)", str(error), re.DOTALL)
    reason = f"it has no setting {unknown[1]!r}" if unknown else error
    return f"environment {name!r} rejects {dict(kwargs) or 'its defaults'}: {reason}"


def _describe_unknown(name: str, reason: str) -> str:
    if hint := install_hint(name):
        return f"environment {name!r}: {reason.partition('. ')[0]}; {hint}"
    if ":" not in name and (module := _find_module(name)):
        return f"unknown environment {name!r}; did you mean '{module}:{name}' (extra {module})?"
    known_names = [*list_environments(), *gymnasium.registry]
    close = [
        f"{module}:{match}" if (module := _find_module(match)) else match
        for match in difflib.get_close_matches(name, known_names, n=1, cutoff=0.5)
    ]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"unknown environment {name!r} ({reason}); choose a gymnasium id, module:callable "
        f"or one of {', '.join(list_environments()) or 'those you registered'}{hint}"
    )


def _find_module(name: str) -> str | None:
    """Return the module to import for a gymnasium id that lacks it; None if its prefix is unknown."""
    return next((module for prefix, module in _MODULES.items() if name.startswith(prefix)), None)


@dataclass(frozen=True)
class EnvFacts:
    """Spaces of an environment, the number of agents of a team, and the success without memory."""

    spaces: Spaces
    success_without_memory: float | None = None
    """Best possible success rate without memory; None if unknown."""

    def to_json(self) -> str:
        """Return the JSON text. Raises TypeError on an unsupported space."""
        fields = {**self.spaces.to_dict(), "success_without_memory": self.success_without_memory}
        return json.dumps(fields, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Load the facts that `to_json` wrote. Raises ValueError on invalid text or excessive sizes."""
        fields = parse_object(text, "the content")
        spaces, success = Spaces.from_dict(fields), fields["success_without_memory"]
        return cls(spaces, None if success is None else _finite(success))


def _finite(value: Any) -> float:
    if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
        raise ValueError(f"success_without_memory={value!r:.40}: expected a number")
    return float(value)


def is_safe(name: str, kwargs: Mapping[str, Any]) -> bool:
    """Return True if an untrusted file may name this single-agent environment.

    Such an environment runs no untrusted code. Environments of Scrubjay, of gymnasium's registry (built in or
    registered by this process) and of POPGym and MiniGrid, extras of Scrubjay, are safe. Settings of
    environments that are not Scrubjay's must not be strings, except `map_name` and `render_mode`: some
    environments read files or import modules that a setting names. The render mode must open no window.
    """
    if opens_window(kwargs):
        return False
    if name.removeprefix("scrubjay.envs:") in list_environments():
        return True
    return _has_no_strings(kwargs) and (
        name in gymnasium.registry or _EXTRA_SINGLE.fullmatch(name) is not None
    )


def is_safe_team(name: str, kwargs: Mapping[str, Any], known_names: frozenset[str]) -> bool:
    """Return True if an untrusted file may name this team environment.

    The environments in `known_names` are safe. An environment of the extra `mpe` is safe if `kwargs`, its
    settings, contain no strings. The render mode must open no window.
    """
    if opens_window(kwargs):
        return False
    return name in known_names or (_has_no_strings(kwargs) and _EXTRA_TEAM.fullmatch(name) is not None)


def mark_untrusted(name: str, kwargs: Mapping[str, Any], is_safe_name: bool) -> str:
    """Return `name` unchanged if it is safe or was passed by the user, otherwise as an `UntrustedName`."""
    return name if is_safe_name or (name, frozenset(kwargs.items())) in _USER_NAMES else UntrustedName(name)


def admit(name: str, kwargs: Mapping[str, Any]) -> None:
    """Record that the user named this environment. Raises ValueError on an `UntrustedName`."""
    if isinstance(name, UntrustedName):
        effect = "creating this environment executes code from outside Scrubjay"
        if opens_window(kwargs):
            effect = f"render_mode={kwargs['render_mode']!r:.40} may open windows"
        raise ValueError(  # noqa: TRY004  (the value is untrusted, not the type wrong)
            f"environment {str(name)!r}: {name.reason}, and {effect}; add --trust if you trust the run (in "
            "Python trust=True)"
        )
    _USER_NAMES.add((name, frozenset(kwargs.items())))


def mark_untrusted_part(kind: str, name: str, is_safe_name: bool) -> str:
    """Return the name of a wrapper or an encoder, marked as `mark_untrusted` marks that of an environment."""
    return name if is_safe_name or _part_key(kind, name) in _USER_NAMES else UntrustedName(name)


def admit_part(kind: str, name: str) -> None:
    """Record that the user named this wrapper or encoder. Raises ValueError on an `UntrustedName`."""
    if isinstance(name, UntrustedName):
        effect = "executes code from outside Scrubjay" if ":" in name else "may write files or open windows"
        raise ValueError(  # noqa: TRY004
            f"{kind} {str(name)!r}: {name.reason}, and this {kind} {effect}; add --trust if you trust the "
            "run (in Python trust=True)"
        )
    _USER_NAMES.add(_part_key(kind, name))


def _part_key(kind: str, name: str) -> tuple[str, frozenset[tuple[str, Any]]]:
    return f"{kind} {name}", frozenset()  # no environment has such a name


def make_env_importable(name: str) -> None:
    """Make the module of an environment's `module:name` importable from the current folder.

    Environments of the extras POPGym, MiniGrid and MPE are excluded: they must come from installed packages.
    """
    if not (_EXTRA_SINGLE.fullmatch(name) or _EXTRA_TEAM.fullmatch(name)):
        make_importable(name.partition(":")[0])


def opens_window(kwargs: Mapping[str, Any]) -> bool:
    """Return True if the settings of an environment have a render mode that may open windows."""
    return kwargs.get("render_mode") not in _SAFE_RENDER_MODES


def _has_no_strings(kwargs: Mapping[str, Any]) -> bool:
    return not any(isinstance(value, str) for name, value in kwargs.items() if name not in _SAFE_SETTINGS)


def encode_facts(config: Any, facts: EnvFacts | None) -> str | None:
    """Return the text of environment.json.

    Return None if the environment cannot be created, or if the facts are too large or change on reloading.
    """
    try:
        stored_facts = facts or config.env.facts()
        text = stored_facts.to_json()
        restored_facts = EnvFacts.from_json(text)
    except Exception:  # noqa: BLE001  (training creates the environment again and reports the error)
        return None
    return text if restored_facts == stored_facts and len(text) <= MAX_BYTES else None
