"""Command-line parsing with tyro. Every error is one line that names the invalid value and the choices."""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NoReturn, TypeVar, get_type_hints

import docstring_parser
import tyro
from tyro.conf import UseAppendAction, arg

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.cli.headings import Headings
from scrubjay.experiments.cli.untrusted_text import HelpShown

T = TypeVar("T")

_EXTENSIBLE = ("memory", "learner")
"""Labels of values for which users can register their own classes."""
OWN_MODULE_HINT = "; SCRUBJAY_IMPORT names a module that registers your own"
"""Hint for an unknown name that a user module may register."""
_CHOICE = re.compile(r"invalid choice '(.*)' for argument '(?:--)?(.*)'\. Expected one of \((.*)\) ?\.")
_REWORDINGS = (
    (
        r"^(\S+): no type matching \{None\}\|INT could be instantiated from \[(.*?)\]\..*$",
        r"\1 \2: expected a whole number",
    ),
    (
        r"^(\S+): no type matching \{None\}\|FLOAT could be instantiated from \[(.*?)\]\..*$",
        r"\1 \2: expected a number",
    ),
    (r"^Missing value for argument '(\S+)'\..*$", r"\1 needs a value"),
    (r"^(\S+): invalid literal for int\(\) with base 10: (.*)$", r"\1 \2: expected a whole number"),
    (r"^(\S+): could not convert string to float: (.*)$", r"\1 \2: expected a number"),
    (r"^(\S+): Exceeds the limit .*value has (\d+) digits.*$", r"\1: a number of \2 digits is too long"),
    (
        r"^(\S+): no type matching (.*) could be instantiated from \[(.*?)\]\. Got errors: .*$",
        r"\1 \3: expected one of \2",
    ),
)


@dataclass(frozen=True)
class RecipeFlags:
    """Flags that choose the parts of a config. They are applied in this order, and may be repeated."""

    method: UseAppendAction[tuple[str, ...]] = ()
    """Training method of a multi-agent recipe."""
    learner: UseAppendAction[tuple[str, ...]] = ()
    """Learner of a recipe with a policy; `--learner.FIELD` sets a field of it."""
    memory: UseAppendAction[tuple[str, ...]] = ()
    """Memory; `--memory.FIELD` sets a field of it."""
    env: Annotated[UseAppendAction[tuple[str, ...]], arg(aliases=["--env.id"])] = ()
    """Environment of a recipe with a policy: an id or module:callable."""
    set: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="NAME=VALUE")] = ()
    """Setting of the environment, such as corridor_length=50."""
    wrap: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="WRAPPER", aliases=["--env.wrappers"])] = ()
    """Wrapper of a single-agent environment: a name in gymnasium.wrappers or module:Wrapper, with arguments
    in parentheses, such as "FrameStackObservation(stack_size=4)". Repeat the flag for several. The first one
    is the innermost."""


def parse(
    options_type: type[T],
    arguments: Sequence[str],
    prog: str,
    default: T | None = None,
    extra_flags: Sequence[str] = (),
) -> T:
    """Return an instance of the dataclass `options_type`, filled from the command line.

    `extra_flags` are flags of the command that are not fields of the dataclass. The error for an unknown flag
    suggests the most similar flag.
    Raises UsageError instead of printing tyro's boxed messages. `--help` prints and raises HelpShown.
    """
    keywords: dict[str, Any] = {} if default is None else {"default": default}
    config, unknown = _parse(options_type, arguments, prog=prog, **keywords)
    if unknown:
        raise UsageError(_describe_unknown(unknown, [*extra_flags, *list_flags(config)], arguments))
    return config


def parse_known(options_type: type[T], arguments: Sequence[str]) -> tuple[T, list[str]]:
    """Return an instance of `options_type`, and the arguments that are not options of it, such as --help.

    Raises UsageError on an invalid value.
    """
    return _parse(options_type, arguments, add_help=False)


def _parse(options_type: type[T], arguments: Sequence[str], **keywords: Any) -> tuple[T, list[str]]:
    error_output = io.StringIO()
    try:
        output: Any = Headings(sys.stdout)
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(error_output),
            _join_lines_of_docstrings(),
        ):
            return tyro.cli(options_type, args=list(arguments), return_unknown_args=True, **keywords)
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich raises SystemExit for a closed pipe
            raise stop.__context__ from None
        if stop.code in (0, None):
            raise HelpShown from None
        raise UsageError(_first_paragraph(error_output.getvalue())) from None


