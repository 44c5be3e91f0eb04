"""Metrics rows: means over episodes, and resumption of the log."""

import json

import pytest

from scrubjay.agents.rl.rollout import EpisodeStats
from scrubjay.experiments.runs.metrics import WINDOW, EpisodeWindow, MetricsLog


def episode(value, success=None, **measures):
    return EpisodeStats(value, 4, success, measures)


def test_charts_are_means_over_the_last_episodes_alone():
    window = EpisodeWindow()
    assert window.means() == {}
    window.extend([episode(100.0, True)] * 7 + [episode(1.0, False)] * (WINDOW // 2))
    window.extend([episode(3.0, True)] * (WINDOW // 2))
    assert window.means() == {
        "charts/episodic_return": 2.0,
        "charts/episodic_length": 4.0,
        "charts/success": 0.5,
        "charts/episodes": WINDOW,
    }


def test_measures_have_a_chart_and_unknown_success_has_none():
    window = EpisodeWindow()
    window.extend([episode(0.0, jain=0.5), episode(0.0, jain=1.0)])
    assert window.means()["charts/jain"] == 0.75
    assert "charts/success" not in window.means()


def test_a_window_is_restored_from_its_state_which_is_plain_data():
    window, again = EpisodeWindow(), EpisodeWindow()
    window.extend(episode(float(number), number % 2 == 0, load=number) for number in range(WINDOW + 3))
    again.set_state(json.loads(json.dumps(window.get_state())))
    for one in (window, again):
        one.extend([episode(7.0, True, load=1)])
    assert window.means() == again.means()


def test_a_resumed_log_drops_rows_after_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    log.write(1, {"a": 0.5})
    synced_bytes = log.sync()
    log.write(2, {"a": 9.0})
    log.close()
    log = MetricsLog(path, synced_bytes, 1)
    log.write(2, {"a": 0.25})
    log.close()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert rows == [{"step": 1, "a": 0.5}, {"step": 2, "a": 0.25}]
    with pytest.raises(ValueError, match="is shorter than the checkpoint says"):
        MetricsLog(path, 10_000, 1)
