"""Hostile run directories: every command ends soon, in one line, and prints no control characters."""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from scrubjay.experiments import Run, resources, train
from scrubjay.experiments.recipes.overrides import override
from scrubjay.experiments.runs import checkpoint
from scrubjay.experiments.tasks import environments as names

from .cli.fork_runner import CommandResult, complaint, run
from .hostile import CONTROL_CODES, NAME, corrupt_run

TINY = "--total-steps 64 --env.num-envs 4 --segment-length 8 --eval-episodes 2"
SMALL = "--total-steps 64 --batch-rows 2 --parameters 80000 --eval-rows 2"
COMMANDS = (
    ("eval", "--episodes", "2"),
    ("play", "--out", "x.gif", "--max-steps", "5"),
    ("export", "--out", "x.pt2"),
    ("plot",),
    ("resume", "--quiet"),
)
MEGABYTES = 1500
"""Memory limit: more than a tiny run needs, and less than any run that must be refused."""
SECONDS = 30.0


@pytest.fixture(scope="session")
def finished_runs(tmp_path_factory, finished_run):
    """Return finished runs of each experiment type."""
    folder = tmp_path_factory.mktemp("finished")
    train(override("uav-small", TINY.split()), folder / "team")
    train(override("mqar", SMALL.split()), folder / "sequence")
    return [finished_run.path, finished_run.path, folder / "team", folder / "sequence"]


@pytest.fixture(autouse=True)
def _no_user_names(monkeypatch):
    monkeypatch.setattr(names, "_USER_NAMES", set())  # as in a new process


def run_command(arguments: list[str], folder: Path) -> CommandResult:
    return run(arguments, folder, seconds=SECONDS)


