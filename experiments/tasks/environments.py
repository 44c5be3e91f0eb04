"""From an environment's name to a gymnasium environment, single or batched."""

from __future__ import annotations

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self, cast

import gymnasium
from gymnasium.envs.registration import VectorizeMode, load_env_creator
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.envs import list_environments
from scrubjay.envs.previous import Input, PreviousStep, PreviousSteps
from scrubjay.experiments.tasks.facts import Facts
from scrubjay.experiments.tasks.lacking import missing, remedy
from scrubjay.experiments.tasks.names import admit, found, is_ours, make_own_importable
from scrubjay.experiments.tasks.playing import playing, try_out
from scrubjay.experiments.tasks.returned import check_single
from scrubjay.experiments.tasks.settings import KwargValue
from scrubjay.memory.serialization import LATER

REFUSALS = (ArithmeticError, AssertionError, LookupError, TypeError, ValueError)
"""What an environment may raise of settings that it does not take."""


@dataclass(frozen=True)
class EnvConfig:
    """Which environment, with what settings, and how many copies side by side."""

    id: str = "CartPole-v1"
    """A gymnasium id, `module:Id-v0` (imports the module first), or `module:callable` returning an env."""
    kwargs: dict[str, KwargValue] = field(default_factory=dict)
    """Settings handed to the environment; `--set name=value` changes one."""
    num_envs: int = 16
    """Copies stepped together: the batch of the sampler."""
    inputs: tuple[Input, ...] = field(default=("observation",), metadata=LATER)
    """What a policy sees: the observation, and the action and reward of the step before."""
    subprocesses: bool = False
    """Give each copy a process of its own; pays only where one step takes longer than about 0.2 ms."""

    def __post_init__(self) -> None:
        if self.num_envs < 1:
            raise ValueError(f"num_envs={self.num_envs}: at least 1 environment is needed")

    def make(self, render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        """Return one environment. Raises ValueError if the id or a setting is unknown, or only a file's."""
        admit(self.id, self.kwargs)
        kwargs: dict[str, Any] = dict(self.kwargs)
        if render_mode is not None:
            kwargs["render_mode"] = render_mode
        function = named_callable(self.id)
        try:
            env = gymnasium.make(importing_id(self.id), **kwargs) if function is None else function(**kwargs)
        except (ModuleNotFoundError, gymnasium.error.Error) as error:
            raise ValueError(_unknown(self.id, error)) from error
        except REFUSALS as error:
            raise ValueError(refusal(self.id, kwargs, error)) from error
        env = check_single(env, self.id)
        return PreviousStep(env, self.inputs) if self._wraps else env

    @property
    def _wraps(self) -> bool:
        return self.inputs != ("observation",)

    def as_found(self) -> Self:
        """Return the same, read from a file: it makes nothing that is neither ours nor the user's."""
        return replace(self, id=found(self.id, self.kwargs, is_ours(self.id, self.kwargs)))

    def facts(self) -> Facts:
        """Return what a run keeps of the environment."""
        with self.make() as env:
            spaces = Spaces(env.observation_space, env.action_space)
            return Facts(spaces, getattr(env.unwrapped, "success_without_memory", None))

    def try_out(self) -> None:
        """Play some steps; raises EnvFaultError or BrokenEnvError if that is not an environment's.

        What is wrong with an environment of the user's is told before a run is begun.
        """
        with self.make() as env, playing(self.id):
            try_out(env)

    def spaces(self) -> Spaces:
        """Return the spaces of one environment."""
        return self.facts().spaces

    def success_without_memory(self) -> float | None:
        """Return the best success without memory, where the environment offers it by that name."""
        return self.facts().success_without_memory

    def make_vector(self, num_envs: int | None = None) -> VectorEnv[Any, Any, Any]:
        """Return a batch of environments that reset in the step that ends an episode (SAME_STEP).

        The environment's own batched version is used where it has one with this kind of reset.
        """
        count = self.num_envs if num_envs is None else num_envs
        with self.make() as env:  # a bad id or setting is best reported by one environment
            entry_point = None if env.spec is None else env.spec.vector_entry_point
        if entry_point is not None and named_callable(self.id) is None and not self.subprocesses:
            batched = self._make_batched(count, entry_point)
            if batched is not None:
                return PreviousSteps(batched, self.inputs) if self._wraps else batched
        kind = AsyncVectorEnv if self.subprocesses else SyncVectorEnv
        return kind([self.make] * count, autoreset_mode=AutoresetMode.SAME_STEP)

    def make_rows(self, num_envs: int | None = None) -> VectorEnv[Any, Any, Any]:
        """Return what a policy is trained in: `make_vector`."""
        return self.make_vector(num_envs)

    def _make_batched(
        self, count: int, entry_point: str | Callable[..., Any]
    ) -> VectorEnv[Any, Any, Any] | None:
        kwargs: dict[str, Any] = dict(self.kwargs)
        # Asked only of what knows the word: gymnasium's vector environments complain when half made.
        creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
        if "autoreset_mode" in inspect.signature(creator).parameters:
            kwargs["autoreset_mode"] = AutoresetMode.SAME_STEP
        envs = gymnasium.make_vec(
            importing_id(self.id),
            num_envs=count,
            vectorization_mode=VectorizeMode.VECTOR_ENTRY_POINT,
            **kwargs,
        )
        if envs.metadata.get("autoreset_mode") == AutoresetMode.SAME_STEP:
            return envs
        envs.close()
        return None


def importing_id(name: str) -> str:
    """Return the id by which gymnasium itself imports our module that registers it; others as they are."""
    return f"scrubjay.envs:{name}" if name.startswith("scrubjay/") else name


def named_callable(name: str) -> Callable[..., gymnasium.Env[Any, Any]] | None:
    """Return the function `module:callable` names; None if `name` is a gymnasium id."""
    module, colon, attribute = name.partition(":")
    if not colon:
        return None
    make_own_importable(name)  # gymnasium imports the module of an id itself
    if "/" in attribute or re.search(r"-v\d+$", attribute):
        return None
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ModuleNotFoundError, AttributeError) as error:
        advice = remedy(name, missing(error)) or "write module:callable with an importable module"
        raise ValueError(f"environment {name!r}: {error}; {advice}") from error
    if not callable(function):
        raise TypeError(f"environment {name!r}: {attribute} is a {type(function).__name__}, not a callable")
    return cast(Callable[..., gymnasium.Env[Any, Any]], function)


def refusal(name: str, kwargs: Mapping[str, Any], error: Exception) -> str:
    """Return in words which settings an environment refuses, and why."""
    unknown = re.search(r"unexpected keyword argument '(.*?)'(?: was|\Z)", str(error), re.DOTALL)
    reason = f"it has no setting {unknown[1]!r}" if unknown else error
    return f"environment {name!r} refuses {dict(kwargs) or 'its defaults'}: {reason}"


def _unknown(name: str, error: Exception) -> str:
    reason = " ".join(str(error).split())
    if isinstance(error, ModuleNotFoundError) and (advice := remedy(name, missing(error))):
        return f"environment {name!r}: {reason.partition('. ')[0]}; {advice}"
    if name.startswith("popgym-"):
        return f"unknown environment {name!r}; did you mean 'popgym:{name}' (extra popgym)?"
    known = [*list_environments(), *gymnasium.registry]
    close = [
        f"popgym:{match}" if match.startswith("popgym-") else match
        for match in difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    ]
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return (
        f"unknown environment {name!r} ({reason}); choose a gymnasium id, module:callable "
        f"or one of {', '.join(list_environments()) or 'those you registered'}{hint}"
    )
