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


def discard_output() -> None:
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
