"""What there is to choose from, kept as data: who only shows names does not wait for what they name.

python -P -m scrubjay.experiments.catalogue
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scrubjay.experiments.forms import Form, kept

_FILE = Path(__file__).with_suffix(".json")
_WIDTH = 64
"""Of the memories whose bytes are told."""


@dataclass(frozen=True)
class Catalogue:
    """Names, in the order in which they are shown, each with a line about it where there is one."""

    recipes: dict[str, str]
    methods: dict[str, str]
    """Of recipes with several agents."""
    learners: dict[str, list[str]]
    """By whose policies they improve: "agent" or "team"."""
    memories: dict[str, str]
    state_bytes: dict[str, int]
    """Of each memory, per agent at width 64."""
    memory_options: dict[str, list[str]]
    """Of the command, for the fields of each memory."""
    memory_of: dict[str, str]
    """Of each recipe, if none is named."""
    kinds: dict[str, str]
    """Of each recipe."""
    options: dict[str, list[str]]
    """Of the command, for the fields of each kind of experiment but its memory's."""
    environments: list[str]
    context_policies: list[str]
    forms: dict[str, Form]
    """Of the classes of configs, by their names."""
    experiments: dict[str, dict[str, Any]]
    """Of each recipe, what differs from these forms."""
    memory_values: dict[str, dict[str, Any]]
    """Of each memory the same."""
    memory_settings: dict[str, dict[str, dict[str, Any]]]
    """Of each recipe, of each memory there that gets something beside its defaults."""
    method_settings: dict[str, dict[str, Any]]
    """Of each method: what it sets in policy and learner, and its memory."""
    learner_of: dict[str, list[str]]
    """Of each recipe with a learner: the field of the config that holds it, and its name."""


@cache
def catalogue() -> Catalogue:
    """Return what is kept."""
    return Catalogue(**json.loads(_FILE.read_text("utf-8")))


def gathered() -> Catalogue:
    """Return what the registries hold, which is to be kept."""
    from scrubjay.agents.learners import list_learners, name_of_learner
    from scrubjay.envs import list_environments
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.methods import METHODS
    from scrubjay.experiments.words.arguments import flags_of
    from scrubjay.memory import context, list_memories, make, name_of

    memories = {name: make(name, dim=_WIDTH) for name in list_memories()}
    configs: dict[str, Any] = {name: recipe() for name, recipe in RECIPES.items()}
    sampled = {name: config for name, config in configs.items() if config.acts}
    forms: dict[str, Form] = {}
    options = {config.kind: flags_of(config) for config in configs.values()}
    return Catalogue(
        recipes={name: recipe.description for name, recipe in RECIPES.items()},
        methods={name: method.description for name, method in METHODS.items()},
        learners={acts: list_learners(acts) for acts in ("agent", "team")},
        memories={
            name: (type(memory).__doc__ or "").strip().partition("\n")[0] for name, memory in memories.items()
        },
        state_bytes={name: memory.state_bytes() for name, memory in memories.items()},
        memory_options={name: flags_of(memory.config, "--memory.") for name, memory in memories.items()},
        memory_of={name: name_of(config.memory) for name, config in configs.items()},
        kinds={name: config.kind for name, config in configs.items()},
        options={
            kind: [flag for flag in flags if ".memory." not in flag and not flag.startswith("--memory.")]
            for kind, flags in options.items()
        },
        environments=list_environments(),
        context_policies=sorted(context.list_policies()),
        forms=forms,
        experiments={name: kept(config, forms) for name, config in configs.items()},
        memory_values={name: kept(memory.config, forms) for name, memory in memories.items()},
        memory_settings={
            name: {memory: dict(fields) for memory, fields in recipe.settings.items()}
            for name, recipe in RECIPES.items()
        },
        method_settings={
            name: {"policy": method.policy, "learner": method.learner, "memory": method.memory}
            for name, method in METHODS.items()
        },
        learner_of={
            name: [config.learner_field, name_of_learner(config.learner)] for name, config in sampled.items()
        },
    )


if __name__ == "__main__":
    _FILE.write_text(json.dumps(dataclasses.asdict(gathered()), indent=2, ensure_ascii=False) + "\n", "utf-8")
