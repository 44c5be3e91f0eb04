"""Whatever a stranger's run directory holds, every verb ends soon, in one line, and steers no terminal."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from scrubjay.experiments import Run, train
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.tasks import names

from .commands.forked import Ended, complaint, run
from .hostile import NAME, STEERING, harm

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


def ran(words: list[str], folder: Path) -> Ended:
    return run(words, folder, seconds=SECONDS)


def wrong(words: list[str], folder: Path) -> str | None:
    """Return what is wrong with how a verb ends, in a process whose memory is watched; None if nothing is."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    ended = ran(words, folder)
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


@pytest.fixture
def stranger(finished_run, tmp_path):
    """A run as a stranger may send it, not finished."""
    path = shutil.copytree(finished_run.path, tmp_path / "run")
    (path / "result.json").unlink()
    return path


def rewrite(path: Path, file: str, *place: str, value: object) -> None:
    fields = inner = json.loads((path / file).read_text())
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    (path / file).write_text(json.dumps(fields))


@pytest.fixture
def refused_by(stranger, tmp_path):
    """Run a verb on the stranger's run in a process of its own; return the one line that refuses it."""

    def refuse(verb: str, *more: str) -> str:
        words = [verb, "run", *more]
        return refusal(words, tmp_path)

    return refuse


def refusal(words: list[str], folder: Path) -> str:
    ended = ran(words, folder)
    assert (ended.code, ended.err.count("\n")) == (2, 1), ended.err[:2000]
    assert complaint(ended) is None, ended.err[:2000]
    return ended.err


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\0" * 5000, b"[" * 100_000, b"[]", b"{}"], ids=range(5))
def test_what_is_no_file_of_spaces_is_told(content, stranger, refused_by):
    (stranger / "environment.json").write_bytes(content)
    for verb in ("export", "plot", "resume"):
        told = refused_by(verb)
        assert "environment.json: it is" in told or "environment.json is no text in UTF-8: byte 0" in told


@pytest.mark.parametrize("odd", ["pipe", "huge"])
def test_neither_waits_for_a_pipe_nor_reads_a_file_without_end(odd, stranger, refused_by):
    for name in ("environment.json", "config.json"):
        (stranger / name).unlink()
        if odd == "pipe":
            os.mkfifo(stranger / name)
            assert ".json is a link, or no plain file" in refused_by("plot")
        else:
            with (stranger / name).open("wb") as file:
                file.truncate(2**40)
            assert f"run/{name} has 1,099,511,627,776 bytes" in refused_by("plot")


@pytest.mark.parametrize("verb", ["eval", "play"])
@pytest.mark.parametrize(
    ("space", "told"),
    [
        ({"space": "Box", "shape": [10**9], "low": 0, "high": 1, "dtype": "float32"}, "1000000000: expected"),
        ({"space": "Discrete", "n": 10**30, "start": 0, "dtype": "int64"}, f"{10**30}"),
        ({"space": "Box", "shape": [4], "low": float("nan"), "high": 1, "dtype": "float32"}, "nan"),
        ({"space": "Box", "shape": [4], "low": 0, "high": 1, "dtype": "x\x1b[2J"}, "dtype='x\\x1b[2J'"),
        ({"space": "Box", "shape": [4], "low": 0, "high": 1, "dtype": "float64"}, "in place of Box"),
        ({"space": "MultiBinary", "n": 4}, "its observation is MultiBinary(4) in place of Box"),
        ({"space": "Box", "shape": [2**22], "low": 0, "high": 1, "dtype": "float32"}, "[16, 4194304]"),
    ],
)
def test_spaces_beside_a_known_environment_are_compared_with_it(space, told, verb, stranger, refused_by):
    rewrite(stranger, "environment.json", "observation", value=space)
    assert told in refused_by(verb)


@pytest.mark.parametrize(
    ("place", "value", "told"),
    [
        (("policy", "memory", "dim"), 10**9, "of shape [1000000000, "),
        (("policy", "memory", "dim"), 18, "is [4, 16] there, and [4, 18]"),
        (("policy", "memory"), {"name": "hcam", "dim": 16, "num_layers": 10**9}, "it has more than"),
        (
            ("policy", "memory"),
            {"name": "gtrxl", "dim": 16, "window": 10**12},
            "of shape [1000000000001, 16]",
        ),
    ],
)
def test_a_policy_is_built_only_as_large_as_its_weights(place, value, told, stranger, refused_by):
    rewrite(stranger, "config.json", *place, value=value)
    for verb in ("eval", "play", "export"):
        line = refused_by(verb)
        assert "are not of the policy in config.json" in line
        assert told in line


def test_nor_may_its_memory_grow_beyond_any_bound(tiny, tmp_path):
    made = train(tiny("hcam", total_steps=32, eval_episodes=0), tmp_path / "run")
    rewrite(made.path, "config.json", "policy", "memory", "num_chunks", value=10**8)
    for verb in ("eval", "play", "export", "resume"):
        if verb == "resume":
            (made.path / "result.json").unlink()
        line = refusal([verb, "run"], tmp_path)
        assert "GiB" in line
        assert "add --trust" in line
    with pytest.raises(ValueError, match="add --trust"):
        _ = Run.load(made.path).policy


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("env", "num_envs"), 10**9),
        (("segment_length",), 10**12),
        (("policy", "memory", "dim"), 10**6),
        (("env", "kwargs", "corridor_length"), 10**9),
    ],
)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_training_is_refused_before_it_takes_what_nobody_has(
    checkpoint, place, value, stranger, refused_by
):
    if not checkpoint:
        shutil.rmtree(stranger / "checkpoints")
    rewrite(stranger, "config.json", *place, value=value)
    line = refused_by("resume")
    assert f"{value}" in line.replace(",", "") or "of shape [" in line


