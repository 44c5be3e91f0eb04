"""Invalid values of GAMATRConfig."""

from __future__ import annotations

import math

import pytest

from scrubjay.agents import GAMATRConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mode": "selfish"}, "choose from sequential"),
        ({"mode": "clip", "kl_budget": "allocated"}, "kl_budget='equal'"),
        ({"kl_limit": 0.0}, "kl_limit"),
        ({"gamma": 1.5}, "gamma"),
        ({"critic_epochs": 0}, "critic_epochs"),
        ({"entropy_coefficient": -1.0}, "entropy_coefficient"),
        ({"entropy_coefficient": 0.01, "mode": "consensus"}, "has no entropy bonus"),
        ({"consensus_penalty": math.nan}, "consensus_penalty"),
        ({"damping": -1.0}, "damping"),
        *(({name: 1e39}, f"{name}=1e\\+39: must be at most") for name in ("damping", "clip", "clip_end")),
    ],
)
def test_impossible_settings_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GAMATRConfig(**fields)
