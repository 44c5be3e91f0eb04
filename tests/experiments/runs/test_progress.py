"""What a person reads of the newest row of metrics."""

import pytest

from scrubjay.experiments.runs.progress import describe_row, lost

ROW = {
    "charts/success": 0.5,
    "charts/episodic_return": 0.25,
    "charts/SPS": 1200.0,
    "time/SPS_env": 9000.0,
    "time/SPS_policy": 4000.0,
    "time/SPS_learner": 2000.0,
    "losses/policy_loss": -0.1,
    "losses/explained_variance": float("nan"),
}


def test_the_numbers_that_a_person_watches_are_on_one_line():
    assert describe_row(ROW) == (
        "success 0.50  return 0.25  1,200 steps/s (env/policy/learner alone 9.0k/4.0k/2.0k)"
    )
    assert not describe_row({})


@pytest.mark.parametrize("name", ["policy_loss", "cross_entropy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_run_whose_losses_are_no_numbers_is_told(name, value):
    row = ROW | {f"losses/{name}": value}
    assert lost(row) == ["LOST: its losses are no numbers any more"]
    assert describe_row(row).endswith(lost(row)[0])
    assert lost(ROW) == []
