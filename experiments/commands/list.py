"""`scrubjay list`: list recipes, methods, learners, memories and environments."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass

from scrubjay.experiments.cli.cache import load_or_build
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.cli.untrusted_text import format_entries, show_help, table

_WIDTH = 64
"""Width of the memories in `Names.state_bytes`."""


@dataclass(frozen=True)
class Names:
    """Registered names in display order. Dicts of strings map each name to its one-line description."""

    recipes: dict[str, str]
    methods: dict[str, str]
    """Training methods, such as MAPPO, of recipes with several agents."""
    learners: dict[str, list[str]]
    """Dict from the type of a policy, "agent" or "team", to the names of the learners that train it."""
    memories: dict[str, str]
    state_bytes: dict[str, int]
    """State size of each memory in bytes, for one agent and width 64."""
    environments: list[str]
    context_policies: list[str]
    memory_flags: dict[str, list[str]]
    """Command-line options for the fields of each memory."""
    recipe_flags: dict[str, list[str]]
    """Command-line options of each recipe, without the options of its memory."""
    default_memories: dict[str, str]
    """Default memory of each recipe."""


def names() -> Names:
    """Return all registered names, from the cache if possible."""
    return Names(**load_or_build(["names"], lambda: dataclasses.asdict(_build())))


def _build() -> Names:
    from scrubjay.agents.learners import list_learners
    from scrubjay.envs import list_environments
    from scrubjay.experiments.cli.arguments import list_flags
    from scrubjay.experiments.recipes import RECIPES
    from scrubjay.experiments.recipes.teams import METHODS
    from scrubjay.memory import context, list_memories, make, name_of

    memories = {name: make(name, dim=_WIDTH) for name in list_memories()}
    configs = {name: recipe() for name, recipe in RECIPES.items()}
    return Names(
        recipes={name: recipe.description for name, recipe in RECIPES.items()},
        methods={name: method.description for name, method in METHODS.items()},
        learners={policy_type: list_learners(policy_type) for policy_type in ("agent", "team")},
        memories={
            name: (type(memory).__doc__ or "").strip().partition("\n")[0] for name, memory in memories.items()
        },
        state_bytes={name: memory.state_bytes() for name, memory in memories.items()},
        environments=list_environments(),
        context_policies=sorted(context.list_policies()),
        memory_flags={name: list_flags(memory.config, "--memory.") for name, memory in memories.items()},
        recipe_flags={
            name: [flag for flag in list_flags(config) if not re.match(r"--(\w+\.)?memory\.", flag)]
            for name, config in configs.items()
        },
        default_memories={name: name_of(config.memory) for name, config in configs.items()},
    )


def run(argv: Sequence[str]) -> int:
    """`scrubjay list`."""
    if argv and argv[0] in ("-h", "--help"):
        show_help(
            "usage: scrubjay list\n\n"
            "List recipes, methods, learners, memories (with bytes of state per agent) and environments."
        )
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}: list takes no arguments")
    all_names = names()
    memories = [
        (name, f"{all_names.state_bytes[name]:>9,} B", about) for name, about in all_names.memories.items()
    ]
    print(f"recipes\n{format_entries(all_names.recipes)}\n")
    print(f"methods (for multi-agent recipes)\n{format_entries(all_names.methods)}\n")
    print(f"learners\n{describe_learners(all_names)}\n")
    print(f"memories (state per agent at width 64)\n{table(memories)}\n")
    print("environments\n" + table([(name,) for name in all_names.environments]))
    return 0


def describe_learners(all_names: Names) -> str:
    """Return a table of the learners, grouped by single-agent and team learners."""
    titles = {"agent": "single agent", "team": "team"}
    return table([(titles[policy_type], ", ".join(each)) for policy_type, each in all_names.learners.items()])
