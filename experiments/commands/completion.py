"""`scrubjay completion`: shell completion of commands, options, names and run directories.

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

from scrubjay.experiments.catalogue import load_catalogue
from scrubjay.experiments.cli.arguments import TRAINING_FLAGS, UsageError, choose
from scrubjay.experiments.cli.untrusted_text import printable
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.files import CONFIG
from scrubjay.experiments.runs.loggers import LOGGERS

SHELLS = {
    "bash": 'eval "$(scrubjay completion bash)"',
    "zsh": 'autoload -U compinit && compinit; eval "$(scrubjay completion zsh)"',
    "fish": "scrubjay completion fish | source",
}
"""Supported shells, each with the line to add to its startup file."""

_OPTIONS_CLASSES: Mapping[str, str] = {
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
"""Options dataclass of each command that has one."""

_EXTRA_FLAGS: Mapping[str, Sequence[str]] = {
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
"""Options of commands that are not fields of a dataclass."""
_SWITCHES = ("--detach", "--quiet", "--trust")


def run(argv: Sequence[str]) -> int:
    """`scrubjay completion bash|zsh|fish`."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {shell:<5} {line}" for shell, line in SHELLS.items())
        print(
            f"usage: scrubjay completion {'|'.join(SHELLS)}\n\n"
            "Print the completion script: it completes commands, options, names of recipes, memories and\n"
            "environments, and run directories. Add the line for your shell to its startup file:\n\n"
            f"{lines}"
        )
        return 0
    if len(argv) > 1:
        raise UsageError(f"unexpected argument {argv[1]!r}: completion takes the name of a shell")
    print(shellcode(["scrubjay"], shell=choose("shell", argv[0], list(SHELLS))))
    return 0


def complete() -> None:
    """Answer a completion request of the shell (argcomplete's protocol) and exit the process."""
    argcomplete.autocomplete(parser_after(_previous_words()), always_complete_options=False)


def _previous_words() -> list[str]:
    """Return the words of the command line before the word that the shell completes."""
    line = os.environ.get("COMP_LINE", "")[: int(os.environ.get("COMP_POINT") or 0)]
    try:
        words = shlex.split(line)
    except ValueError:  # an open quote
        words = line.split()
    return words[1:] if line.endswith(" ") else words[1:-1]


def parser_after(previous_words: Sequence[str]) -> argparse.ArgumentParser:
    """Return a parser with which argcomplete completes the word after `previous_words`.

    The parser has all commands, but only the current command has its options.
    """
    parser = argparse.ArgumentParser("scrubjay")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for command, (summary, _) in COMMANDS.items():
        _add_command(
            commands.add_parser(command, help=summary),
            command,
            previous_words if command in previous_words[:1] else None,
        )
    return parser


def _add_command(parser: argparse.ArgumentParser, command: str, previous_words: Sequence[str] | None) -> None:
    if previous_words is None:  # not the current command
        return
    flags = list(_EXTRA_FLAGS.get(command, ()))
    if command in ("train", "launch", "sweep"):
        _add(parser, "recipe", nargs="?").completer = _names(load_catalogue().recipes)
        flags += [*TRAINING_FLAGS, *_recipe_flags(previous_words[1:])]
    if command in ("memory", "longcontext"):
        actions = parser.add_subparsers()
        for name, (about, kind) in _actions(command).items():
            _add_fields(actions.add_parser(name, help=about), kind, command)
    if command in _OPTIONS_CLASSES:
        module, _, kind = _OPTIONS_CLASSES[command].partition(".")
        _add_fields(parser, getattr(importlib.import_module(f"{__package__}.{module}"), kind), command)
    if command == "completion":
        parser.add_argument("shell", choices=list(SHELLS))
    for flag in dict.fromkeys(flags):
        _add_flag(parser, flag, command)


def _actions(command: str) -> dict[str, tuple[str, type]]:
    if command == "memory":
        from scrubjay.experiments.commands.memory import ACTIONS

        return {name: (about, kind) for name, (about, kind, _) in ACTIONS.items()}
    from scrubjay.experiments.commands.longcontext import MEASUREMENTS

    return dict(MEASUREMENTS)


