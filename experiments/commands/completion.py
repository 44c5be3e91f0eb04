"""`scrubjay completion`: what makes a shell complete verbs, options, names and run directories.

eval "$(scrubjay completion bash)"
"""

from __future__ import annotations

import argparse
import importlib
import os
import shlex
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.shell_integration import shellcode
from tyro.conf import Positional

from scrubjay.experiments.catalogue import catalogue
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.loggers import LOGGERS
from scrubjay.experiments.runs.directory import CONFIG
from scrubjay.experiments.words.arguments import OF_TRAINING, UsageError, choose
from scrubjay.experiments.words.foreign import printable

SHELLS = {
    "bash": 'eval "$(scrubjay completion bash)"',
    "zsh": 'autoload -U compinit && compinit; eval "$(scrubjay completion zsh)"',
    "fish": "scrubjay completion fish | source",
}
"""The shells that can complete, and the line for the file that each reads at its start."""

_OPTIONS: Mapping[str, str] = {
    "agent": "agent.AgentOptions",
    "chat": "chat.ChatOptions",
    "compare": "compare.CompareOptions",
    "demo": "demo.DemoOptions",
    "eval": "evaluate.EvalOptions",
    "export": "export.ExportOptions",
    "inspect": "inspect.InspectOptions",
    "kagentbench": "kagentbench.KAgentBenchOptions",
    "look": "look.LookOptions",
    "play": "play.PlayOptions",
    "plot": "plot.PlotOptions",
    "resume": "train.ResumeOptions",
}
"""Where the options of verbs stand that have a dataclass of them."""

_BY_HAND: Mapping[str, Sequence[str]] = {
    "eval": ["--set", "--memory"],
    "launch": [
        "--address",
        "--detach",
        "--resume",
        "--total-steps",
        "--trust",
        "--num-env-runners",
        "--num-learners",
    ],
    "look": ["--set"],
    "play": ["--set"],
    "resume": ["--engine", "--num-env-runners", "--num-learners", "--address"],
    "sweep": ["--param", "--out", "--jobs", "--address", "--trust"],
    "train": ["--engine", "--num-env-runners", "--num-learners", "--address"],
}
"""Options of verbs that stand in no dataclass."""
_WITHOUT_VALUE = ("--detach", "--quiet", "--trust")


def run(words: Sequence[str]) -> int:
    """`scrubjay completion bash|zsh|fish`."""
    if not words or words[0] in ("-h", "--help"):
        lines = "\n".join(f"  {shell:<5} {line}" for shell, line in SHELLS.items())
        print(
            f"usage: scrubjay completion {'|'.join(SHELLS)}\n\n"
            "Print what makes a shell complete verbs, options, names of recipes, memories and environments, "
            "and\nrun directories. Put the line into the file that your shell reads at its start:\n\n"
            f"{lines}"
        )
        return 0
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}: completion takes the name of a shell")
    print(shellcode(["scrubjay"], shell=choose("shell", words[0], list(SHELLS))))
    return 0


def complete() -> None:
    """Answer the shell that asks, as argcomplete's script does, and end the process."""
    argcomplete.autocomplete(parser_after(_typed()), always_complete_options=False)


def _typed() -> list[str]:
    """Return the whole words before the one that is being completed."""
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)]
    try:
        words = shlex.split(line)
    except ValueError:  # within quotes
        words = line.split()
    return words[1:] if line.endswith(" ") else words[1:-1]


def parser_after(typed: Sequence[str]) -> argparse.ArgumentParser:
    """Return what completion must know of the command after some words: all verbs, and of one its options."""
    parser = argparse.ArgumentParser("scrubjay")
    parser.add_argument("--version", action="store_true")
    verbs = parser.add_subparsers()
    for verb, (about, _) in COMMANDS.items():
        _add_verb(verbs.add_parser(verb, help=about), verb, typed if verb in typed[:1] else None)
    return parser


def _add_verb(parser: argparse.ArgumentParser, verb: str, typed: Sequence[str] | None) -> None:
    if typed is None:  # another verb, whose options nobody asks for
        return
    flags = list(_BY_HAND.get(verb, ()))
    if verb in ("train", "launch", "sweep"):
        _add(parser, "recipe", nargs="?").completer = _names(catalogue().recipes)
        flags += [*OF_TRAINING, *_of_recipe(typed[1:])]
    if verb in ("memory", "longcontext"):
        actions = parser.add_subparsers()
        for name, (about, kind) in _actions(verb).items():
            _add_fields(actions.add_parser(name, help=about), kind, verb)
    if verb in _OPTIONS:
        module, _, kind = _OPTIONS[verb].partition(".")
        _add_fields(parser, getattr(importlib.import_module(f"{__package__}.{module}"), kind), verb)
    if verb == "completion":
        parser.add_argument("shell", choices=list(SHELLS))
    for flag in dict.fromkeys(flags):
        _add_flag(parser, flag, verb)


