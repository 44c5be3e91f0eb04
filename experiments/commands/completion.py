"""`scrubjay completion`: shell completion of commands, options, names and run directories.

The words are read from the help texts that tyro prints, and stored in the cache.

eval "$(scrubjay completion bash)"
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import argcomplete
from argcomplete.completers import FilesCompleter
from argcomplete.shell_integration import shellcode

from scrubjay.experiments.cli.cache import begin, load_or_build
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.cli.untrusted_text import printable, show_help
from scrubjay.experiments.commands import COMMANDS, load_command
from scrubjay.experiments.commands.list import names
from scrubjay.experiments.files import CONFIG

SHELLS = {
    "bash": 'eval "$(scrubjay completion bash)"',
    "zsh": 'autoload -U compinit && compinit; eval "$(scrubjay completion zsh)"',
    "fish": "scrubjay completion fish | source",
}
"""Supported shells, each with the line to add to its startup file."""

_POSITIONALS: Mapping[str, str] = {
    "eval": "run",
    "export": "run",
    "inspect": "model",
    "look": "source",
    "play": "source",
    "plot": "run",
    "results": "run",
    "resume": "run",
}
"""Meaning of the first argument of a command; its name in `_completer`."""
_WIDTH = "120"
"""Width of the help texts from which the words are read."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay completion bash|zsh|fish`."""
    if not argv or argv[0] in ("-h", "--help"):
        lines = "\n".join(f"  {shell:<5} {line}" for shell, line in SHELLS.items())
        show_help(
            f"usage: scrubjay completion {'|'.join(SHELLS)}\n\n"
            "Print the completion script: it completes commands, options, names of recipes, memories and\n"
            "environments, and run directories. Add the line for your shell to its startup file:\n\n"
            f"{lines}"
        )
    from scrubjay.experiments.cli.arguments import choose

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
    begin()
    parser = argparse.ArgumentParser("scrubjay")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers()
    for command, (summary, _) in COMMANDS.items():
        of_command = commands.add_parser(command, help=summary)
        if command in previous_words[:1]:
            _add_words(of_command, command, previous_words[1:])
    return parser


def _add_words(parser: argparse.ArgumentParser, command: str, words: Sequence[str]) -> None:
    """Add the arguments of a command, or of its action that is the first of `words`."""
    text = _read_help(command)
    if command in ("memory", "longcontext"):
        actions = parser.add_subparsers()
        for name, about in re.findall(r"^  (\w+)  +(.*)$", text, re.MULTILINE):
            of_action = actions.add_parser(name, help=about)
            if name in words[:1]:
                _add_arguments(of_action, _read_help(command, name), command)
        return
    if command == "completion":
        parser.add_argument("shell", choices=list(SHELLS))
    flags: list[str] = []
    if command in ("train", "launch", "sweep"):
        _add(parser, "recipe", nargs="?").completer = _names(names().recipes)
        flags = _recipe_flags(words)
    _add_arguments(parser, text, command, flags)


def _read_help(*words: str) -> str:
    """Return the help text of a command, without colors."""

    def read() -> str:
        output, columns = io.StringIO(), os.environ.get("COLUMNS")
        os.environ["COLUMNS"] = _WIDTH
        try:
            with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
                load_command(words[0])([*words[1:], "--help"])
        finally:
            del os.environ["COLUMNS"]
            if columns is not None:
                os.environ["COLUMNS"] = columns
        return output.getvalue()

    return load_or_build(["words", *words], read)


def _add_arguments(
    parser: argparse.ArgumentParser, text: str, command: str, flags: Iterable[str] = ()
) -> None:
    """Add the positional arguments and the options in a help text, and more `flags` with one value each."""
    boxes = re.split(r"^ (\S.*?) *\n -+ *$", text, flags=re.MULTILINE)
    for title, box in zip(boxes[1::2], boxes[2::2], strict=True):
        for number, metavar in enumerate(re.findall(r"^  (\S.*?)(?:  .*)?$", box, re.MULTILINE)):
            if title == "arguments":
                name = _POSITIONALS.get(command, "file") if not number else f"argument{number}"
                nargs = "*" if "..." in metavar else "?"
                _add(parser, name, nargs=nargs).completer = _completer(name, metavar, command)
            elif metavar.startswith("--"):
                _add_option(parser, metavar, command)
    for flag in flags:
        _add_option(parser, f"{flag} X", command)


def _add_option(parser: argparse.ArgumentParser, description: str, command: str) -> None:
    """Add an option from its description, such as `--budget INT` or `--quiet, --no-quiet`."""
    spellings = [one.partition(" ")[::2] for one in re.split(", (?=--)", description)]
    flags = [flag for flag, _ in spellings if flag not in parser._option_string_actions]
    metavar = spellings[-1][1]
    if not metavar:
        parser.add_argument(*flags, action="store_true")
    elif flags:
        argument = _add(parser, *flags, nargs="*" if "..." in metavar else None)
        argument.completer = _completer(flags[-1].removeprefix("--").replace("-", "_"), metavar, command)


def _recipe_flags(words: Sequence[str]) -> list[str]:
    """Return the command-line options of the recipe and the memory whose names are in `words`."""
    all_names = names()
    recipe = next((word for word in words if word in all_names.recipes), None)
    if recipe is None:
        return []
    after = [word.removeprefix("--memory=") for word in words[words.index(recipe) :]]
    memories = [word for word in after if word in all_names.memory_flags]
    memory = memories[-1] if memories else all_names.default_memories[recipe]
    return [*all_names.recipe_flags[recipe], *all_names.memory_flags[memory]]


def _completer(name: str, metavar: str, command: str) -> Any:
    """Return a completer for a value, chosen by its name and its description in the help text."""
    choices = [choice for choice in re.findall(r"[\w-]+", metavar) if choice not in ("None", "STR")]
    if name in ("run", "runs", "resume", "run_dir", "init_from"):
        return _runs
    if "PATH" in metavar or name == "out":
        return FilesCompleter()
    if re.fullmatch(r"\{[\w,-]+\}|[a-z-]+(\|[a-z-]+)+", metavar):
        return _names(choices)
    all_names = names()
    if name == "source":
        return lambda prefix, **_: [*all_names.environments, *all_names.recipes, *_runs(prefix)]
    if name == "model":
        return lambda prefix, **_: ["smollm2", *FilesCompleter()(prefix)]
    has_context_policies = command in ("agent", "chat", "inspect", "longcontext")
    values: dict[str, Iterable[str]] = {
        "env": all_names.environments,
        "learner": sorted({name for each in all_names.learners.values() for name in each}),
        "memories": all_names.memories,
        "memory": []
        if command == "eval"
        else all_names.memories,  # eval's --memory takes settings, not names
        "method": all_names.methods,
        "methods": all_names.context_policies if has_context_policies else all_names.methods,
        "policy": all_names.context_policies if has_context_policies else [],
        "recipes": all_names.recipes,
    }
    return _names(values.get(name, []))


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


def _add(parser: argparse.ArgumentParser, *flags: str, **keywords: Any) -> Any:
    return parser.add_argument(*flags, **keywords)
