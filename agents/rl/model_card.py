"""Hugging Face model card of a policy: description, training environment, results and a loading example."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from scrubjay.agents.rl.encoders.choice import is_factory
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory.registry import name_of

_ENV_ID = re.compile(r"[\w./:-]+-v\d+", re.ASCII)


@dataclass(frozen=True)
class Origin:
    """Training details of a policy for its model card; unknown values are omitted from the card."""

    environment: str | None = None
    """Training environment: a gymnasium id or a custom name."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the environment."""
    learner: str | None = None
    """Name of the learner."""
    steps: int | None = None
    """Number of environment steps of the training."""
    seed: int | None = None
    """Seed of the training."""
    result: Mapping[str, float] = field(default_factory=dict)
    """Evaluation results by name: `episodic_return`, `success` and the number of `episodes`. Names with the
    suffixes `_low` and `_high` are the bounds of 95 % confidence intervals."""
    wrappers: Sequence[str] = ()
    """Wrappers of the environment, the innermost first."""

    def interval(self, name: str) -> str | None:
        """Return the result `name` as text with its interval, such as "0.950 [0.900, 0.975]".

        Returns None if there is no such result. The interval is omitted if a bound is missing.
        """
        if name not in self.result:
            return None
        low, high = (self.result.get(f"{name}_{end}") for end in ("low", "high"))
        text = f"{self.result[name]:.3f}"
        return text if low is None or high is None else f"{text} [{low:.3f}, {high:.3f}]"


def build_card(kind: str, config: Any, spaces: Spaces, origin: Origin) -> str:
    """Return the text of the model card of a policy whose class is named `kind`."""
    memory, encoder = name_of(config.memory), getattr(config, "encoder", "linear")
    rows = {
        "memory": f"`{memory}`, width {config.memory.dim}",
        "encoder": None if encoder == "linear" else _code(encoder),
        "environment": None if origin.environment is None else _code(origin.environment),
        "settings": ", ".join(_code(f"{name}={value!r}") for name, value in origin.settings.items()) or None,
        "wrappers": ", ".join(map(_code, origin.wrappers)) or None,
        "agents": spaces.num_agents,
        "observations": _code(spaces.observation),
        "actions": _code(spaces.action),
        "action masks": _describe_masks(spaces),
        "learner": None if origin.learner is None else _code(origin.learner),
        "steps": None if origin.steps is None else f"{origin.steps:,}",
        "seed": origin.seed,
        "episodes tested": origin.result.get("episodes"),
        "success, 95 % interval": origin.interval("success"),
        "return, 95 % interval": origin.interval("episodic_return"),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    where = "" if origin.environment is None else f" that learned in {_code(origin.environment)}"
    snippet = _build_snippet(kind, origin, spaces.action_masks, is_factory(encoder))
    return (
        f"---\n{_build_front_matter(kind, memory, origin)}---\n\n"
        f"# A policy with the memory `{memory}`\n\n"
        f"A `{kind}` of scrubjay (`pip install scrubjay`){where}.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n```python\n{snippet}```\n\n"
        "Loading runs no code of this folder: `model.safetensors` holds weights, `config.json` values.\n"
    )


def _build_front_matter(kind: str, memory: str, origin: Origin) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # a slow import that only model cards need

    environment = origin.environment or "unknown environment"
    seeds = None if origin.seed is None else [origin.seed]
    metrics = {"mean_reward": "episodic_return", "success": "success"}
    results = [
        EvalResult(
            task_type="reinforcement-learning",
            dataset_type=environment,
            dataset_name=environment,
            metric_type=metric,
            metric_value=origin.result[name],
            metric_args=None if seeds is None else {"seeds": seeds},
        )
        for metric, name in metrics.items()
        if name in origin.result
    ]
    metadata: dict[str, Any] = {"environment": origin.environment, "steps": origin.steps, "seeds": seeds}
    data = ModelCardData(
        library_name="scrubjay",
        pipeline_tag="reinforcement-learning",
        tags=[
            "reinforcement-learning",
            "memory",
            memory,
            *filter(None, [origin.environment, origin.learner]),
        ],
        model_name=f"{kind} with {memory}",
        eval_results=results or None,
        memory=memory,
        **{name: value for name, value in metadata.items() if value is not None},
    )
    return f"{data.to_yaml()}\n"


def _describe_masks(spaces: Spaces) -> str | None:
    if spaces.masks is None:
        return None
    if spaces.masks.in_observation:
        return f"{_code(spaces.masks.key)} in the observations"
    return "required: pass `action_mask=info['action_mask']` or `action_mask=env.action_masks()` to `act`"


def _build_snippet(kind: str, origin: Origin, action_masks: bool, has_own_encoder: bool) -> str:
    """Return example code that loads the policy, and runs an episode if the environment is a gymnasium id.

    The episode is left out if the environment has wrappers, which may be code of the user.
    """
    trust = ", trust=True" if has_own_encoder else ""
    loading = (
        f'from scrubjay.agents import {kind}\n\npolicy = {kind}.from_pretrained("."{trust})  # this folder\n'
    )
    environment = origin.environment or ""
    if kind != "Policy" or origin.wrappers or not _ENV_ID.fullmatch(environment):
        return loading
    settings = "".join(
        f", {name}={value!r}" for name, value in origin.settings.items() if name.isidentifier()
    )
    info, mask = ("_", "") if not action_masks else ("info", ", action_mask=read_mask(env, info)")
    imports = (
        "import gymnasium\n" + "from scrubjay.agents.rl.masks.action_masks import read_mask\n" * action_masks
    )
    return (
        f"{imports}{loading}"
        f"env = gymnasium.make({environment!r}{settings})\n"
        f"observation, {info} = env.reset(seed=0)\n"
        "state, over, total = None, False, 0.0\n"
        "while not over:\n"
        f"    action, state = policy.act(observation, state{mask})\n"
        f"    observation, reward, terminated, truncated, {info} = env.step(action)\n"
        "    over, total = terminated or truncated, total + float(reward)\n"
        "print(total)\n"
    )


def _code(value: object) -> str:
    """Format a value as inline code in a table cell; special characters are removed."""
    text = re.sub(r"[`|\s]+", " ", str(value))
    return f"`{text[:200]}`"
