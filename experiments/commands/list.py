"""`scrubjay list`: recipes, methods, learners, memories and environments by their names."""

from __future__ import annotations

from collections.abc import Sequence

from scrubjay.envs import list_environments
from scrubjay.experiments.commands.train import learners, methods, recipes
from scrubjay.experiments.words.arguments import UsageError
from scrubjay.experiments.words.terminal import table
from scrubjay.memory import list_memories, make


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
    print(f"recipes\n{table(recipes())}\n")
    print(f"methods (of recipes with several agents)\n{table(methods())}\n")
    print(f"learners, of\n{table(learners())}\n")
    memories = []
    for name in list_memories():
        memory = make(name, dim=64)
        lines = (type(memory).__doc__ or "").strip().splitlines()
        memories.append((name, f"{memory.state_bytes():>9,} B", lines[0] if lines else ""))
    print(f"memories (state per agent at width 64)\n{table(memories)}\n")
    print("environments\n" + table([(name,) for name in list_environments()]))
    return 0
