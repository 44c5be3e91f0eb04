"""Synthetic sequence tasks that test the recall of a memory, with exact answers."""

from scrubjay.experiments.tasks.suites.base import IGNORED, Sequences, Suite
from scrubjay.experiments.tasks.suites.induction import Induction
from scrubjay.experiments.tasks.suites.mqar import MQAR
from scrubjay.experiments.tasks.suites.needle import Needle
from scrubjay.experiments.tasks.suites.selective_copy import SelectiveCopy
from scrubjay.experiments.tasks.suites.state_tracking import StateTracking

__all__ = ["IGNORED", "MQAR", "Induction", "Needle", "SelectiveCopy", "Sequences", "StateTracking", "Suite"]
