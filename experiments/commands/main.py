"""The `scrubjay` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

from scrubjay.experiments.cli.failures import report
from scrubjay.experiments.cli.streams import discard_output, open_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return the exit code.

    The code is 0 for success, 1 for a failure at run time, 2 for bad input (1 and 2 with one line on stderr),
    130 for Ctrl-C and 141 for a closed output pipe. For an unexpected error the line names a file with the
    traceback; with SCRUBJAY_TRACEBACK=1 the error propagates instead.
    """
    open_streams()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BaseException as error:  # noqa: BLE001  (every error is reported in one line)
        return report(error)
    finally:
        discard_output()


def _run(argv: list[str]) -> int:
    # Imported here, so that main also reports Ctrl-C and a broken installation in one line.
    if "_ARGCOMPLETE" in os.environ:  # a shell requests completions
        from scrubjay.experiments.commands.completion import complete

        complete()
    import scrubjay
    from scrubjay.experiments.commands import COMMANDS, load_command

    if not argv or argv[0] in ("-h", "--help"):
        print(_help(COMMANDS))
        return 0
    if argv[0] == "--version":
        print(f"scrubjay {scrubjay.__version__}")
        return 0
    import logging

    from scrubjay.experiments import user_modules
    from scrubjay.experiments.cli.arguments import choose
    from scrubjay.experiments.cli.terminal import bad_input

    logging.basicConfig(handlers=[_log_handler()], level=logging.WARNING)
    run_command = load_command(choose("command", argv[0], list(COMMANDS)))
    with user_modules.search_current_folder():
        with bad_input():
            user_modules.import_user_modules()
        try:
            return run_command(argv[1:])
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich raises SystemExit for a closed pipe
                raise stop.__context__ from None
            if stop.code in (0, None):  # tyro exits after printing help
                return 0
            raise


def _log_handler() -> logging.Handler:
    """Return a handler that writes warnings to stderr, with untrusted text sanitized."""
    import logging

    from scrubjay.experiments.cli.untrusted_text import printable

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(levelname)s: %(message)s"))
    return handler


def _help(commands: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:<{width}}  {summary}" for name, (summary, _) in commands.items())
    return f"usage: scrubjay COMMAND ...\n\n{lines}\n\nRun scrubjay COMMAND --help for details."


if __name__ == "__main__":
    sys.exit(main())
