"""What a trust region over whole batches asks of RLlib."""

from __future__ import annotations

import pytest

from scrubjay.agents.rllib import SegmentGAMATRConfig
from scrubjay.agents.teams.gamatr import GAMATRConfig

from .configs import team_config


def test_more_minibatches_than_rows_are_refused_by_name():
    with pytest.raises(ValueError, match="num_envs=3: an update takes at least 4 rows"):
        SegmentGAMATRConfig().segments(num_envs=3, gamatr=GAMATRConfig(minibatches=4)).validate()


def test_several_learners_of_a_trust_region_are_refused():
    with pytest.raises(ValueError, match=r"num_learners=2: .* use 0, in the driver, or 1"):
        team_config().learners(num_learners=2).validate()
    for number in (0, 1):
        team_config().learners(num_learners=number).validate()
