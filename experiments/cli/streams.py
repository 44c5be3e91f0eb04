"""Setup of the standard streams, robust to closed streams, full disks and limited encodings."""

from __future__ import annotations

import codecs
import contextlib
import io
import os
import sys

_ESCAPING = "scrubjay.escape"
_NAMES = ("stdin", "stdout", "stderr")


def open_streams() -> None:
    """Connect closed streams to the null device, and escape characters that an encoding lacks.

    Otherwise the next file opened would get a closed stream's descriptor, and output would be written to it.
    Also pass NO_COLOR on to tyro, which reads its own variable when it is imported.
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


def discard_output() -> None:
    """Discard output that cannot be written, or the interpreter would report it again at exit."""
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
    """Escape characters as JSON does, which keeps JSON valid, and undecodable bytes as Python does."""
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
