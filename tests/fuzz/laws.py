"""Laws that every outcome obeys. A broken law is a fault, with a signature that is equal for equal causes."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

from ..experiments.cli.fork_runner import PYTHON_MESSAGES
from .child import MAX_PROCESSES, MEMORY_BYTES, WRITE_EVENTS, Outcome
from .files import VICTIM
from .targets import Target

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\udc80-\udcff]"
)
"""Characters that a terminal may obey. The output of a command in a file has none."""
_LIBRARY_MESSAGES = re.compile(
    r" \(.*\); copy it again|\(traceback: [^)]*\)|the chat template rejects this conversation: .*; change",
    re.DOTALL,
)
"""Messages of libraries, and of Jinja about a template, which are for the author of the files."""
_NOT_PYTHON = re.compile(r"^\W*positional arguments\W*$", re.MULTILINE)
SECRET = "the precious words of somebody else\n" * 9
"""Content of the victim."""


class Fault(NamedTuple):
    """Broken law."""

    law: str
    signature: str
    """Short text without the details that differ between faults of one cause."""
    detail: str


def set_up_victim(here: Path) -> None:
    """Write the file that no try may change."""
    victim = here / VICTIM
    victim.parent.mkdir(parents=True, exist_ok=True)
    victim.write_text(SECRET)


def judge(
    target: Target, outcome: Outcome, here: Path, honest: object = None, under_checksum: bool = False
) -> list[Fault]:
    """Return the faults of an outcome.

    Args:
        target: Command or loader that was called.
        outcome: Outcome of the call.
        here: Working directory of the try.
        honest: Result for the sample as it was made.
        under_checksum: True if a checksum covers every change of the sample.
    """
    faults = [*_judge_effects(outcome, here), *_judge_limits(outcome)]
    if outcome.stops:
        return faults
    if outcome.status < 0:
        faults.append(Fault("signal", f"signal {-outcome.status}", outcome.err[-600:]))
    elif outcome.status:
        faults.append(Fault("crash", f"exit {outcome.status}", outcome.err[-600:]))
    elif target.errors:
        faults += _judge_loader(target, outcome)
    else:
        faults += _judge_command(outcome)
    value = outcome.result.get("value")
    if under_checksum and target.is_content and value is not None and value != honest:
        faults.append(Fault("silent", "other content in spite of a checksum", f"{value} instead of {honest}"))
    return faults


def _judge_effects(outcome: Outcome, here: Path) -> list[Fault]:
    faults = []
    if (here / "canary").exists() or (here.parent / "home" / "canary").exists():
        faults.append(Fault("code", "the canary", "code of the sample ran"))
    for name in outcome.result.get("modules", ()):
        faults.append(Fault("code", f"module {name}", f"imported {name} from the sample"))
    for event in outcome.events:
        law = "written" if event.startswith(("open", *WRITE_EVENTS)) else "code"
        place = "victim" if "victim" in event else normalize(event)
        faults.append(Fault(law, f"{event.split()[0]} {place}", event))
    try:
        content = (here / VICTIM).read_text()
    except (OSError, ValueError) as error:
        content = str(error)
    if content != SECRET:
        faults.append(Fault("written", "the victim", f"the victim holds {content[:80]!r}"))
    return faults


def _judge_limits(outcome: Outcome) -> list[Fault]:
    faults = []
    if outcome.stops:
        reason = outcome.stops[0].partition(": ")[2]
        law = {"blocked": "hang", "time": "hang"}.get(reason, "limit")
        faults.append(
            Fault(law, f"{reason}, ended by {outcome.stops[-1].partition(':')[0]}", "; ".join(outcome.stops))
        )
    if outcome.memory > MEMORY_BYTES:
        faults.append(Fault("limit", "memory", f"{outcome.memory >> 20} MiB"))
    if outcome.processes > MAX_PROCESSES:
        faults.append(Fault("limit", "processes", f"{outcome.processes} processes"))
    if outcome.orphans:
        faults.append(Fault("limit", "orphans", f"{outcome.orphans} processes outlive the command"))
    return faults


def _judge_command(outcome: Outcome) -> list[Fault]:
    output = outcome.out + outcome.err
    if letters := sorted({hex(ord(letter)) for letter in _CONTROL.findall(output)}):
        return [Fault("terminal", "control characters", f"{', '.join(letters)} in {output[-400:]!r}")]
    if "error" in outcome.result:
        return [Fault("traceback", _describe(outcome), outcome.result["message"])]
    code = outcome.result.get("value")
    lines = [line for line in outcome.err.splitlines() if line.startswith("scrubjay: ")]
    if code not in (0, 1, 2):
        return [Fault("crash", f"exit code {code}", outcome.err[-400:])]
    if internal := [line for line in lines if "internal error" in line]:
        return [Fault("traceback", normalize(internal[0]), internal[0])]
    if message := PYTHON_MESSAGES.search(_NOT_PYTHON.sub("", _LIBRARY_MESSAGES.sub("", outcome.err))):
        return [Fault("message", normalize(lines[-1] if lines else message[0]), outcome.err[-600:])]
    if code and (len(lines) != 1 or len(lines[0]) < 20):
        return [
            Fault(
                "message", f"{len(lines)} lines of error: {normalize(outcome.err[-80:])}", outcome.err[-600:]
            )
        ]
    return []


def _judge_loader(target: Target, outcome: Outcome) -> list[Fault]:
    result = outcome.result
    if "error" not in result:
        return []
    if not set(target.errors) & set(result["types"]):
        return [Fault("error", _describe(outcome), f"{result['error']}: {result['message']}")]
    message = _LIBRARY_MESSAGES.sub("", result["message"])
    is_system = "OSError" in result["types"]
    if PYTHON_MESSAGES.search(message) or not (message or is_system):
        return [Fault("message", _describe(outcome), message[:600])]
    return []


def _describe(outcome: Outcome) -> str:
    result = outcome.result
    return f"{result['error']} in {result['frame']}: {normalize(result['message'])}"


def normalize(text: str) -> str:
    """Return the beginning of a message without paths, numbers and quotes."""
    text = re.sub(r"\(traceback: .*", "", text)
    text = re.sub(r"'[^']*'|\"[^\"]*\"|`[^`]*`", "Q", text)
    text = re.sub(r"[\w.~-]*/[^\s:;,]*", "P", text)
    text = re.sub(r"0x[0-9a-f]+|\d[\d,._e+-]*", "N", text)
    return "".join(letter if letter.isprintable() and letter.isascii() else "?" for letter in text)[:90]


def name_of(target: Target, fault: Fault) -> str:
    """Return the name of a fault's folder, equal for equal faults."""
    family = target.name.split()[0]
    key = hashlib.blake2b(f"{family}/{fault.law}/{fault.signature}".encode(), digest_size=3).hexdigest()
    return re.sub(r"\W+", "-", f"{fault.law}-{family}-{fault.signature[:40]}-{key}").lower()
