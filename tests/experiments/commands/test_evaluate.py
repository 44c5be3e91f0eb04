"""`scrubjay eval` where episodes are long: most steps, what had not ended, and how far it is."""

from __future__ import annotations

import pytest

from scrubjay.experiments.runs import progress


def test_a_policy_plays_no_more_steps_than_it_is_told(finished_run, here):
    code, out, err = here("eval", finished_run.path, "--episodes", 3, "--max-steps", 3)
    assert (code, out) == (2, "")
    assert "no episode ended within 3 steps (max_steps)" in err
    code, out, _ = here("eval", finished_run.path, "--episodes", 3, "--max-steps", 1000)
    assert code == 0
    assert out.rstrip().endswith(", 3 episodes")


def test_episodes_that_went_on_are_not_counted_as_played(finished_run, here):
    """70 episodes in 64 copies: 6 play twice, and are stopped in the second."""
    code, out, _ = here("eval", finished_run.path, "--episodes", 70, "--max-steps", 6)
    assert code == 0
    assert out.rstrip().endswith("64 of 70 episodes: the others went on after 6 steps (--max-steps)")


def test_who_waits_is_told_how_far_it_is(finished_run, here, monkeypatch):
    monkeypatch.setattr(progress, "LINE_SECONDS", -1.0)
    code, out, err = here("eval", finished_run.path, "--episodes", 2)
    assert code == 0
    assert "2 episodes" in out
    lines = err.splitlines()
    assert lines[0] == "1 steps each, 0 of 2 episodes over"
    assert lines[-1].endswith("2 of 2 episodes over")


@pytest.mark.parametrize("number", [0, -1])
def test_a_number_of_steps_that_is_none_is_named(number, finished_run, here):
    code, _, err = here("eval", finished_run.path, "--max-steps", number)
    assert (code, err) == (2, f"scrubjay: max_steps={number}: at least 1 is needed\n")
