"""Comparisons of team methods and rules, also at other team sizes."""

import dataclasses
import json

import pytest

from scrubjay.experiments import RECIPES

pytestmark = pytest.mark.usefixtures("trained_here")


@pytest.mark.slow
def test_a_comparison_sets_methods_beside_rules(tmp_path, here):
    code, _, err = here(
        "compare", "--recipes", "uav-small", "--methods", "gamatr", "mappo", "--seeds", "0", "--jobs",
        "2", "--out", "out", "--", "--set", "num_users=4", "--set", "max_steps=6", "--env.num-envs", "4",
        "--segment-length", "6", "--total-steps", "24", "--eval-episodes", "3", "--eval-every", "24",
    )  # fmt: skip
    assert code == 0, err
    table = (tmp_path / "out" / "table.md").read_text()
    for row in ("gamatr", "mappo", "rule: follow", "rule: static", "rule: random"):
        assert f"| {row} |" in table
    assert "jain" in table
    assert "means over 3 episodes" in table
    assert {json.loads(file.read_text())["episodes"] for file in (tmp_path / "out").glob("*-rule-*")} == {3}


@pytest.mark.slow
def test_a_shared_actor_is_compared_with_rules_in_teams_of_other_sizes(tmp_path, here, monkeypatch):
    fewer = dataclasses.replace(RECIPES["uav-three"], sizes=("num_uavs", (2, 3)))
    monkeypatch.setitem(RECIPES, "uav-three", fewer)
    code, out, err = here(
        "compare", "--recipes", "uav-three", "--methods", "gamatr-shared", "hatrpo", "--seeds", "0",
        "--jobs", "1", "--out", "out", "--", "--set", "num_users=6", "--set", "max_steps=6",
        "--env.num-envs", "4", "--segment-length", "6", "--total-steps", "24", "--eval-episodes", "3",
    )  # fmt: skip
    assert code == 0, err
    assert out.endswith("out/uav-three-sizes.png\n")
    table = (tmp_path / "out" / "table.md").read_text()
    returns = table.partition("trained with num_uavs 3, episodic_return with num_uavs:")[2].partition(
        "\n\nuav-three"
    )[0]
    labels = [line.split(" | ")[0].removeprefix("| ") for line in returns.strip().splitlines()]
    # HATRPO has one actor per agent, so it cannot play at other team sizes.
    assert labels == [
        "method",
        "---",
        "gamatr-shared-no-identity",
        "rule: random",
        "rule: static",
        "rule: follow",
    ]
    png = (tmp_path / "out" / "uav-three-sizes.png").read_bytes()
    assert png.startswith(b"\x89PNG")
