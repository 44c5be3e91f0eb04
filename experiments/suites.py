"""The old name of `scrubjay.experiments.tasks.suites`, kept for one release."""

from scrubjay.experiments.tasks.suites import (
    IGNORED,
    MQAR,
    Induction,
    Needle,
    SelectiveCopy,
    Sequences,
    Suite,
)

__all__ = ["IGNORED", "MQAR", "Induction", "Needle", "SelectiveCopy", "Sequences", "Suite"]
