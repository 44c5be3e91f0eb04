"""Command lines parsed by tyro, with errors of one line that name the value and the choices."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
from collections.abc import Sequence
from typing import Any, TypeVar

import tyro

from scrubjay.experiments.words.failures import UsageError

T = TypeVar("T")

_REGISTERED = ("memory", "learner")
"""Of which there may be others than ours."""
OWN = "; SCRUBJAY_IMPORT names a module that registers your own"
"""What to do about a name that only a module of the user's own knows."""
_REWORDED = (
    (r"^(\S+): invalid literal for int\(\) with base 10: (.*)$", r"\1 \2: expected a whole number"),
    (r"^(\S+): could not convert string to float: (.*)$", r"\1 \2: expected a number"),
    (r"^(\S+): Exceeds the limit .*value has (\d+) digits.*$", r"\1: a number of \2 digits is too long"),
    (
        r"^(\S+): no type matching (.*) could be instantiated from \[(.*?)\]\. Got errors: .*$",
        r"\1 \3: expected one of \2",
    ),
)

OF_TRAINING = (
    "--memory",
    "--learner",
    "--method",
    "--env",
    "--set",
    "--init-from",
    "--run-dir",
    "--quiet",
    "--logger",
)
"""Flags by which a training is begun, beside those of its config."""


def parse(
    kind: type[T], arguments: Sequence[str], prog: str, default: T | None = None, taken: Sequence[str] = ()
) -> T:
    """Return `kind`, a dataclass, filled from the command line.

    `taken` are flags that the command takes beside it, which a wrong one may have meant. Raises UsageError
    instead of tyro's boxed messages; `--help` prints and raises SystemExit(0).
    """
    boxed = io.StringIO()
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    try:
        with contextlib.redirect_stderr(boxed):
            config, unknown = tyro.cli(
                kind, prog=prog, args=list(arguments), return_unknown_args=True, **keywords
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_first_paragraph(boxed.getvalue())) from None
    if unknown:
        raise UsageError(_describe_unknown(unknown, [*taken, *flags_of(config)], arguments))
    return config


def did_you_mean(name: str, known: Sequence[str]) -> str:
    """Return `; did you mean 'x'?`, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(what: str, name: str, known: Sequence[str]) -> str:
    """Return `name` if it is known; raises UsageError naming the choices otherwise."""
    if name not in known:
        own = OWN if what in _REGISTERED else ""
        raise UsageError(
            f"unknown {what} {name!r}; choose from {', '.join(known)}{own}{did_you_mean(name, known)}"
        )
    return name


def take_flag(arguments: list[str], flag: str) -> list[str]:
    """Remove every `--flag value` and `--flag=value` from `arguments` and return the values."""
    values, position = [], 0
    while position < len(arguments):
        argument = arguments[position]
        if argument == flag:
            if position + 1 == len(arguments):
                raise UsageError(f"{flag} needs a value")
            values.append(arguments[position + 1])
            del arguments[position : position + 2]
        elif argument.startswith(f"{flag}="):
            values.append(argument.removeprefix(f"{flag}="))
            del arguments[position]
        else:
            position += 1
    return values


def in_full(arguments: Sequence[str], learner_field: str, learner: str) -> list[str]:
    """Return the words with the short options of a policy's memory, and of what trains it, in full."""
    for short in ("--learner.", f"--{learner}."):
        arguments = [re.sub(f"^{re.escape(short)}", f"--{learner_field}.", word) for word in arguments]
    return [word.replace("--memory.", "--policy.memory.", 1) for word in arguments]


def _first_paragraph(boxed: str) -> str:
    """Return the text of tyro's message box, up to its first ruler, as one line."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", boxed)
    blocks: list[list[str]] = [[]]
    for line in plain.splitlines():
        text = line.strip("│| ").strip()
        if text.startswith(("╭", "╰")):
            continue
        if text and not text.strip("─-"):
            blocks.append([])
        else:
            blocks[-1].append(text)
    # Where there are no letters to draw a box with, its title has a ruler of its own below it.
    told = blocks[0] if "╭" in plain or len(blocks) == 1 else blocks[1]
    # tyro wraps at the terminal's width; joined words read as before.
    message = re.sub(r"^Error parsing ", "", " ".join(" ".join(told).split()))
    return _without_pythons_words(message) or "bad command line"


def _without_pythons_words(message: str) -> str:
    """Return what tyro says of a value in words for who typed it, not for who wrote the parser."""
    for pythons, ours in _REWORDED:
        message = re.sub(pythons, ours, message)
    return message


def _describe_unknown(unknown: Sequence[str], flags: Sequence[str], arguments: Sequence[str]) -> str:
    wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
    if not wrong.startswith("-"):
        return f"unexpected argument {wrong!r}{_of_a_switch(wrong, arguments)}"
    name = wrong.partition("=")[0]
    return f"unknown option {name!r}{did_you_mean(name, flags)}; --help lists all"


def _of_a_switch(value: str, arguments: Sequence[str]) -> str:
    """Return how to say what was said as a switch and its value; nothing of other words."""
    pairs = [*itertools.pairwise(arguments), *(word.split("=", 1) for word in arguments)]
    named = [word for word, *rest in pairs if word.startswith("--") and rest == [value]]
    if value.lower() not in ("true", "false") or not named:
        return ""
    path, dot, name = named[0].removeprefix("--").rpartition(".")
    name = name.replace("_", "-").removeprefix("no-")
    return f": a switch takes no value, --{path}{dot}{name} is on and --{path}{dot}no-{name} off"


def flags_of(config: Any, prefix: str = "--") -> list[str]:
    """Return the options that `parse` takes for the fields of a dataclass, and of those within it."""
    flags = []
    for field in dataclasses.fields(config):
        if field.metadata.get("recorded") or str(field.type).startswith("Positional["):  # which is no flag
            continue
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += flags_of(value, f"{name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, item in enumerate(value):
                flags += flags_of(item, f"{name}.{index}.")
        else:
            flags.append(name)
    return flags
