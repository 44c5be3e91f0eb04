"""Synthetic sequences that ask what a memory can recall, each with an exact answer."""

from scrubjay.experiments.suites.base import IGNORED, Sequences, Suite
from scrubjay.experiments.suites.induction import Induction
from scrubjay.experiments.suites.mqar import MQAR
from scrubjay.experiments.suites.needle import Needle
from scrubjay.experiments.suites.selective_copy import SelectiveCopy

__all__ = ["IGNORED", "MQAR", "Induction", "Needle", "SelectiveCopy", "Sequences", "Suite"]
