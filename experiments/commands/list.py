"""`scrubjay list`: list recipes, methods, learners, memories and environments."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from scrubjay.experiments.catalogue import Catalogue, build_catalogue, load_catalogue
from scrubjay.experiments.cli.arguments import UsageError
from scrubjay.experiments.cli.terminal import table
from scrubjay.experiments.user_modules import IMPORT_VARIABLE


def run(argv: Sequence[str]) -> int:
    """`scrubjay list`."""
    if argv and argv[0] in ("-h", "--help"):
        print(
            "usage: scrubjay list\n\n"
            "List recipes, methods, learners, memories (with bytes of state per agent) and environments."
        )
        return 0
    if argv:
        raise UsageError(f"unexpected argument {argv[0]!r}: list takes no arguments")
    entries = current_catalogue()
    memories = [
        (name, f"{entries.state_bytes[name]:>9,} B", about) for name, about in entries.memories.items()
    ]
    print(f"recipes\n{table(list_recipes())}\n")
    print(f"methods (for multi-agent recipes)\n{table(list_methods())}\n")
    print(f"learners\n{table(list_learner_names())}\n")
    print(f"memories (state per agent at width 64)\n{table(memories)}\n")
    print("environments\n" + table([(name,) for name in entries.environments]))
    return 0


@cache
def current_catalogue() -> Catalogue:
    """Return the stored catalogue, or a new one if user modules may have registered further names."""
    return build_catalogue() if os.environ.get(IMPORT_VARIABLE) else load_catalogue()


def list_recipes() -> list[tuple[str, str]]:
    """Return all recipe names with their summaries."""
    return list(current_catalogue().recipes.items())


def list_learner_names() -> list[tuple[str, str]]:
    """Return the names of all learners, grouped by single-agent and team learners."""
    titles = {"agent": "single agent", "team": "team"}
    return [
        (titles[policy_type], ", ".join(names)) for policy_type, names in current_catalogue().learners.items()
    ]


def list_methods() -> list[tuple[str, str]]:
    """Return all multi-agent method names with their summaries."""
    return list(current_catalogue().methods.items())