def find_fault(arguments: list[str], folder: Path) -> str | None:
    """Run a command in a new process; return the fault in its memory, time or output, or None."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    result = run_command(arguments, folder)
    after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    output = result.out + result.err
    if after > before and after > resource.getrusage(resource.RUSAGE_SELF).ru_maxrss + 1024 * MEGABYTES:
        return f"takes {after >> 10} MB"
    if result.code == 130 and arguments[0] != "resume":  # training takes as many steps as the config says
        return f"took more than {SECONDS} s"
    if letters := set(CONTROL_CODES) - set("[31m2J\n") & set(output):
        return f"shows {letters!r}"
    message = complaint(result)
    return message and f"{message}: {result.err[-600:]}"


def attack(number: int, finished_runs: Sequence[Path], folder: Path, num_commands: int) -> list[str]:
    draw = random.Random(number)
    source = draw.choice(finished_runs)
    folder.mkdir()
    name = draw.choice(("run", f"r{CONTROL_CODES}"))
    shutil.copytree(source, folder / name)
    changes = corrupt_run(folder / name, draw)
    faults = []
    for command in draw.sample(COMMANDS, num_commands):
        if (fault := find_fault([command[0], name, *command[1:]], folder)) is not None:
            faults.append(f"{number} {command[0]} of {source.name} with {changes}: {fault}")
    return faults


@pytest.mark.one_in(3)
@pytest.mark.parametrize("number", range(12))
def test_a_hostile_run_is_refused_in_a_line(number, finished_run, tmp_path):
    assert not attack(number, [finished_run.path], tmp_path / "here", 1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "first",
    [pytest.param(first, marks=[] if first < 120 else pytest.mark.matrix) for first in range(100, 400, 20)],
)
def test_many_hostile_runs_are_refused(first, finished_runs, tmp_path):
    faults = []
    for number in range(first, first + 20):
        faults += attack(number, finished_runs, tmp_path / str(number), len(COMMANDS))
    assert not faults


@pytest.fixture
def untrusted_run(finished_run, tmp_path):
    """Return the directory of an untrusted run that is not finished."""
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
def expect_refusal(untrusted_run, tmp_path):
    """Return a function that runs a command on the untrusted run and returns its one error line."""

    def refuse(command: str, *more: str) -> str:
        arguments = [command, "run", *more]
        return run_refused(arguments, tmp_path)

    return refuse


def run_refused(arguments: list[str], folder: Path) -> str:
    result = run_command(arguments, folder)
    assert (result.code, result.err.count("\n")) == (2, 1), result.err[:2000]
    assert complaint(result) is None, result.err[:2000]
    return result.err


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"\0" * 5000, b"[" * 100_000, b"[]", b"{}"], ids=range(5))
def test_an_invalid_environment_file_is_an_error(content, untrusted_run, expect_refusal):
    (untrusted_run / "environment.json").write_bytes(content)
    for command in ("export", "plot", "resume"):
        message = expect_refusal(command)
        assert (
            "environment.json: the content is" in message
            or "environment.json is not valid UTF-8: byte 0" in message
        )


@pytest.mark.parametrize("odd", ["pipe", "huge"])
def test_pipes_and_endless_files_are_not_read(odd, untrusted_run, expect_refusal):
    for name in ("environment.json", "config.json"):
        (untrusted_run / name).unlink()
        if odd == "pipe":
            os.mkfifo(untrusted_run / name)
            assert ".json is a link or a special file" in expect_refusal("plot")
        else:
            with (untrusted_run / name).open("wb") as file:
                file.truncate(2**40)
            assert f"run/{name} has 1,099,511,627,776 bytes" in expect_refusal("plot")


@pytest.mark.one_in(4)
@pytest.mark.parametrize("command", ["eval", "play"])
@pytest.mark.parametrize(
    ("space", "message"),
    [
        (
            {"space": "Box", "shape": [10**9], "low": 0, "high": 1, "dtype": "float32"},
            "number 1000000000 in the spaces: expected",
        ),
        ({"space": "Discrete", "n": 10**30, "start": 0, "dtype": "int64"}, f"{10**30}"),
        ({"space": "Box", "shape": [4], "low": float("nan"), "high": 1, "dtype": "float32"}, "nan"),
        ({"space": "Box", "shape": [4], "low": 0, "high": 1, "dtype": "x\x1b[2J"}, "dtype='x\\x1b[2J'"),
        ({"space": "Box", "shape": [4], "low": 0, "high": 1, "dtype": "float64"}, "the environment's Box"),
        (
            {"space": "MultiBinary", "n": 4},
            "the policy's observation space is MultiBinary(4), the environment's Box",
        ),
        ({"space": "Box", "shape": [2**22], "low": 0, "high": 1, "dtype": "float32"}, "[16, 4194304]"),
    ],
)
def test_spaces_beside_a_known_environment_are_compared_with_it(
    space, message, command, untrusted_run, expect_refusal
):
    rewrite(untrusted_run, "environment.json", "observation", value=space)
    assert message in expect_refusal(command)


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("policy", "memory", "dim"), 10**9, "of shape [1000000000, "),
        (("policy", "memory", "dim"), 18, "shape [4, 16], but the config has [4, 18]"),
        (("policy", "memory"), {"name": "hcam", "dim": 16, "num_layers": 10**9}, "exceeds the limit"),
        (
            ("policy", "memory"),
            {"name": "gtrxl", "dim": 16, "window": 10**12},
            "of shape [1000000000001, 16]",
        ),
    ],
)
def test_a_policy_is_built_only_as_large_as_its_weights(place, value, message, untrusted_run, expect_refusal):
    rewrite(untrusted_run, "config.json", *place, value=value)
    for command in ("eval", "play", "export"):
        line = expect_refusal(command)
        assert "do not match the policy in config.json" in line
        assert message in line


@pytest.mark.slow
def test_the_memory_of_a_policy_is_bounded(tiny, tmp_path):
    trained_run = train(tiny("hcam", total_steps=32, eval_episodes=0), tmp_path / "run")
    rewrite(trained_run.path, "config.json", "policy", "memory", "num_chunks", value=10**8)
    for command in ("eval", "play", "export", "resume"):
        if command == "resume":
            (trained_run.path / "result.json").unlink()
        line = run_refused([command, "run"], tmp_path)
        assert "GiB" in line
        assert "add --trust" in line
    with pytest.raises(ValueError, match="add --trust"):
        _ = Run.load(trained_run.path).policy


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("env", "num_envs"), 10**9),
        (("segment_length",), 10**12),
        (("learner", "burn_in_segments"), 10**9),
        (("policy", "memory", "dim"), 10**6),
        (("env", "kwargs", "corridor_length"), 10**9),
    ],
)
@pytest.mark.parametrize("checkpoint", [True, False])
def test_training_is_refused_before_it_allocates_too_much(
    checkpoint, place, value, untrusted_run, expect_refusal
):
    if not checkpoint:
        shutil.rmtree(untrusted_run / "checkpoints")
    rewrite(untrusted_run, "config.json", *place, value=value)
    line = expect_refusal("resume")
    assert f"{value}" in line.replace(",", "") or "of shape [" in line


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(
    ("env", "limit"),
    [
        ({"num_envs": 4000, "subprocesses": True}, "64"),
        ({"num_envs": 65, "subprocesses": True}, "64"),
        ({"num_envs": 4097}, "4,096"),
    ],
)
def test_the_numbers_of_environments_and_processes_are_bounded(env, limit, untrusted_run, expect_refusal):
    for name, value in env.items():
        rewrite(untrusted_run, "config.json", "env", name, value=value)
    assert f"={env['num_envs']:,}: the limit for an untrusted run is {limit}; add --trust" in expect_refusal(
        "resume"
    )
    (untrusted_run / "config.json").rename(untrusted_run.with_name("config.json"))
    assert f"={env['num_envs']:,}: the limit for an untrusted run is {limit}; add --trust" in run_refused(
        ["train", "--config", "config.json"], untrusted_run.parent
    )


def test_the_best_responses_of_a_team_have_the_same_bounds(finished_runs, tmp_path):
    path = shutil.copytree(finished_runs[2], tmp_path / "run")
    rewrite(path, "config.json", "env", "num_envs", value=4097)
    line = run_refused(["eval", "run", "--episodes", "2", "--best-response"], tmp_path)
    assert "env.num_envs=4,097: the limit for an untrusted run is 4,096" in line


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("name", ["model.safetensors", "training.pt"])
@pytest.mark.parametrize("command", ["eval", "export", "play", "resume"])
def test_files_larger_than_the_config_implies_are_not_read(name, command, untrusted_run, expect_refusal):
    file = max((untrusted_run / "checkpoints").glob("step_*")) / name
    with file.open("r+b") as sparse_file:
        sparse_file.truncate(40 * 2**30)
    line = expect_refusal(command)
    assert f"{name} has 42,949,672,960 bytes: its config implies at most " in line


@pytest.mark.slow
def test_runs_of_all_kinds_are_within_the_limits(finished_runs, monkeypatch):
    monkeypatch.setattr(checkpoint, "_SMALL", 0)  # compare the sizes of small files, too
    for path in (*finished_runs, Path(__file__).parent / "runs" / "stored" / "run"):
        run = Run.load(path)
        run.check()
        assert run.latest is not None


def test_initial_weights_larger_than_the_config_implies_are_not_read(untrusted_run, expect_refusal):
    shutil.rmtree(untrusted_run / "checkpoints")
    rewrite(untrusted_run, "config.json", "init_from", value="elsewhere")
    with (untrusted_run / "initial.safetensors").open("wb") as sparse_file:
        sparse_file.truncate(40 * 2**30)
    assert "initial.safetensors has 42,949,672,960 bytes: its config implies" in expect_refusal("resume")


@pytest.mark.slow
def test_a_team_and_a_supervised_run_have_bounds_too(finished_runs, tmp_path):
    for source, place, value in (
        (finished_runs[2], ("env", "kwargs", "num_uavs"), 10**6),
        (finished_runs[2], ("env", "num_envs"), 10**9),
        (finished_runs[3], ("batch_rows",), 10**9),
        (finished_runs[3], ("eval_longer",), [10**9]),
        (finished_runs[3], ("memory", "dim"), 10**9),
        (finished_runs[3], ("suite", "vocab_size"), 10**12),
    ):
        path = shutil.copytree(source, tmp_path / "run")
        (path / "result.json").unlink()
        rewrite(path, "config.json", *place, value=value)
        run_refused(["resume", "run"], tmp_path)
        shutil.rmtree(path)


@pytest.mark.slow
def test_the_time_of_a_command_is_bounded(untrusted_run, tmp_path, monkeypatch):
    monkeypatch.setattr(resources, "CPU_SECONDS", 1)
    rewrite(untrusted_run, "config.json", "env", "kwargs", "corridor_length", value=10**6)
    result = run_command(["eval", "run", "--max-steps", "1000000000"], tmp_path)
    assert complaint(result) is None
    assert "took more than 1 s of CPU time; add --trust to lift the limit" in result.err.splitlines()[-1]


@pytest.mark.slow
def test_untrusted_names_print_no_control_characters(untrusted_run, tmp_path):
    rewrite(untrusted_run, "config.json", "recipe", value=NAME)
    rewrite(untrusted_run, "config.json", "total_steps", value=384)
    rows = map(json.loads, (untrusted_run / "metrics.jsonl").read_text().splitlines())
    text = "".join(f"{json.dumps(row | {NAME: 1})}\n" for row in rows)
    (untrusted_run / "metrics.jsonl").write_text(text)
    renamed_run = untrusted_run.rename(tmp_path / f"r{CONTROL_CODES}")
    for arguments in (
        ["eval", renamed_run.name],
        ["plot", renamed_run.name],
        ["plot", renamed_run.name, "--metric", "none"],
        ["plot", renamed_run.name, "--metric", NAME],
        ["play", renamed_run.name, "--max-steps", "3"],
        ["export", renamed_run.name],
        ["list", NAME],
        ["doctor", NAME],
    ):
        assert find_fault(arguments, tmp_path) is None
    result = run_command(["eval", renamed_run.name, "--episodes", "1"], tmp_path)
    assert result.out.startswith("x\N{REPLACEMENT CHARACTER}[31m")


def test_metrics_of_another_length_are_not_cut_inside_a_line(untrusted_run, expect_refusal):
    rewrite(untrusted_run, "config.json", "total_steps", value=384)
    rows = (untrusted_run / "metrics.jsonl").read_text().splitlines()
    (untrusted_run / "metrics.jsonl").write_text("".join(f'{row[:-1]}, "more": 1}}\n' for row in rows))
    assert "has changed since the checkpoint" in expect_refusal("resume")
