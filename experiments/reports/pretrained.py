"""Export of a run's policy to a directory with a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scrubjay.agents.learners import get_learner_name
from scrubjay.agents.rl.model_card import Origin
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.environments import gymnasium_id


def export_pretrained(run: Run, out: Path) -> str:
    """Save the policy of the latest checkpoint to `out`, and return the name of the class that can load it.

    Raises ValueError if there is no checkpoint, or if `out` holds other files. Raises TypeError if the run
    has no policy.
    """
    policy = run.team_policy if run.config.policy_type == "team" else run.policy
    policy.save_pretrained(out, origin(run))
    again = type(policy).from_pretrained(out).state_dict()
    for name, value in policy.state_dict().items():
        if not torch.equal(again[name], value):
            raise ValueError(f"{out}: the exported {name!r} differs from the policy; do not use this export")
    return type(policy).__name__


def origin(run: Run) -> Origin:
    """Return the model card data of the latest checkpoint, with results if the run is finished."""
    config: Any = run.config
    result = run.result if run.is_finished else {}
    return Origin(
        environment=gymnasium_id(config.env.id),
        settings=config.env.kwargs,
        learner=get_learner_name(config.learner),
        steps=run.step,
        seed=config.seed,
        result={name: value for name, value in result.items() if name not in ("step", "seconds")},
    )
