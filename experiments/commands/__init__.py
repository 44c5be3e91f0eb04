"""The verbs of the `scrubjay` command, a module each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train a recipe: scrubjay train tmaze --memory gru", "train.run"),
    "resume": ("go on with a run that was stopped or killed, or train one further", "train.resume"),
    "eval": ("play episodes with a trained policy, or ask a sequence model, and report", "evaluate.run"),
    "plot": ("draw the curves of one or several runs", "plot.run"),
    "play": ("write one episode to an animated GIF or a film", "play.run"),
    "look": ("show what a policy remembers in an episode: a page, a picture or a trace", "look.run"),
    "doctor": ("show versions, threads, GPU, and which extras lack what", "doctor.run"),
    "completion": ("make a shell complete verbs, options and names", "completion.run"),
    "list": ("show recipes, memories and environments", "list.run"),
    "export": (
        "write a policy for others: a step (torch.export, ONNX), or weights with a card",
        "export.run",
    ),
    "demo": ("train with and without a memory, and compare: a few minutes", "demo.run"),
    "compare": ("train memories x recipes x seeds, and tabulate", "compare.run"),
    "launch": ("train on a Ray cluster, as a job of its head", "cluster.launch"),
    "sweep": ("train many settings at once, and stop early what falls behind", "cluster.sweep"),
    "inspect": ("show a language model's attention: sinks, retrieval heads, maps", "inspect.run"),
    "longcontext": ("measure what context policies keep of a long text, and its cost", "longcontext.run"),
    "chat": ("talk to a local language model, as long as you like", "chat.run"),
    "agent": ("ask an agent that plans, calls tools and remembers", "agent.run"),
    "memory": ("search, show, add to, export or import an agent's memory", "memory.run"),
    "kagentbench": ("score an agent's predictions on KAgentBench", "kagentbench.run"),
}
"""What each verb does, in a line, and the function of this folder that does it."""


def command(verb: str) -> Callable[[Sequence[str]], int]:
    """Return the function that takes the words after `verb` and returns the exit code.

    It is imported now, and what computes only after its words are read: no --help must wait for torch.
    """
    module, _, function = COMMANDS[verb][1].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
