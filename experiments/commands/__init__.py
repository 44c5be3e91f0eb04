"""The subcommands of `scrubjay`, one module each."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence

COMMANDS: dict[str, tuple[str, str]] = {
    "train": ("train a recipe: scrubjay train tmaze --memory gru", "train.run"),
    "resume": ("continue a run that was interrupted, or train a finished run further", "train.resume"),
    "eval": ("evaluate a trained policy, team or sequence model", "evaluate.run"),
    "plot": ("plot learning curves of one or several runs", "pictures.plot"),
    "play": ("record one episode as an animated GIF or a video", "pictures.play"),
    "look": ("visualize the memory of a policy in an episode: a page, a picture or a trace", "pictures.look"),
    "doctor": ("show versions, threads, GPU and missing packages", "doctor.run"),
    "completion": ("print the shell completion script", "completion.run"),
    "list": ("list recipes, memories and environments", "list.run"),
    "export": (
        "export a policy: one step (torch.export, ONNX), or weights with a model card",
        "export.run",
    ),
    "results": ("tabulate runs: settings, status and scores, also as CSV", "export.results"),
    "demo": ("train with and without memory and compare; takes a few minutes", "compare.demo"),
    "compare": ("train memories x recipes x seeds and tabulate the results", "compare.compare"),
    "launch": ("train on a Ray cluster, as a job on its head node", "cluster.launch"),
    "sweep": ("train a grid of settings in parallel", "cluster.sweep"),
    "inspect": ("show the attention of a language model: sinks, retrieval heads, maps", "inspect.run"),
    "longcontext": ("benchmark context policies on long texts: quality and cost", "benchmarks.longcontext"),
    "chat": ("chat with a local language model, without a limit on length", "chat.run"),
    "agent": ("ask an agent with tools and a long-term memory", "agent.run"),
    "memory": ("search, show, edit, export, import or benchmark an agent's memory", "memory.run"),
    "kagentbench": ("score predictions on KAgentBench", "benchmarks.kagentbench"),
}
"""Summary of each command, and the function of this package that runs it."""


def load_command(name: str) -> Callable[[Sequence[str]], int]:
    """Import and return the function of a command. The function takes arguments and returns an exit code.

    Command modules import torch only after they have parsed the arguments, so that --help is fast.
    """
    module, _, function = COMMANDS[name][1].partition(".")
    return getattr(importlib.import_module(f"{__name__}.{module}"), function)