def print_help(options_type: type[Any], prog: str, description: str) -> NoReturn:
    """Print the help of options below a description, and end the command with exit code 0."""
    _parse(options_type, ["--help"], prog=prog, description=description)
    raise HelpShown


def wants_help(arguments: Sequence[str]) -> bool:
    """Return True if the command line asks for help."""
    return not {"-h", "--help"}.isdisjoint(arguments)


def print_recipe_help(
    config: Any, flags: Mapping[type[Any], Sequence[str]], prog: str, options_type: type[Any] | None
) -> NoReturn:
    """Print the help of all options of a command with a recipe, and end the command with exit code 0.

    `config` is the config of the recipe, whose values are the defaults. `flags` are the names of the accepted
    fields of `RecipeFlags` and similar classes. `options_type` has the other options of the command, if any.
    """
    values = {each.name: getattr(config, each.name) for each in dataclasses.fields(config) if each.init}
    new_fields: list[tuple[str, Any, Any]] = []
    overrides: list[tuple[str, Any, Any]] = []
    for flags_type, names in flags.items():
        hints = get_type_hints(flags_type, include_extras=True)
        docs = docstring_parser.parse_from_object(flags_type).params
        about = {each.args[1]: " ".join((each.description or "").split()) for each in docs}
        for name in names:
            marks = getattr(hints[name], "__metadata__", ())
            flag = next((mark.name for mark in marks if getattr(mark, "name", None)), name)
            # Without aliases, which are the flags of fields that the config lists, too.
            hint = Annotated[hints[name], arg(name=flag, help=about[name], aliases=())]
            # Such as the label of a method, which the flag sets.
            if name in values and not dataclasses.is_dataclass(values[name]):
                del values[name]
                overrides.append((name, hint, ()))
            else:
                new_fields.append((f"flag_{name}", hint, ()))
    own = () if options_type is None else (options_type,)
    bases = type(config), *own, dataclasses.make_dataclass("Flags", new_fields, frozen=True)
    all_options: Any = dataclasses.make_dataclass(type(config).__name__, overrides, bases=bases, frozen=True)
    all_options.__doc__ = type(config).__doc__
    default = all_options(**values)
    _parse(all_options, ["--help"], prog=prog, default=default)
    raise HelpShown


@contextlib.contextmanager
def _join_lines_of_docstrings() -> Iterator[None]:
    """Let tyro read each paragraph of a field's docstring as one line, since it prints line breaks."""
    read_docstring = docstring_parser.parse_from_object

    def read_and_join(obj: object) -> docstring_parser.Docstring:
        docstring = read_docstring(obj)
        for field in docstring.params:
            paragraphs = re.split(r"\n\s*\n", field.description or "")
            field.description = "\n\n".join(" ".join(text.split()) for text in paragraphs)
        return docstring

    docstring_parser.parse_from_object = read_and_join
    try:
        yield
    finally:
        docstring_parser.parse_from_object = read_docstring


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """Return `; did you mean 'x'?`, or an empty string if no choice is similar."""
    close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def choose(label: str, name: str, choices: Sequence[str]) -> str:
    """Return `name` if it is one of the choices; otherwise raise UsageError listing them."""
    if name not in choices:
        own = OWN_MODULE_HINT if label in _EXTENSIBLE else ""
        raise UsageError(
            f"unknown {label} {name!r}; choose from {', '.join(choices)}{own}{did_you_mean(name, choices)}"
        )
    return name


def expand_short_options(arguments: Sequence[str], learner: str) -> list[str]:
    """Expand `--memory.`, and the learner's name as in `--ppo.`, to the full paths of the config's fields."""
    arguments = [re.sub(f"^--{re.escape(learner)}\\.", "--learner.", argument) for argument in arguments]
    return [word.replace("--memory.", "--policy.memory.", 1) for word in arguments]


