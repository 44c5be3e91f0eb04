"""`scrubjay memory add --consolidate`, `decisions` and `undo`: consolidation by a language model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from tyro.conf import Positional

from scrubjay.experiments.cli.failures import FailedError
from scrubjay.experiments.cli.untrusted_text import as_json, one_line
from scrubjay.experiments.commands.options import BankFile, Foreign
from scrubjay.experiments.lm.models import open_bank, open_chat_model
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank import Change, Consolidation, Decision
from scrubjay.memory.bank.consolidation import DecisionFunction
from scrubjay.memory.bank.record import Record

_SECONDS, _MOST_TOKENS = 300.0, 1024


def make_decider(name: str) -> DecisionFunction:
    """Return a function that asks the model called `name` how to consolidate a text.

    This function raises FailedError if the model fails.
    """
    from scrubjay.agents.langchain import ModelDecider

    decides = ModelDecider(open_chat_model(name, _SECONDS, 0.0, _MOST_TOKENS, policy="full"))

    def decide(text: str, records: Sequence[Record]) -> Sequence[Change]:
        try:
            return decides(text, records)
        except ValueError:  # an invalid reply; the text is then added unchanged
            raise
        except Exception as error:  # error classes differ by provider
            message = f"model={name!r} failed; nothing was written: {type(error).__name__}"
            raise FailedError(f"{message}: {one_line(error)}") from error

    return decide


def print_decision(decision: Decision) -> None:
    """Print the ids of the written records on stdout and the decision on stderr."""
    for step in decision.steps:
        if step.written_id is not None:
            print(step.written_id)
    print(_describe_decision(decision), file=sys.stderr)


@dataclass(frozen=True)
class DecisionsOptions:
    """Show the latest consolidation decisions, oldest first, with time, id and actions."""

    file: BankFile
    last: int = 10
    """Number of latest decisions to show."""
    foreign: Foreign = False
    json: bool = False
    """Print one JSON object per decision."""


def decisions(options: DecisionsOptions) -> int:
    """Print the latest consolidation decisions."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        for decision in _open_decisions(bank).decisions(options.last):
            if options.json:
                row = asdict(decision) | {"steps": [step._asdict() for step in decision.steps]}
                print(as_json(row))
            else:
                print(f"{decision.moment.astimezone():%Y-%m-%d %H:%M}  {_describe_decision(decision)}")
    return 0


@dataclass(frozen=True)
class UndoOptions:
    """Undo a consolidation decision: delete records that it wrote, and restore records that it superseded."""

    file: BankFile
    id: Positional[str]
    """Id of the decision, as printed by `decisions`."""
    foreign: Foreign = False


def undo(options: UndoOptions) -> int:
    """Undo one consolidation decision."""
    with open_bank(options.file, create=False, foreign=options.foreign) as bank:
        print(_describe_decision(_open_decisions(bank).undo(options.id)))
    return 0


def _open_decisions(bank: MemoryBank) -> Consolidation:
    return Consolidation(bank, lambda text, records: [])  # the model is not called


def _describe_decision(decision: Decision) -> str:
    actions = []
    for step in decision.steps:
        parts = [
            step.action,
            step.written_id,
            step.ended_id and f"for {step.ended_id}" if step.written_id else step.ended_id,
        ]
        actions.append(" ".join(filter(None, parts)))
    more = f"; refused: {decision.refusal}" if decision.refusal else ""
    back = "; undone" if decision.undone_at is not None else ""
    return one_line(f"{decision.id}: {', '.join(actions)}{more}{back}")
