"""Whatever a stranger's run directory holds, every verb ends soon, in one line, and steers no terminal."""

from __future__ import annotations

import random
import resource
import shutil
from pathlib import Path

import pytest

from scrubjay.experiments import train
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.tasks import names

from .commands.forked import complaint, run
from .hostile import STEERING, harm

TINY = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
SMALL = "--total-steps 64 --batch-rows 2 --parameters 80000 --eval-rows 2"
VERBS = (
    ("eval", "--episodes", "2"),
    ("play", "--out", "x.gif", "--max-steps", "5"),
    ("export", "--out", "x.pt2"),
    ("plot",),
    ("resume", "--quiet"),
)
MEGABYTES = 1500
"""More than a whole run takes here, and less than any that may be refused."""
SECONDS = 30.0


@pytest.fixture(scope="session")
def victims(tmp_path_factory, finished_run):
    """Return a whole run of each kind."""
    folder = tmp_path_factory.mktemp("victims")
    train(override("uav-small", TINY.split()), folder / "team")
    train(override("mqar", SMALL.split()), folder / "sequence")
    return [finished_run.path, finished_run.path, folder / "team", folder / "sequence"]


@pytest.fixture(autouse=True)
def _nothing_named(monkeypatch):
    monkeypatch.setattr(names, "_NAMED", set())  # as in a process of its own


def wrong(words: list[str], folder: Path) -> str | None:
    """Return what is wrong with how a verb ends, in a process whose memory is watched; None if nothing is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    ended = run(words, folder, seconds=SECONDS)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    said = ended.out + ended.err
    if after > before and after > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 1024 * MEGABYTES:
        return f"takes {after >> 10} MB"
    if ended.code == 130 and words[0] != "resume":  # a training is as long as it says it is
        return f"took more than {SECONDS} s"
    if letters := set(STEERING) - set("[31m2J\n") & set(said):
        return f"shows {letters!r}"
    told = complaint(ended)
    return told and f"{told}: {ended.err[-600:]}"


def attack(number: int, victims: Sequence[Path], folder: Path, verbs: int) -> list[str]:
    draw = random.Random(number)
    victim = draw.choice(victims)
    folder.mkdir()
    name = draw.choice(("run", f"r{STEERING}"))
    shutil.copytree(victim, folder / name)
    told = harm(folder / name, draw)
    found = []
    for verb in draw.sample(VERBS, verbs):
        if (what := wrong([verb[0], name, *verb[1:]], folder)) is not None:
            found.append(f"{number} {verb[0]} of {victim.name} with {told}: {what}")
    return found


@pytest.mark.parametrize("number", range(12))
def test_a_hostile_run_is_refused_in_a_line(number, finished_run, tmp_path):
    assert not attack(number, [finished_run.path], tmp_path / "here", 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("first", range(100, 400, 20))
def test_so_are_many(first, victims, tmp_path):
    found = []
    for number in range(first, first + 20):
        found += attack(number, victims, tmp_path / str(number), len(VERBS))
    assert not found
