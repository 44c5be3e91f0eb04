"""The `scrubjay` command."""

from __future__ import annotations

import importlib
import logging
import os
import sys
from collections.abc import Sequence

import scrubjay
from scrubjay.experiments.words.arguments import UsageError, choose

VERBS = {
    "train": "train a recipe: scrubjay train tmaze --memory gru",
    "resume": "go on with a run that was stopped or killed",
    "eval": "play episodes with a trained policy and report return and success",
    "plot": "draw the curves of one or several runs",
    "play": "write one episode to an animated GIF",
    "list": "show recipes, memories and environments",
    "export": "write one policy step for other programs (torch.export, ONNX)",
    "demo": "train with and without a memory, and compare: a few minutes",
    "compare": "train memories x recipes x seeds, and tabulate",
    "launch": "train on a Ray cluster, as a job of its head",
    "sweep": "train many settings at once, and stop early what falls behind",
    "inspect": "show a language model's attention: sinks, retrieval heads, maps",
    "longcontext": "measure what context policies keep of a long text, and its cost",
    "chat": "talk to a local language model, as long as you like",
    "agent": "ask an agent that plans, calls tools and remembers",
    "memory": "search, show, add to, export or import an agent's memory",
    "kagentbench": "score an agent's predictions on KAgentBench",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code: 0 done, 1 failed on the way, 2 bad input (one line on stderr each), 130 stopped by Ctrl-C."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"scrubjay {scrubjay.__version__}")
        return 0
    # `--env module:callable` means a module in the folder one stands in; last, so that it shadows nothing.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        verb = choose("verb", words[0], list(VERBS))
        # Each verb imports what it needs when it is called: --help must not wait for torch.
        return importlib.import_module("scrubjay.experiments.commands.train").COMMANDS[verb](words[1:])
    except UsageError as error:
        print(f"scrubjay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _help() -> str:
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
    return f"usage: scrubjay VERB ...\n\n{verbs}\n\nscrubjay VERB --help tells more."


if __name__ == "__main__":
    sys.exit(main())