def _recipe_flags(words: Sequence[str]) -> list[str]:
    """Return the command-line options of the recipe and the memory whose names are in `words`."""
    entries = load_catalogue()
    recipe = next((word for word in words if word in entries.recipes), None)
    if recipe is None:
        return []
    after = [word.removeprefix("--memory=") for word in words[words.index(recipe) :]]
    memories = [word for word in after if word in entries.memory_options]
    memory = memories[-1] if memories else entries.default_memories[recipe]
    return [*entries.options[entries.kinds[recipe]], *entries.memory_options[memory]]


def _add_flag(parser: argparse.ArgumentParser, flag: str, command: str) -> None:
    if flag in _SWITCHES:
        parser.add_argument(flag, action="store_true")
        return
    _add(parser, flag).completer = _completer(flag.removeprefix("--").replace("-", "_"), str, command)


def _add_fields(parser: argparse.ArgumentParser, options_class: type, command: str) -> None:
    """Add one option per field of a dataclass, with the same spelling as tyro."""
    for name, hint in typing.get_type_hints(options_class, include_extras=True).items():
        if get_origin(hint) is typing.ClassVar or name.isupper():
            continue
        positional = hint is not (plain := _without_marker(hint))
        base, many = _unwrap_type(plain)
        flag = name if positional else f"--{name.replace('_', '-')}"
        if base is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction)
            continue
        argument = _add(parser, flag, nargs="*" if many else "?" if positional else None)
        argument.completer = _completer(name, base, command)


def _without_marker(hint: Any) -> Any:
    marker = get_origin(Positional[int])
    return get_args(hint)[0] if hasattr(hint, "__metadata__") or get_origin(hint) is marker else hint


def _unwrap_type(hint: Any) -> tuple[Any, bool]:
    """Return the type of one value of an option, and True if the option takes several values.

    An option takes several values if its type is a tuple. None is removed from the type.
    """
    if get_origin(hint) in (Union, UnionType):
        (hint, *_) = (kind for kind in get_args(hint) if kind is not type(None))
    return (_unwrap_type(get_args(hint)[0])[0], True) if get_origin(hint) is tuple else (hint, False)


def _completer(name: str, value_type: Any, command: str) -> Any:
    """Return a completer for a value, chosen by its type and name."""
    entries = load_catalogue()
    if get_origin(value_type) is Literal:
        return _names(get_args(value_type))
    if name in ("run", "runs", "resume", "run_dir", "init_from"):
        return _runs
    if value_type is Path or name == "out":
        return FilesCompleter()
    needs_context_policies = command in ("agent", "chat", "longcontext")
    names: dict[str, Iterable[str]] = {
        "engine": ["local", "ray"],
        "env": entries.environments,
        "logger": LOGGERS,
        "learner": sorted({name for names in entries.learners.values() for name in names}),
        "memories": entries.memories,
        "memory": [] if command == "eval" else entries.memories,  # eval's --memory takes settings, not names
        "method": entries.methods,
        "methods": entries.context_policies if needs_context_policies else entries.methods,
        "policy": entries.context_policies if needs_context_policies else [],
        "recipes": entries.recipes,
    }
    if name == "source":
        return lambda prefix, **_: [*entries.environments, *entries.recipes, *_runs(prefix)]
    if name == "model":
        return lambda prefix, **_: ["smollm2", *FilesCompleter()(prefix)]
    return _names(names.get(name, []))


def _names(names: Iterable[str]) -> Callable[..., list[str]]:
    choices = list(names)
    return lambda **_: choices


def _runs(prefix: str, **_: object) -> list[str]:
    """Return run directories whose path begins with `prefix`, and other folders with a slash at the end.

    After the slash, the shell can complete further.
    Names with control characters are skipped, since they cannot be printed unchanged.
    """
    folder = Path(prefix).parent if not prefix.endswith("/") else Path(prefix)
    try:
        folders = sorted(
            path
            for path in folder.expanduser().iterdir()
            if printable(path.name) == path.name and path.is_dir()
        )
    except OSError:
        return []
    texts = (os.path.join(os.path.dirname(prefix), path.name) for path in folders)
    return [
        text if (path / CONFIG).exists() else f"{text}/" for path, text in zip(folders, texts, strict=True)
    ]


def _add(parser: argparse.ArgumentParser, flag: str, **keywords: Any) -> Any:
    return parser.add_argument(flag, **keywords)
