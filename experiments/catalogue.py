"""Catalogue of recipes, memories, learners and options, stored as JSON.

Commands that only list names read this file and therefore import no torch.

Regenerate the file with:

    python -P -m scrubjay.experiments.catalogue
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scrubjay.experiments.forms import ConfigSchema, to_dict

_FILE = Path(__file__).with_suffix(".json")
_WIDTH = 64
"""Width of the memories in `Catalogue.state_bytes`."""


@dataclass(frozen=True)
class Catalogue:
    """Names and settings of recipes, methods, memories, learners and environments, in display order.

    `recipes`, `methods` and `memories` map each name to a one-line description.
    """

    recipes: dict[str, str]
    methods: dict[str, str]
    """Training methods, such as MAPPO, of recipes with several agents."""
    learners: dict[str, list[str]]
    """Dict from the type of a policy, "agent" or "team", to the names of the learners that train it."""
    memories: dict[str, str]
    state_bytes: dict[str, int]
    """State size of each memory in bytes, for one agent and width 64."""
    memory_options: dict[str, list[str]]
    """Command-line options for the fields of each memory."""
    default_memories: dict[str, str]
    """Default memory of each recipe."""
    kinds: dict[str, str]
    """Experiment type of each recipe, as stored in config.json."""
    options: dict[str, list[str]]
    """Command-line options of each experiment type, without the options of its memory."""
    environments: list[str]
    context_policies: list[str]
    schemas: dict[str, ConfigSchema]
    """Dict from the name of each config class to its schema."""
    experiments: dict[str, dict[str, Any]]
    """Config of each recipe: the values that differ from the defaults in `schemas`."""
    memory_values: dict[str, dict[str, Any]]
    """Config of each memory: the values that differ from the defaults in `schemas`."""
    memory_settings: dict[str, dict[str, dict[str, Any]]]
    """Settings with which a recipe overrides the defaults of a memory: `memory_settings[recipe][memory]`."""
    method_settings: dict[str, dict[str, Any]]
    """Policy settings, learner settings and memory of each method."""
    default_learners: dict[str, str]
    """Registered name of the default learner of each recipe that trains a policy."""


@cache
def load_catalogue() -> Catalogue:
    """Load the catalogue from its JSON file."""
    return Catalogue(**json.loads(_FILE.read_text("utf-8")))


def build_catalogue() -> Catalogue:
    """Build the catalogue from the registered recipes, methods, memories, learners and environments."""
    from scrubjay.agents.learners import get_learner_name, list_learners
    from scrubjay.envs import list_environments
    from scrubjay.experiments.cli.arguments import list_flags
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.teams import METHODS
    from scrubjay.memory import context, list_memories, make, name_of

    memories = {name: make(name, dim=_WIDTH) for name in list_memories()}
    configs: dict[str, Any] = {name: recipe() for name, recipe in RECIPES.items()}
    trained_configs = {name: config for name, config in configs.items() if config.policy_type}
    forms: dict[str, ConfigSchema] = {}
    options = {config.kind: list_flags(config) for config in configs.values()}
    return Catalogue(
        recipes={name: recipe.description for name, recipe in RECIPES.items()},
        methods={name: method.description for name, method in METHODS.items()},
        learners={policy_type: list_learners(policy_type) for policy_type in ("agent", "team")},
        memories={
            name: (type(memory).__doc__ or "").strip().partition("\n")[0] for name, memory in memories.items()
        },
        state_bytes={name: memory.state_bytes() for name, memory in memories.items()},
        memory_options={name: list_flags(memory.config, "--memory.") for name, memory in memories.items()},
        default_memories={name: name_of(config.memory) for name, config in configs.items()},
        kinds={name: config.kind for name, config in configs.items()},
        options={
            kind: [flag for flag in flags if ".memory." not in flag and not flag.startswith("--memory.")]
            for kind, flags in options.items()
        },
        environments=list_environments(),
        context_policies=sorted(context.list_policies()),
        schemas=forms,
        experiments={name: to_dict(config, forms) for name, config in configs.items()},
        memory_values={name: to_dict(memory.config, forms) for name, memory in memories.items()},
        memory_settings={
            name: {memory: dict(fields) for memory, fields in recipe.settings.items()}
            for name, recipe in RECIPES.items()
        },
        method_settings={
            name: {"policy": method.policy, "learner": method.learner, "memory": method.memory}
            for name, method in METHODS.items()
        },
        default_learners={name: get_learner_name(config.learner) for name, config in trained_configs.items()},
    )


if __name__ == "__main__":
    _FILE.write_text(
        json.dumps(dataclasses.asdict(build_catalogue()), indent=2, ensure_ascii=False) + "\n", "utf-8"
    )
