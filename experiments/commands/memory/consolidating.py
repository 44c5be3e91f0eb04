"""`scrubjay memory add --consolidate`, `decisions` and `undo`: what a model made of new memories."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tyro.conf import Positional

from scrubjay.experiments.language.banks import open_bank
from scrubjay.experiments.language.models import open_chat_model
from scrubjay.experiments.words.failures import FailedError
from scrubjay.experiments.words.foreign import as_json, one_line
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation, Decision
from scrubjay.memory.bank.consolidation import Decide
from scrubjay.memory.bank.file.record import Record

_SECONDS, _MOST_TOKENS = 300.0, 1024


def model_decides(name: str) -> Decide:
    """Return what lets the model of that name decide; FailedError if it fails, as by no network."""
    from scrubjay.agents.langchain import ModelDecides

    decides = ModelDecides(open_chat_model(name, _SECONDS, 0.0, _MOST_TOKENS, policy="full"))

    def decide(text: str, records: Sequence[Record]) -> Sequence[Change]:
        try:
            return decides(text, records)
        except ValueError:  # of a reply, after which the text is added
            raise
        except Exception as error:  # each provider has classes of its own
            failed = f"model={name!r} failed, and nothing is written: {type(error).__name__}"
            raise FailedError(f"{failed}: {one_line(error)}") from error

    return decide


def tell(decision: Decision) -> None:
    """Print the ids of what was written, and on stderr what was decided."""
    for step in decision.steps:
        if step.wrote is not None:
            print(step.wrote)
    print(_told(decision), file=sys.stderr)


@dataclass(frozen=True)
class DecisionsOptions:
    """Show what a model made of new memories: moment, id, and what was done; the last ones, oldest first."""

    file: Positional[Path]
    """The memory."""
    last: int = 10
    """How many."""
    json: bool = False
    """One JSON object a decision."""


def decisions(options: DecisionsOptions) -> int:
    """Print decisions."""
    with open_bank(options.file, create=False) as bank:
        for decision in _kept(bank).decisions(options.last):
            if options.json:
                row = asdict(decision) | {"steps": [step._asdict() for step in decision.steps]}
                print(as_json(row))
            else:
                print(f"{decision.moment.astimezone():%Y-%m-%d %H:%M}  {_told(decision)}")
    return 0


@dataclass(frozen=True)
class UndoOptions:
    """Take a decision back: what it wrote is forgotten for good, what it ended holds again."""

    file: Positional[Path]
    """The memory."""
    id: Positional[str]
    """Of the decision, as `decisions` prints it."""


def undo(options: UndoOptions) -> int:
    """Undo one decision."""
    with open_bank(options.file, create=False) as bank:
        print(_told(_kept(bank).undo(options.id)))
    return 0


def _kept(bank: MemoryBank) -> Consolidation:
    return Consolidation(bank, lambda text, records: [])  # which is not asked


def _told(decision: Decision) -> str:
    done = []
    for step in decision.steps:
        words = [step.action, step.wrote, step.ended and f"for {step.ended}" if step.wrote else step.ended]
        done.append(" ".join(filter(None, words)))
    more = f"; refused: {decision.refused}" if decision.refused else ""
    back = "; undone" if decision.undone is not None else ""
    return one_line(f"{decision.id}: {', '.join(done)}{more}{back}")
