"""A run's policy in a folder, with a card that tells where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scrubjay.agents.learners import name_of_learner
from scrubjay.agents.rl.card import Origin
from scrubjay.experiments.run import Run
from scrubjay.experiments.tasks.environments import importing_id


def export_pretrained(run: Run, out: Path) -> str:
    """Write the newest checkpoint's policy, or team; return the name of its class, which loads it.

    Raises ValueError if there is none yet, or the folder holds something else; TypeError if nothing acts.
    """
    policy = run.team_policy if run.config.acts == "team" else run.policy
    policy.save_pretrained(out, origin(run))
    again = type(policy).from_pretrained(out).state_dict()
    for name, value in policy.state_dict().items():
        if not torch.equal(again[name], value):
            raise ValueError(f"{out}: {name} does not come back as it was written")
    return type(policy).__name__


def origin(run: Run) -> Origin:
    """Return where the policy at a run's newest checkpoint comes from; how good it is, if that is known."""
    config: Any = run.config
    tested = run.result if run.finished else {}
    return Origin(
        environment=importing_id(config.env.id),
        settings=config.env.kwargs,
        learner=name_of_learner(config.learner),
        steps=run.step,
        seed=config.seed,
        result={name: value for name, value in tested.items() if name not in ("step", "seconds")},
    )
