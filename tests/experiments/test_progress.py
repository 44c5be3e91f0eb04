"""The progress line of the latest metrics."""

import pytest

from scrubjay.experiments.progress import describe_row, loss_warnings

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


def test_the_main_metrics_are_on_one_line():
    assert describe_row(ROW) == (
        "success 0.50  return 0.25  1,200 steps/s (env/policy/learner alone 9.0k/4.0k/2.0k)"
    )
    assert not describe_row({})


@pytest.mark.parametrize("name", ["policy_loss", "cross_entropy"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_losses_that_are_not_finite_are_reported(name, value):
    row = ROW | {f"losses/{name}": value}
    assert loss_warnings(row) == ["LOST: its losses are not finite"]
    assert describe_row(row).endswith(loss_warnings(row)[0])
    assert loss_warnings(ROW) == []