def _actions(verb: str) -> dict[str, tuple[str, type]]:
    if verb == "memory":
        from scrubjay.experiments.commands.memory import ACTIONS

        return {name: (about, kind) for name, (about, kind, _) in ACTIONS.items()}
    from scrubjay.experiments.longcontext.commands import MEASUREMENTS

    return dict(MEASUREMENTS)


def _of_recipe(words: Sequence[str]) -> list[str]:
    """Return the options of the recipe that was named, with those of the memory that was."""
    kept = catalogue()
    recipe = next((word for word in words if word in kept.recipes), None)
    if recipe is None:
        return []
    after = [word.removeprefix("--memory=") for word in words[words.index(recipe) :]]
    named = [word for word in after if word in kept.memory_options]
    memory = named[-1] if named else kept.memory_of[recipe]
    return [*kept.options[kept.kinds[recipe]], *kept.memory_options[memory]]


def _add_flag(parser: argparse.ArgumentParser, flag: str, verb: str) -> None:
    if flag in _WITHOUT_VALUE:
        parser.add_argument(flag, action="store_true")
        return
    _add(parser, flag).completer = _completer(flag.removeprefix("--").replace("-", "_"), str, verb)


def _add_fields(parser: argparse.ArgumentParser, kind: type, verb: str) -> None:
    """Add the options of a dataclass as tyro spells them."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if get_origin(hint) is typing.ClassVar or name.isupper():
            continue
        positional = hint is not (plain := _without_marker(hint))
        base, many = _base(plain)
        flag = name if positional else f"--{name.replace('_', '-')}"
        if base is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
            continue
        added = _add(parser, flag, nargs="*" if many else "?" if positional else None)
        added.completer = _completer(name, base, verb)


def _without_marker(hint: Any) -> Any:
    marked = get_origin(Positional[int])
    return get_args(hint)[0] if hasattr(hint, "__metadata__") or get_origin(hint) is marked else hint


def _base(hint: Any) -> tuple[Any, bool]:
    """Return what a value is of, None aside, and whether there may be many."""
    if get_origin(hint) in (Union, UnionType):
        (hint, *_) = (kind for kind in get_args(hint) if kind is not type(None))
    return (_base(get_args(hint)[0])[0], True) if get_origin(hint) is tuple else (hint, False)


def _completer(name: str, kind: Any, verb: str) -> Any:
    """Return what completes a value, by what it is and what it is called."""
    kept = catalogue()
    if get_origin(kind) is Literal:
        return _names(get_args(kind))
    if name in ("run", "runs", "resume", "run_dir", "init_from"):
        return _runs
    if kind is Path or name == "out":
        return FilesCompleter()
    of_language = verb in ("agent", "chat", "longcontext")
    names: dict[str, Iterable[str]] = {
        "engine": ["local", "ray"],
        "env": kept.environments,
        "logger": LOGGERS,
        "learner": sorted({name for names in kept.learners.values() for name in names}),
        "memories": kept.memories,
        "memory": [] if verb == "eval" else kept.memories,  # there of settings of the one it has
        "method": kept.methods,
        "methods": kept.context_policies if of_language else kept.methods,
        "policy": kept.context_policies if of_language else [],
        "recipes": kept.recipes,
    }
    if name == "what":
        return lambda prefix, **_: [*kept.environments, *kept.recipes, *_runs(prefix)]
    if name == "model":
        return lambda prefix, **_: ["smollm2", *FilesCompleter()(prefix)]
    return _names(names.get(name, []))


def _names(names: Iterable[str]) -> Callable[..., list[str]]:
    known = list(names)
    return lambda **_: known


def _runs(prefix: str, **_: object) -> list[str]:
    """Return the directories that begin like this: runs as they are, others with a slash, to go on from.

    A name that would steer the terminal is left out: it could not be offered as it is.
    """
    folder = Path(prefix).parent if not prefix.endswith("/") else Path(prefix)
    try:
        found = sorted(
            path
            for path in folder.expanduser().iterdir()
            if printable(path.name) == path.name and path.is_dir()
        )
    except OSError:
        return []
    written = (os.path.join(os.path.dirname(prefix), path.name) for path in found)
    return [
        text if (path / CONFIG).exists() else f"{text}/" for path, text in zip(found, written, strict=True)
    ]


def _add(parser: argparse.ArgumentParser, flag: str, **keywords: Any) -> Any:
    return parser.add_argument(flag, **keywords)
