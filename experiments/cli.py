"""The `scrubjay` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import logging

from scrubjay.experiments.words.failures import report
from scrubjay.experiments.words.streams import give_up_output, open_streams


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0 done; 1 failed on the way, 2 bad input, with one line on stderr each; 130 stopped by Ctrl-C; 141 where
    who read the output has gone. Of an error that nobody foresaw the line says where its traceback is;
    SCRUBJAY_TRACEBACK=1 lets it through.
    """
    open_streams()
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
        return code
    except BaseException as error:  # noqa: BLE001  (whatever it was, one line says so)
        return report(error)
    finally:
        give_up_output()


def _run(words: list[str]) -> int:
    # Within reach of main's one line for Ctrl-C and for a broken installation.
    if "_ARGCOMPLETE" in os.environ:  # a shell asks what can follow
        from scrubjay.experiments.commands.completion import complete

        complete()
    import scrubjay
    from scrubjay.experiments.commands import COMMANDS, command

    if not words or words[0] in ("-h", "--help"):
        print(_help(COMMANDS))
        return 0
    if words[0] == "--version":
        print(f"scrubjay {scrubjay.__version__}")
        return 0
    import logging

    from scrubjay.experiments.runs import own
    from scrubjay.experiments.words.arguments import choose
    from scrubjay.experiments.words.terminal import bad_input

    logging.basicConfig(handlers=[_log_handler()], level=logging.WARNING)
    verb = command(choose("verb", words[0], list(COMMANDS)))
    with own.current_folder_searched():
        with bad_input():
            own.import_own()
        try:
            return verb(words[1:])
        except SystemExit as stop:
            if isinstance(stop.__context__, BrokenPipeError):  # rich's, which has no other word for it
                raise stop.__context__ from None
            if stop.code in (0, None):  # tyro's, after it has shown help
                return 0
            raise


def _log_handler() -> logging.Handler:
    """Return what writes warnings, which may quote what others wrote, to stderr."""
    import logging

    from scrubjay.experiments.words.foreign import printable

    class Printable(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return printable(super().format(record))

    handler = logging.StreamHandler()
    handler.setFormatter(Printable("%(levelname)s: %(message)s"))
    return handler


def _help(commands: Mapping[str, tuple[str, str]]) -> str:
    width = max(map(len, commands))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, (what, _) in commands.items())
    return f"usage: scrubjay VERB ...\n\n{verbs}\n\nscrubjay VERB --help tells more."


if __name__ == "__main__":
    sys.exit(main())
