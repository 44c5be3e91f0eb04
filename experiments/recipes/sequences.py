"""Recipes that train memories as sequence models with cross-entropy."""

from __future__ import annotations

import dataclasses
from typing import Any

from scrubjay.experiments.recipes.registry import recipe
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.experiments.tasks.sequences import (
    MQAR,
    Group,
    Induction,
    Needle,
    SelectiveCopy,
    StateTracking,
    Swaps,
)

# Training sequences have 8 chunks, of which 4 are read, so that selection is learned. `num_chunks` suffices
# for the longest test. One layer per block, for all memories.
_SEQUENCE_SETTINGS = {
    "hcam": {"chunk_size": 8, "num_chunks": 128},
    "sink": {"num_layers": 1},
    "gtrxl": {"num_layers": 1},
    "mamba3": {"num_layers": 1},
}
# State tracking needs negative eigenvalues: decay factors in [0, 1] cannot represent products in a group.
_TRACKING_SETTINGS = _SEQUENCE_SETTINGS | {"gated_delta": {"negative_eigenvalues": True}}


def _permutation_settings(householders: int) -> dict[str, dict[str, Any]]:
    """Return the settings for permutations: a product of n reflections permutes n + 1 items.

    The answer includes the present token. Eight narrow heads find the group where a single wide one did not.
    """
    reflections = {
        "negative_eigenvalues": True,
        "householders": householders,
        "num_heads": 8,
        "decay": "none",
        "read_before_write": False,
    }
    return _SEQUENCE_SETTINGS | {"gated_delta": reflections}


@recipe("mqar", title="MQAR, recall by key", settings=_SEQUENCE_SETTINGS)
def mqar() -> SequenceTaskConfig:
    """Supervised sequence modeling: read 8 key-value pairs, then predict the value of each key."""
    return SequenceTaskConfig(suite=MQAR())


@recipe("needle", title="Needle in filler", settings=_SEQUENCE_SETTINGS)
def needle() -> SequenceTaskConfig:
    """Supervised sequence modeling: retrieve the value of one key from a long text of filler."""
    return SequenceTaskConfig(suite=Needle(), eval_items=(), eval_rows=256)


@recipe("multikey-needle", title="Needles with 8 keys in filler", settings=_SEQUENCE_SETTINGS)
def multikey_needle() -> SequenceTaskConfig:
    """Supervised sequence modeling: 8 key-value pairs in filler; retrieve the value of one key."""
    return SequenceTaskConfig(suite=Needle(vocab_size=80, num_items=8))


@recipe("selective-copy", title="Selective copy", settings=_SEQUENCE_SETTINGS)
def selective_copy() -> SequenceTaskConfig:
    """Supervised sequence modeling: repeat 8 tokens scattered in noise, in order."""
    return SequenceTaskConfig(suite=SelectiveCopy())


@recipe("induction", title="Induction", settings=_SEQUENCE_SETTINGS)
def induction() -> SequenceTaskConfig:
    """Supervised sequence modeling: predict the token after the first occurrence of the trigger."""
    return SequenceTaskConfig(suite=Induction(), eval_items=(), eval_rows=256)


@recipe("parity", title="Parity of the bits so far", settings=_TRACKING_SETTINGS)
def parity() -> SequenceTaskConfig:
    """Supervised sequence modeling: predict the parity of the bits so far, after each bit."""
    return _tracking_config("Z2")


@recipe("state-tracking", title="S3, permutations of 3 items", settings=_permutation_settings(2))
def state_tracking() -> SequenceTaskConfig:
    """Supervised sequence modeling: after each permutation of 3 items, predict the product so far."""
    # If a GRU learns the task, it does so within one to two million tokens, while the learning rate is high.
    return dataclasses.replace(_tracking_config("S3"), total_steps=4_000_000)


@recipe("state-tracking-s5", title="S5, permutations of 5 items", settings=_permutation_settings(4))
def state_tracking_s5() -> SequenceTaskConfig:
    """Supervised sequence modeling: after each permutation of 5 items, predict the product so far."""
    # From all permutations at once, models learn the products of pairs and no longer ones. The last stage
    # starts while the learning rate is high.
    return SequenceTaskConfig(
        suite=Swaps(),
        batch_rows=128,
        curriculum=0.36,
        total_steps=12_000_000,
        eval_items=(),
        eval_rows=256,
    )


def _tracking_config(group: Group) -> SequenceTaskConfig:
    return SequenceTaskConfig(suite=StateTracking(group=group), eval_items=(), eval_rows=256)
