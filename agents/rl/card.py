"""The model card of a policy, in the Hugging Face form: what it is, where it comes from, how it is loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory.registry import name_of

_MADE_BY_NAME = re.compile(r"[\w./:-]+-v\d+", re.ASCII)


@dataclass(frozen=True)
class Origin:
    """Where a policy comes from, for its card; what nobody knows is left out there."""

    environment: str | None = None
    """What it learned in: a gymnasium id, or a name of your own."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Those of the environment."""
    learner: str | None = None
    """What taught it."""
    steps: int | None = None
    """Of the environment, seen in training."""
    seed: int | None = None
    """Of its training."""
    result: Mapping[str, float] = field(default_factory=dict)
    """Of the trained policy: `episodic_return` and `success`, with `_low` and `_high` of their 95 %
    intervals, and `episodes`."""

    def interval(self, name: str) -> str | None:
        """Return a result with its interval in words; None where there is none."""
        if name not in self.result:
            return None
        low, high = (self.result.get(f"{name}_{end}") for end in ("low", "high"))
        told = f"{self.result[name]:.3f}"
        return told if low is None or high is None else f"{told} [{low:.3f}, {high:.3f}]"


def card(kind: str, config: Any, spaces: Spaces, origin: Origin) -> str:
    """Return the text of the card of a policy of the class `kind`."""
    memory = name_of(config.memory)
    rows = {
        "memory": f"`{memory}`, width {config.memory.dim}",
        "environment": None if origin.environment is None else _code(origin.environment),
        "settings": ", ".join(_code(f"{name}={value!r}") for name, value in origin.settings.items()) or None,
        "agents": spaces.num_agents,
        "observations": _code(spaces.observation),
        "actions": _code(spaces.action),
        "learner": None if origin.learner is None else _code(origin.learner),
        "steps": None if origin.steps is None else f"{origin.steps:,}",
        "seed": origin.seed,
        "episodes tested": origin.result.get("episodes"),
        "success, 95 % interval": origin.interval("success"),
        "return, 95 % interval": origin.interval("episodic_return"),
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items() if value is not None)
    where = "" if origin.environment is None else f" that learned in {_code(origin.environment)}"
    return (
        f"---\n{_front_matter(kind, memory, origin)}---\n\n"
        f"# A policy with the memory `{memory}`\n\n"
        f"A `{kind}` of scrubjay (`pip install scrubjay`){where}.\n\n"
        f"| | |\n| --- | --- |\n{table}\n\n"
        f"## Use\n\n```python\n{_code_that_loads(kind, origin)}```\n\n"
        "Loading runs no code of this folder: `model.safetensors` holds weights, `config.json` values.\n"
    )


def _front_matter(kind: str, memory: str, origin: Origin) -> str:
    from huggingface_hub import EvalResult, ModelCardData  # waited for by who writes a card alone

    named = origin.environment or "unknown environment"
    seeds = None if origin.seed is None else [origin.seed]
    metrics = {"mean_reward": "episodic_return", "success": "success"}
    results = [
        EvalResult(
            task_type="reinforcement-learning",
            dataset_type=named,
            dataset_name=named,
            metric_type=metric,
            metric_value=origin.result[name],
            metric_args=None if seeds is None else {"seeds": seeds},
        )
        for metric, name in metrics.items()
        if name in origin.result
    ]
    known: dict[str, Any] = {"environment": origin.environment, "steps": origin.steps, "seeds": seeds}
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
        **{name: value for name, value in known.items() if value is not None},
    )
    return f"{data.to_yaml()}\n"


def _code_that_loads(kind: str, origin: Origin) -> str:
    """Return a snippet that loads the policy, and has it act where its environment is made by name."""
    loading = f'from scrubjay.agents import {kind}\n\npolicy = {kind}.from_pretrained(".")  # this folder\n'
    named = origin.environment or ""
    if kind != "Policy" or not _MADE_BY_NAME.fullmatch(named):
        return loading
    settings = "".join(
        f", {name}={value!r}" for name, value in origin.settings.items() if name.isidentifier()
    )
    return (
        f"import gymnasium\n{loading}"
        f"env = gymnasium.make({named!r}{settings})\n"
        "observation, _ = env.reset(seed=0)\n"
        "state, over, total = None, False, 0.0\n"
        "while not over:\n"
        "    action, state = policy.act(observation, state)\n"
        "    observation, reward, terminated, truncated, _ = env.step(action)\n"
        "    over, total = terminated or truncated, total + float(reward)\n"
        "print(total)\n"
    )


def _code(value: object) -> str:
    """Return a value as code within a line of a table, whatever it holds."""
    text = re.sub(r"[`|\s]+", " ", str(value))
    return f"`{text[:200]}`"
