"""What pages say of the speed of training is what the tables say that they lead to."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "experiments" / "bench"


def rows_of_memories() -> list[list[str]]:
    return [line.split(" | ") for line in (BENCH / "memories.md").read_text().splitlines()]


def measured(name: str) -> tuple[float, float]:
    """Return the least and the most that a memory's training is of RecurrentPPO's."""
    found = [float(row[4].rstrip("x")) for row in rows_of_memories() if row[0] == f"| {name}"]
    rows = re.findall(
        rf"^\| scrubjay {name}(?:,[^|]*)? \|[^|]*\| ([\d.]+)x",
        (BENCH / "throughput.md").read_text(),
        re.MULTILINE,
    )
    found += map(float, rows)
    return min(found), max(found)


@pytest.mark.parametrize(
    ("page", "said", "name"),
    [
        ("docs/guide/speed.md", r"LSTM ([\d.]+)x to ([\d.]+)x", "lstm"),
        ("docs/guide/speed.md", r"GRU ([\d.]+)x to ([\d.]+)x", "gru"),
        (
            "docs/neighbours.md",
            r"LSTM learns \[([\d.]+) to ([\d.]+) times as fast",
            "lstm",
        ),
        ("CHANGELOG.md", r"an LSTM ([\d.]+) to ([\d.]+) times as fast as sb3-contrib", "lstm"),
    ],
)
def test_ranges_are_those_of_the_tables(page, said, name):
    told = re.search(said, (ROOT / page).read_text("utf-8"))
    assert told is not None
    assert (float(told[1]), float(told[2])) == measured(name)


def test_what_memories_cost_a_policy_is_that_of_the_table():
    page = (ROOT / "docs" / "guide" / "memories.md").read_text("utf-8")
    (told,) = re.findall(r"What one costs a policy.*?(?=\n\n)", page, re.DOTALL)
    said = {name: float(number) for name, number in re.findall(r"`(\w+)`[^`\d;]* ([\d.]+)(?=[,;])", told)}
    rows = (re.match(r"\| (\w+) \| \d+ \(([\d.]+)x\)", " | ".join(row)) for row in rows_of_memories())
    costs = {row[1]: float(row[2]) for row in rows if row is not None}
    assert set(said) >= {"mingru", "ffm", "lru", "shm", "agalite"}
    assert said == {name: costs[name] for name in said}
