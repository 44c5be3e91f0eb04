"""Speeds on pages equal those of the linked tables."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"


def rows_of_memories() -> list[list[str]]:
    return [line.split(" | ") for line in (BENCH / "memories.md").read_text().splitlines()]


def read_range(name: str) -> tuple[float, float]:
    """Return the range of training speeds relative to RecurrentPPO."""
    ratios = [float(row[4].rstrip("x")) for row in rows_of_memories() if row[0] == f"| {name}"]
    rows = re.findall(
        rf"^\| scrubjay {name}(?:,[^|]*)? \|[^|]*\| ([\d.]+)x",
        (BENCH / "throughput.md").read_text(),
        re.MULTILINE,
    )
    ratios += map(float, rows)
    return min(ratios), max(ratios)


@pytest.mark.parametrize(
    ("page", "pattern", "name"),
    [
        ("docs/guide/speed.md", r"LSTM ([\d.]+)x to ([\d.]+)x", "lstm"),
        ("docs/guide/speed.md", r"GRU ([\d.]+)x to ([\d.]+)x", "gru"),
        (
            "docs/neighbours.md",
            r"LSTM learns \[([\d.]+) to ([\d.]+) times as fast",
            "lstm",
        ),
        ("CHANGELOG.md", r"LSTM \| ([\d.]+) to ([\d.]+) times as fast as sb3-contrib", "lstm"),
    ],
)
def test_ranges_are_those_of_the_tables(page, pattern, name):
    match = re.search(pattern, (ROOT / page).read_text("utf-8"))
    assert match is not None
    assert (float(match[1]), float(match[2])) == read_range(name)


def costs_of_memories() -> dict[str, float]:
    """Return the cost of an update with each memory, as a multiple of that with `none`.

    If a memory has two rows, the first one counts, as on the page of the memory.
    """
    rows = (re.match(r"\| (\w+) \| \d+ \(([\d.]+)x\)", " | ".join(row)) for row in rows_of_memories())
    return {row[1]: float(row[2]) for row in reversed(list(rows)) if row is not None}


def test_costs_of_memories_equal_the_table():
    page = (ROOT / "docs" / "guide" / "memories.md").read_text("utf-8")
    (section,) = re.findall(r"Cost of a policy update.*?benchmark", page, re.DOTALL)
    choice = (ROOT / "docs" / "choose.md").read_text("utf-8")
    (other,) = re.findall(r"Time of one PPO update.*?Recurrent memories", choice, re.DOTALL)
    page_costs = {name: float(cost) for name, cost in re.findall(r"`(\w+)` \| ([\d.]+\d)", section)}
    costs = costs_of_memories()
    assert set(re.findall(r"`(\w+)` \| ([\d.]+\d)", other)) <= {
        (name, str(cost)) for name, cost in costs.items()
    }
    assert set(page_costs) >= {"mingru", "ffm", "lru", "shm", "agalite"}
    assert page_costs == {name: costs[name] for name in page_costs}