def test_a_team_and_a_supervised_run_have_bounds_too(victims, tmp_path):
    for victim, place, value in (
        (victims[2], ("env", "kwargs", "num_uavs"), 10**6),
        (victims[2], ("env", "num_envs"), 10**9),
        (victims[3], ("batch_rows",), 10**9),
        (victims[3], ("eval_longer",), [10**9]),
        (victims[3], ("memory", "dim"), 10**9),
        (victims[3], ("suite", "vocab_size"), 10**12),
    ):
        path = shutil.copytree(victim, tmp_path / "run")
        (path / "result.json").unlink()
        rewrite(path, "config.json", *place, value=value)
        refusal(["resume", "run"], tmp_path)
        shutil.rmtree(path)


def test_names_of_a_strangers_steer_no_terminal(stranger, tmp_path):
    rewrite(stranger, "config.json", "recipe", value=NAME)
    rewrite(stranger, "config.json", "total_steps", value=384)
    rows = map(json.loads, (stranger / "metrics.jsonl").read_text().splitlines())
    written = "".join(f"{json.dumps(row | {NAME: 1})}\n" for row in rows)
    (stranger / "metrics.jsonl").write_text(written)
    shown = stranger.rename(tmp_path / f"r{STEERING}")
    for words in (
        ["eval", shown.name],
        ["plot", shown.name],
        ["plot", shown.name, "--metric", "none"],
        ["plot", shown.name, "--metric", NAME],
        ["play", shown.name, "--max-steps", "3"],
        ["export", shown.name],
        ["list", NAME],
        ["doctor", NAME],
    ):
        assert wrong(words, tmp_path) is None
    ended = ran(["eval", shown.name, "--episodes", "1"], tmp_path)
    assert ended.out.startswith("x\N{REPLACEMENT CHARACTER}[31m")


def test_a_record_of_another_length_is_not_cut_in_a_line(stranger, refused_by):
    rewrite(stranger, "config.json", "total_steps", value=384)
    rows = (stranger / "metrics.jsonl").read_text().splitlines()
    (stranger / "metrics.jsonl").write_text("".join(f'{row[:-1]}, "more": 1}}\n' for row in rows))
    assert "is not the one its checkpoint was written with" in refused_by("resume")
