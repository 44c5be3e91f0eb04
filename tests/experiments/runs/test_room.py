"""Memory that a stranger's run may take has a bound, and what it asks for is told by its name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scrubjay.experiments import RECIPES
from scrubjay.experiments.kinds.ballet_probe import BalletProbeConfig
from scrubjay.experiments.kinds.sequence import SequenceTaskConfig
from scrubjay.experiments.runs.room import ROOM, available, bounded, check_room
from scrubjay.memory import make_config


def test_the_largest_is_named():
    check_room({"a": ROOM - 1, "b": 1})
    with pytest.raises(ValueError, match=r"^b=3: takes about 5\.0 GiB, .* 2\.0 GiB at most; add --trust"):
        check_room({"a": ROOM, "b=3": ROOM + 2**30})


@pytest.mark.parametrize("name", [name for name in RECIPES if name not in ("ppo", "team")])
def test_every_recipe_has_room(name):
    check_room(RECIPES[name]().rough_bytes())


@pytest.mark.parametrize(
    ("kind", "chunks", "sizes"),
    [(SequenceTaskConfig, 2**16, {"batch_rows": 1}), (BalletProbeConfig, 2**14, {})],
)
def test_what_is_tested_at_once_counts_as_what_is_trained_on(kind, chunks, sizes):
    memory = make_config("hcam", dim=8, num_chunks=chunks)
    with pytest.raises(ValueError, match=r"^memory=hcam of batch_.* tested: takes about .* GiB"):
        check_room(kind(memory=memory, **sizes).rough_bytes())


@pytest.mark.skipif(torch.cuda.is_available(), reason="beside a GPU nothing is bounded")
def test_beyond_it_nothing_is_given_and_afterwards_all_is_as_it_was():
    with bounded(2**27):
        assert np.ones(2**20).sum() == 2**20
        with pytest.raises(MemoryError):
            np.ones(2**26)
        with pytest.raises(RuntimeError, match="allocate memory"):
            torch.ones(2**26, dtype=torch.float64)
    assert np.ones(2**25).sum() == 2**25
    assert available() >= ROOM
