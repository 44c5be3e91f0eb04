"""The standard streams of a command that must not fall over them: closed, full, or of few letters."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

_ESCAPING = "scrubjay.escape"
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Give a closed stream the null device, and let letters that an encoding lacks be written as escapes.

    Without that the first file to be opened takes a closed stream's number, and what is printed goes there.
    Who set NO_COLOR is heeded by tyro, too, which has a word of its own for it and reads it when imported.
    """
    if os.environ.get("NO_COLOR"):
        os.environ.setdefault("PYTHON_TYRO_ANSI_CODES", "False")
    codecs.register_error(_ESCAPING, _escaped)
    for number, name in enumerate(_NAMES):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, _null(number))
        elif number and isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors=_ESCAPING)


def give_up_output() -> None:
    """Send what is still unwritten nowhere: the interpreter would complain of it once more when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            with contextlib.suppress(OSError), open(os.devnull, "w") as null:
                os.dup2(null.fileno(), stream.fileno())
        except ValueError:  # closed by who replaced it
            pass


def _null(number: int) -> io.TextIOWrapper:
    with contextlib.suppress(OSError):
        os.fstat(number)
        number = -1  # the interpreter has opened something of its own there
    opened = os.open(os.devnull, os.O_RDWR)
    if opened == number:
        os.set_inheritable(opened, True)
    return open(opened, "r" if number == 0 else "w", encoding="utf-8", errors=_ESCAPING)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Write letters as JSON does, so that its lines stay such, and bytes of a file's name as Python does."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    words = []
    for letter in error.object[error.start : error.end]:
        if 0xDC80 <= ord(letter) <= 0xDCFF:
            words.append(f"\\x{ord(letter) - 0xDC00:02x}")
        else:
            units = letter.encode("utf-16-be", "surrogatepass")
            words += [f"\\u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)]
    return "".join(words), error.end
