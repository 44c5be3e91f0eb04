"""The `scrubjay` command."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Sequence

import scrubjay
from scrubjay.experiments.commands import COMMANDS, command
from scrubjay.experiments.words.arguments import UsageError, choose

_MODULE = re.compile(r"(^|[=,])[A-Za-z_][\w.]*:[A-Za-z_]")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit code.

    0 done; 1 failed on the way, 2 bad input, with one line on stderr each; 130 stopped by Ctrl-C.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_help())
        return 0
    if words[0] == "--version":
        print(f"scrubjay {scrubjay.__version__}")
        return 0
    # `--env module:callable` means a module in the folder one stands in; last, so that it shadows nothing.
    # Only then: an extra that is not installed, say, is not to be found there.
    if any(map(_MODULE.search, words)) or "--trust" in words:
        sys.path.extend({os.getcwd()} - {*sys.path})
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    try:
        return command(choose("verb", words[0], list(COMMANDS)))(words[1:])
    except UsageError as error:
        print(f"scrubjay: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130


def _help() -> str:
    width = max(map(len, COMMANDS))
    verbs = "\n".join(f"  {verb:<{width}}  {what}" for verb, (what, _) in COMMANDS.items())
    return f"usage: scrubjay VERB ...\n\n{verbs}\n\nscrubjay VERB --help tells more."


if __name__ == "__main__":
    sys.exit(main())
