"""`scrubjay list`: recipes, methods, learners, memories and environments by their names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache

from scrubjay.experiments.catalogue import Catalogue, catalogue, gathered
from scrubjay.experiments.runs.own import VARIABLE
from scrubjay.experiments.words.arguments import UsageError
from scrubjay.experiments.words.terminal import table


def run(words: Sequence[str]) -> int:
    """`scrubjay list`."""
    if words and words[0] in ("-h", "--help"):
        print(
            "usage: scrubjay list\n\n"
            "Show recipes, methods, learners, memories with the bytes of state per agent, and environments."
        )
        return 0
    if words:
        raise UsageError(f"unexpected argument {words[0]!r}: list takes none")
    kept = known()
    memories = [(name, f"{kept.state_bytes[name]:>9,} B", about) for name, about in kept.memories.items()]
    print(f"recipes\n{table(recipes())}\n")
    print(f"methods (of recipes with several agents)\n{table(methods())}\n")
    print(f"learners, of\n{table(learners())}\n")
    print(f"memories (state per agent at width 64)\n{table(memories)}\n")
    print("environments\n" + table([(name,) for name in kept.environments]))
    return 0


@cache
def known() -> Catalogue:
    """Return what is kept, or what there is where modules of the user's own have registered more."""
    return gathered() if os.environ.get(VARIABLE) else catalogue()


def recipes() -> list[tuple[str, str]]:
    """Return the names of all recipes, each with a line about it."""
    return list(known().recipes.items())


def learners() -> list[tuple[str, str]]:
    """Return whose policies are learned, each with the names of the learners there are."""
    whose = {"agent": "one agent", "team": "teams"}
    return [(whose[acts], ", ".join(names)) for acts, names in known().learners.items()]


def methods() -> list[tuple[str, str]]:
    """Return the names of all methods of teams, each with a line about it."""
    return list(known().methods.items())
