"""Recipes of memories as sequence models, by cross-entropy."""

from __future__ import annotations

import dataclasses

from scrubjay.experiments.kinds.sequence import SequenceTaskConfig
from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.tasks.suites import MQAR, Induction, Needle, SelectiveCopy, StateTracking
from scrubjay.experiments.tasks.suites.state_tracking import Group

# 8 chunks in the sequences trained on, of which 4 are read: so choosing is learned. The longest test's all
# are kept. One layer a block, for all memories alike.
_SEQUENCES = {
    "hcam": {"chunk_size": 8, "num_chunks": 128},
    "sink": {"num_layers": 1},
    "gtrxl": {"num_layers": 1},
}
# Factors between 0 and 1 follow no products in a group.
_TRACKING = _SEQUENCES | {"gated_delta": {"negative_eigenvalues": True}}


@recipe("mqar", settings=_SEQUENCES)
def mqar() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 keys and their values, then each key again: say its value."""
    return SequenceTaskConfig(suite=MQAR())


@recipe("needle", settings=_SEQUENCES)
def needle() -> SequenceTaskConfig:
    """Supervised, as a sequence model: one key and its value hidden in hay."""
    return SequenceTaskConfig(suite=Needle(), eval_items=(), eval_rows=256)


@recipe("multikey-needle", settings=_SEQUENCES)
def multikey_needle() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 keys and their values hidden in hay, one asked for."""
    return SequenceTaskConfig(suite=Needle(vocab_size=80, num_items=8))


@recipe("selective-copy", settings=_SEQUENCES)
def selective_copy() -> SequenceTaskConfig:
    """Supervised, as a sequence model: 8 tokens among noise, to be said again in order."""
    return SequenceTaskConfig(suite=SelectiveCopy())


@recipe("induction", settings=_SEQUENCES)
def induction() -> SequenceTaskConfig:
    """Supervised, as a sequence model: say what followed the trigger the first time."""
    return SequenceTaskConfig(suite=Induction(), eval_items=(), eval_rows=256)


@recipe("parity", settings=_TRACKING)
def parity() -> SequenceTaskConfig:
    """Supervised, as a sequence model: say after each bit whether the ones so far are odd."""
    return _tracking("Z2")


@recipe("state-tracking", settings=_TRACKING)
def state_tracking() -> SequenceTaskConfig:
    """Supervised, as a sequence model: say after each permutation of 3 things how they lie now."""
    # Where a GRU finds it, it does between one and two million tokens, while the rate is still high.
    return dataclasses.replace(_tracking("S3"), total_steps=4_000_000)


def _tracking(group: Group) -> SequenceTaskConfig:
    return SequenceTaskConfig(suite=StateTracking(group=group), eval_items=(), eval_rows=256)