def _first_paragraph(message_box: str) -> str:
    """Return the first paragraph of tyro's boxed error message as one line, with clearer wording."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", message_box)
    blocks: list[list[str]] = [[]]
    for line in plain.splitlines():
        text = line.strip("│| ").strip()
        if text.startswith(("╭", "╰")):
            continue
        if text and not text.strip("─-"):
            blocks.append([])
        else:
            blocks[-1].append(text)
    # Without box-drawing characters (ASCII terminals) the title has its own ruler below it.
    paragraph = blocks[0] if "╭" in plain or len(blocks) == 1 else blocks[1]
    # tyro wraps at the terminal's width; undo the wrapping.
    message = re.sub(r"^Error parsing ", "", " ".join(" ".join(paragraph).split()))
    return _reword(message) or "bad command line"


def _reword(message: str) -> str:
    """Replace messages of Python and tyro about an invalid value by clearer messages."""
    if choice := _CHOICE.match(message):
        value, flag, choices = choice[1], choice[2], sorted({*re.findall(r"'(.*?)'", choice[3])} - {"None"})
        return f"unknown {flag} {value!r}; choose from {', '.join(choices)}{did_you_mean(value, choices)}"
    for pattern, replacement in _REWORDINGS:
        message = re.sub(pattern, replacement, message)
    return message


def _describe_unknown(unknown: Sequence[str], flags: Sequence[str], arguments: Sequence[str]) -> str:
    wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
    if not wrong.startswith("-"):
        return f"unexpected argument {wrong!r}{_describe_switch(wrong, arguments)}"
    name = wrong.partition("=")[0]
    if name == "--config":
        advice = "write the entries of the file as flags of train, such as --total-steps 4000"
        return f"unknown option {name!r}: only scrubjay train reads a config file; {advice}"
    if name in flags:  # of scrubjay train, not a setting of a run
        return f"option {name!r} belongs to scrubjay train; the settings of runs do not have it"
    if owners := find_owners(name):
        return f"unknown option {name!r}: of the memories, only {', '.join(owners)} have it"
    return f"unknown option {name!r}{did_you_mean(name, flags)}; --help lists all"


def find_owners(flag: str) -> list[str]:
    """Return the memories that have the option `flag`; empty if it is no option of a memory."""
    path, _, name = flag.rpartition(".")
    if path != "--policy.memory":
        return []
    from scrubjay.memory import list_memories, make_config

    field = name.removeprefix("no-").replace("-", "_")
    return [
        memory
        for memory in list_memories()
        if field in {each.name for each in dataclasses.fields(make_config(memory))}
    ]


def _describe_switch(value: str, arguments: Sequence[str]) -> str:
    """Return a hint if `value` was passed to a boolean option; otherwise an empty string."""
    pairs = [*itertools.pairwise(arguments), *(word.split("=", 1) for word in arguments)]
    switches = [word for word, *rest in pairs if word.startswith("--") and rest == [value]]
    if value.lower() not in ("true", "false") or not switches:
        return ""
    path, dot, name = switches[0].removeprefix("--").rpartition(".")
    name = name.replace("_", "-").removeprefix("no-")
    return f": a boolean option takes no value; use --{path}{dot}{name} or --{path}{dot}no-{name}"


def list_flags(config: Any, prefix: str = "--") -> list[str]:
    """Return the flags that `parse` accepts for the fields of a dataclass and of nested dataclasses."""
    flags = []
    for field in dataclasses.fields(config):
        if field.metadata.get("recorded") or str(field.type).startswith("Positional["):  # not flags
            continue
        value, name = getattr(config, field.name), prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            flags += list_flags(value, f"{name}.")
        elif isinstance(value, tuple) and any(map(dataclasses.is_dataclass, value)):
            for index, item in enumerate(value):
                flags += list_flags(item, f"{name}.{index}.")
        else:
            flags.append(name)
    return flags


def parse_setting(text: str) -> tuple[str, bool | int | float | str]:
    """Return name and value of `name=value`; booleans and numbers are converted."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ValueError(f"setting {text!r}: write it as name=value, for example corridor_length=50")
    return name.replace("-", "_"), parse_value(value)


def parse_value(text: str) -> bool | int | float | str:
    """Return the boolean or number that `text` stands for, or else `text` itself."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
