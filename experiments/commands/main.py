"""The `scrubjay` command."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging

from scrubjay.experiments.cli.failures import report

_COLORS = re.compile(r"\x1b\[[0-9;]*m")
_ESCAPING = "scrubjay.escape"
_NAMES = ("stdin", "stdout", "stderr")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    The code is 0 for success, 1 for a failure at run time, 2 for bad input (1 and 2 with one line on stderr),
    130 for Ctrl-C and 141 for a closed output pipe. For an unexpected error the line names a file with the
    traceback; with SCRUBJAY_TRACEBACK=1 the error propagates instead.
    """
    _open_streams()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BaseException as error:  # noqa: BLE001  (every error is reported in one line)
        return report(error)
    finally:
        _discard_output()


def _run(argv: list[str]) -> int:
    # Imported here, so that main also reports Ctrl-C and a broken installation in one line.
    if "_ARGCOMPLETE" in os.environ:  # a shell requests completions
        from scrubjay.experiments.commands.completion import complete

        complete()
    import scrubjay
    from scrubjay.experiments.cli.untrusted_text import format_entries
    from scrubjay.experiments.commands import COMMANDS

    if not argv or argv[0] in ("-h", "--help"):
        commands = format_entries({name: summary for name, (summary, _) in COMMANDS.items()})
        print(f"usage: scrubjay COMMAND ...\n\n{commands}\n\nRun scrubjay COMMAND --help for details.")
        return 0
    if argv[0] == "--version":
        print(f"scrubjay {scrubjay.__version__}")
        return 0
    from scrubjay.experiments import user_modules
    from scrubjay.experiments.cli import cache
    from scrubjay.experiments.cli.failures import bad_input

    with user_modules.search_current_folder():
        with bad_input():
            user_modules.import_user_modules()
        cache.begin()
        words = argv[: argv.index("--")] if "--" in argv else argv
        # The help of a config file shows its values, which may change.
        is_help = not {"-h", "--help"}.isdisjoint(words) and "--config" not in " ".join(words)
        return _show_help(argv) if is_help else _run_command(argv)


def _show_help(argv: list[str]) -> int:
    """Print the stored help text of a command line; without one, run the command and store its help."""
    from scrubjay.experiments.cli import cache

    key = cache.display_key(argv)
    text = cache.load(key)
    if isinstance(text, str):
        print(text, end="")
        return 0
    output = cache.Recorder(sys.stdout)
    with contextlib.redirect_stdout(output), cache.show_progress():  # pyright: ignore[reportArgumentType]
        return _run_command(argv, on_help=lambda: cache.store(key, output.text))


def _run_command(argv: list[str], on_help: Callable[[], None] = lambda: None) -> int:
    """Run a command; return its exit code. `on_help` is called if the command only printed its help."""
    import logging

    from scrubjay.experiments.cli.arguments import choose
    from scrubjay.experiments.cli.untrusted_text import HelpShown
    from scrubjay.experiments.commands import COMMANDS, load_command
    from scrubjay.experiments.files import release_folders

    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    run_command = load_command(choose("command", argv[0], list(COMMANDS)))
    try:
        with _sanitize_warnings():
            return run_command(argv[1:])
    except HelpShown:
        on_help()
        return 0
    except SystemExit as stop:
        if isinstance(stop.__context__, BrokenPipeError):  # rich raises SystemExit for a closed pipe
            raise stop.__context__ from None
        raise
    finally:
        release_folders()


@contextlib.contextmanager
def _sanitize_warnings() -> Iterator[None]:
    """Sanitize the warnings and log records of all libraries in the `with` block.

    They may quote files of strangers. Colors are removed, since transformers prints some without a terminal.
    """
    import logging

    from scrubjay.experiments.cli.untrusted_text import printable

    make_record, format_warning = logging.getLogRecordFactory(), warnings.formatwarning

    def make_printable_record(*words: Any, **options: Any) -> logging.LogRecord:
        record = make_record(*words, **options)
        try:
            message = record.getMessage()
        except (TypeError, ValueError, LookupError):  # a library's fault must not end a command
            message = f"{record.msg} {record.args!r}"
        record.msg, record.args = printable(_COLORS.sub("", message)), ()
        return record

    logging.setLogRecordFactory(make_printable_record)
    warnings.formatwarning = lambda *words, **options: printable(format_warning(*words, **options))
    try:
        yield
    finally:
        logging.setLogRecordFactory(make_record)
        warnings.formatwarning = format_warning


def _open_streams() -> None:
    """Connect closed standard streams to the null device, and escape characters that their encoding lacks.

    Without this, the next opened file would reuse the descriptor of a closed stream, and output would be
    written to that file. If NO_COLOR is set, also set the color variable that tyro reads at import.
    """
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    codecs.register_error(_ESCAPING, _escape)
    for number, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _open_null(number))
        elif number and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_ESCAPING)


def _discard_output() -> None:
    """Redirect a stream to the null device if its buffered output cannot be written.

    Otherwise the interpreter would report the write error again at exit.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())
        except ValueError:  # the stream was replaced and closed
            pass


def _open_null(number: int) -> io.TextIOWrapper:
    with contextlib.suppress(OSError):
        os.fstat(number)
        number = -1  # the interpreter has already opened another file there
    descriptor = os.open(os.devnull, os.O_RDWR)
    if descriptor == number:
        os.set_inheritable(descriptor, True)
    return open(descriptor, "r" if number == 0 else "w", encoding="utf-8", errors=_ESCAPING)


def _escape(error: UnicodeError) -> tuple[str, int]:
    """Return escapes for the characters that cannot be encoded, and the position where encoding continues.

    Characters get JSON escapes, so that printed JSON stays valid. Undecodable bytes get Python escapes.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    escapes = []
    for character in error.object[error.start : error.end]:
        if 0xDC80 <= ord(character) <= 0xDCFF:
            escapes.append(f"\\x{ord(character) - 0xDC00:02x}")
        else:
            units = character.encode("utf-16-be", "surrogatepass")
            escapes += [f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)]
    return "".join(escapes), error.end


if __name__ == "__main__":
    sys.exit(main())
