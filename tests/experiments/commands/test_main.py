"""The command as a process: its output and exit code."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pytest

from scrubjay.experiments import Run, commands
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.main import main
from scrubjay.experiments.files import lock
from scrubjay.experiments.recipes.overrides import override
from scrubjay.memory import MemoryBank

TINY = ["--total-steps", "64", "--env.num-envs", "4", "--segment-length", "8", "--eval-episodes", "3"]


def test_train_eval_plot_play_in_one_go(here, tmp_path):
    """Run in this process; test_docs.py runs all commands as processes."""
    code, out, err = here(
        "train", "tmaze-demo", "--memory", "lstm", "--set", "corridor_length=3", "--seed", 7, *TINY
    )
    assert (code, err) == (0, "")
    path = Path(out.splitlines()[0].removeprefix("run directory: "))
    assert path.name.startswith("tmaze-demo-lstm-s7-")
    run = Run.load(tmp_path / path)
    assert run.config.seed == 7
    assert run.config.env.kwargs["corridor_length"] == 3  # type: ignore[attr-defined]
    assert "steps/s" in out

    code, out, err = here("eval", path, "--episodes", 6, "--set", "corridor_length=20")
    assert (code, err) == (0, "")
    assert "corridor_length=20" in out
    assert "95 % interval" in out
    assert "6 episodes" in out

    for verb, file in (("plot", "curve.png"), ("play", "episode.gif")):
        (run.path / file).unlink(missing_ok=True)
        code, out, err = here(verb, path)
        assert (code, err) == (0, "")
        assert (run.path / file).stat().st_size > 1000

    code, out, _ = here("resume", path)
    assert code == 0
    assert "is finished" in out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["train", "tmaze", "--memory", "hcamm"], ["'hcamm'", "none", "did you mean 'hcam'"]),
        (["train", "tmaz"], ["'tmaz'", "repeat-previous", "did you mean 'tmaze'"]),
        (["trian"], ["'trian'", "resume", "did you mean 'train'"]),
        (["train", "tmaze", "--memory", "gru", "--memory.dim", "7"], ["dim=7", "even and at least 8"]),
        (["train", "tmaze", "--memory", "hcam", "--memory.chunk-size", "0"], ["chunk_size=0"]),
        (["train", "tmaze", "--ppo.gama", "1"], ["'--learner.gama'", "did you mean '--learner.gamma'"]),
        (["train", "tmaze", "--memroy", "gru"], ["'--memroy'", "did you mean '--memory'"]),
        (["train", "tmaze", "--ppo.gamma", "high"], ["--learner.gamma", "'high'"]),
        (["train", "tmaze", "--ppo.gamma", "2"], ["gamma=2"]),
        (["train", "tmaze", "--device", "tpu"], ["'tpu'", "auto", "cpu", "cuda"]),
        (["train", "tmaze-demo", "--env.num-envs", "2"], ["num_minibatches=4", "num_envs=2"]),
        (["train", "tmaze", "--env.num-envs", "0"], ["num_envs=0"]),
        (["train", "tmaze", "--set", "corridor_length"], ["'corridor_length'", "name=value"]),
        (["train", "tmaze", "--set", "corridor_length=0"], ["corridor_length=0"]),
        (["train", "tmaze", "--set", "wings=2"], ["wings"]),
        (["train", "tmaze", "--memory"], ["--memory needs a value"]),
        (["train", "ppo"], ["'ppo'", "--env"]),
        (["train", "ppo", "--env", "CartPol-v1"], ["'CartPol-v1'", "did you mean 'CartPole-v1'"]),
        (["train", "ppo", "--env", "no.such:thing"], ["'no.such:thing'"]),
        (["resume", "nowhere"], ["no run at nowhere"]),
        (["eval", "nowhere"], ["no run at nowhere"]),
        (["eval", "CartPole-v1"], ["no run at CartPole-v1", "add --random"]),
        (["eval", "scrubjay/TMaze-v0"], ["no run at scrubjay/TMaze-v0", "add --random"]),
        (["plot", "nowhere"], ["no run at nowhere"]),
        (["plot"], ["at least one run"]),
        (["export", "nowhere"], ["no run at nowhere"]),
        (["play", "scrubjay/TMaz-v0"], ["did you mean 'scrubjay/TMaze-v0'"]),
        (["list", "memories"], ["'memories'"]),
        (["demo", "--memory", "nine"], ["'nine'"]),
        (["demo", "--memory", "none"], ["'none'"]),
        (["compare", "--memories", "gru", "elephant"], ["'elephant'"]),
        (["compare", "--recipes", "cake"], ["'cake'"]),
        (["compare", "--jobs", "0"], ["jobs=0"]),
        (["train", "tmaze-demo", "--ppo.reconstruction-coefficient", "1"], ["reconstruction_coefficient=1"]),
        (["train", "tmaze", "--ppo.entropy-coefficient", "-1"], ["entropy_coefficient=-1"]),
        (["train", "tmaze", "--ppo.target-kl", "0"], ["target_kl=0"]),
        (["train", "tmaze", "--run-dir", "/dev/null/run"], ["/dev/null/run"]),
        (["play", "scrubjay/TMaze-v0", "--seed", "-1"], ["-1"]),
    ],
    ids=" ".join,
)
def test_bad_input_gives_one_line_and_code_2(words, names, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    for name in names:
        assert name in err
    assert list(tmp_path.iterdir()) == []


def test_bad_input_to_a_run(finished_run, capsys):
    for words, name in (
        (["eval", str(finished_run.path), "--episodes", "0"], "episodes=0"),
        (["eval", str(finished_run.path), "--seed", "-1"], "seed=-1: must not be negative"),
        (["eval", str(finished_run.path), "--set", "wings=2"], "wings"),
        (["plot", str(finished_run.path), "--metric", "joy"], "'joy'"),
        (["train", "tmaze", "--run-dir", str(finished_run.path)], "scrubjay resume"),
    ):
        assert main(words) == 2
        assert name in capsys.readouterr().err


def test_a_module_beside_the_user_is_found(here, tmp_path):
    (tmp_path / "my_env.py").write_text(
        "import gymnasium, scrubjay.envs\n"
        "def maze(corridor_length=3):\n"
        "    return gymnasium.make('scrubjay/TMaze-v0', corridor_length=corridor_length)\n"
    )
    flags = ["--env.num-envs", "4", "--total-steps", "64", "--segment-length", "8", "--eval-episodes", "2"]
    code, out, err = here("train", "ppo", "--env", "my_env:maze", *flags, "--run-dir", "r")
    assert code == 0, err
    assert "done:" in out


def test_a_run_is_trained_by_one_process_at_a_time(tiny, tmp_path, capsys):
    run = Run.create(tiny(), tmp_path / "run")
    with lock(run.path):
        assert main(["resume", str(run.path)]) == 2
        assert "is being trained by another process" in capsys.readouterr().err
    assert main(["resume", str(run.path)]) == 0


@pytest.mark.slow
def test_bad_input_in_a_real_process_shows_no_traceback(scrubjay):
    code, out, err = scrubjay("train", "tmaze", "--memory", "gruu")
    assert (code, out) == (2, "")
    assert err.startswith("scrubjay: unknown memory 'gruu'")
    assert err.count("\n") == 1


def test_unexpected_errors_keep_their_traceback(monkeypatch, capsys, tmp_path):
    def fail(words):
        raise ValueError("a\nbug")

    monkeypatch.setattr("scrubjay.experiments.commands.list.run", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["list"]) == 1
    (file,) = tmp_path.iterdir()
    assert capsys.readouterr().err == f"scrubjay: internal error: ValueError: a bug (traceback: {file})\n"
    assert "in fail" in file.read_text()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    assert main(["list"]) == 1
    assert "set SCRUBJAY_TRACEBACK=1 to see the traceback" in capsys.readouterr().err
    monkeypatch.setenv("SCRUBJAY_TRACEBACK", "1")
    with pytest.raises(ValueError, match="bug") as error_info:
        main(["list"])
    assert not isinstance(error_info.value, UsageError)


@pytest.mark.parametrize("words", [("show",), ("export", "--out", "all.jsonl")], ids=["show", "export"])
def test_the_name_of_a_strangers_bank_is_printed_as_text(words, here, tmp_path):
    name = "x\x1b]2;title\x07\u202e.db"
    with MemoryBank(tmp_path / name) as bank:
        bank.add("A fact.")
    words = [word.replace("all", "x\x1b]2;y\x07") for word in words]
    code, out, err = here("memory", words[0], name, *words[1:])
    assert code == 0
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", out + err)


def test_warnings_about_files_of_strangers_are_printed_as_text(monkeypatch, capsys, caplog):
    def warn(argv: list[str]) -> int:
        message = "line 1 of x\x1b]2;title\x07\u202e is no record"
        logging.getLogger("transformers").warning("\x1b[1m%s\x1b[0m", message)
        print(
            warnings.formatwarning(message, UserWarning, "file.py", 1), file=sys.stderr
        )  # pytest records them
        return 0

    monkeypatch.setattr(commands, "load_command", lambda name: warn)
    with caplog.at_level(logging.WARNING):
        assert main(["list"]) == 0
    err = caplog.text + capsys.readouterr().err
    assert err.count("is no record") == 2
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", err)


def test_a_log_record_with_the_wrong_arguments_ends_no_command(monkeypatch, caplog):
    def warn(argv: list[str]) -> int:
        message = "%d layers and \x1b[2J%s"
        logging.getLogger("transformers").warning(message, "two")
        return 0

    monkeypatch.setattr(commands, "load_command", lambda name: warn)
    with caplog.at_level(logging.WARNING):
        assert main(["list"]) == 0
    assert "%d layers" in caplog.text
    assert "('two',)" in caplog.text
    assert "\x1b" not in caplog.text


def test_every_verb_has_help(capsys):
    assert main([]) == main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in COMMANDS)
    for verb in COMMANDS:
        try:
            code = main([verb, "--help"])
        except SystemExit as stop:
            code = stop.code
        assert code in (0, None)
        assert f"scrubjay {verb}" in capsys.readouterr().out


def test_no_command_knows_an_environment_by_its_name():
    folder = Path(commands.__file__).parent
    for file in folder.glob("*.py"):
        assert not re.search(r"\buav\b|scrubjay/[A-Z]", file.read_text()), file.name


def test_list_names_all(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("tmaze-demo", "corridor of 20", "gru", "256 B", "scrubjay/RepeatPrevious-v0"):
        assert name in out


@pytest.mark.slow
def test_the_command_starts_without_heavy_imports(tmp_path, monkeypatch):
    """One process for all commands, lightest first, since imports accumulate. Their texts are stored."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for words in ["train", "tmaze", "--help"], ["list"]:
        command = [sys.executable, "-P", "-m", "scrubjay", *words]
        subprocess.run(command, capture_output=True, check=True)
    program = (
        "import sys\nfrom scrubjay.experiments.commands.main import main\n"
        "HEAVY = 'ray', 'matplotlib', 'tensorboard', 'langchain_core', 'torch_geometric', 'onnx'\n"
        "for words in ['--help'], ['train', 'tmaze', '--help'], ['list']:\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "    print('loaded', words[0], [n for n in HEAVY if n in sys.modules], 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line.startswith("loaded ")] == [
        "loaded --help [] False",
        "loaded train [] False",
        "loaded list [] False",
    ]


def test_overrides_reach_their_fields():
    config: Any = override(
        "tmaze",
        ["--memory", "hcam", "--memory.chunk-size=4", "--policy.memory.dim", "32", "--ppo.target-kl", "0.1"],
    )
    assert config.label == "hcam"
    assert (config.policy.memory.dim, vars(config.policy.memory)["chunk_size"]) == (32, 4)
    assert config.learner.target_kl == 0.1
    assert config.env.kwargs == {"corridor_length": 50}
    config = override("tmaze", ["--set", "active=true", "--env.kwargs.corridor-length", "9"])
    assert config.env.kwargs == {"active": True, "corridor_length": 9}
    other: Any = override("tmaze", ["--env", "CartPole-v1", "--set", "sutton_barto_reward=true"])
    assert (other.env.id, other.env.kwargs) == ("CartPole-v1", {"sutton_barto_reward": True})


@pytest.mark.slow
def test_demo_trains_both_compares_them_and_goes_on_when_called_again(capfd, tmp_path):
    words = ["demo", "--memory", "gru", "--total-steps", "2000", "--out", str(tmp_path / "demo")]
    assert main(words) == 0
    out = capfd.readouterr().out
    assert "the best possible accuracy is 25%" in out
    for name in ("none", "gru"):
        assert f"recall-demo {name} s0" in out  # progress lines during training
    assert (tmp_path / "demo" / "curve.png").stat().st_size > 5000
    runs = [Run.load(tmp_path / "demo" / name) for name in ("none-s0", "gru-s0")]
    before = [run.metrics() for run in runs]
    assert all(run.is_finished for run in runs)
    assert main(words) == 0
    assert [run.metrics() for run in runs] == before
    assert main([*words, "--total-steps", "3000"]) == 2
    assert "other settings" in capfd.readouterr().err


@pytest.mark.slow
@pytest.mark.usefixtures("trained_here")
def test_compare_tabulates_and_tests_beyond_training(tmp_path):
    words = [
        "compare",
        "--memories",
        "none",
        "gru",
        "--recipes",
        "tmaze-demo",
        "repeat-previous",
        "--seeds",
        "0",
    ]
    assert main([*words, "--jobs", "2", "--out", str(tmp_path), "--", *TINY, "--total-steps", "512"]) == 0
    table = (tmp_path / "table.md").read_text()
    assert table.startswith("`scrubjay compare --memories none gru")
    for row in ("| tmaze-demo | none |", "| tmaze-demo | gru |", "| memory | 20 | 40 | 100 | 200 |"):
        assert row in table
    scores = json.loads((tmp_path / "tmaze-demo-gru-s0" / "longer.json").read_text())
    assert list(scores) == ["20", "40", "100", "200"]
    for file in ("curves.png", "longer.png"):
        assert (tmp_path / file).stat().st_size > 5000


def test_compare_refuses_what_cannot_run_before_anything_is_written(tmp_path, capsys):
    words = ["compare", "--memories", "none", "--recipes", "tmaze", "--out", str(tmp_path / "out")]
    assert main([*words, "--", "--set", "corridor_length=0"]) == 2
    assert "corridor_length" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_failing_process_is_reported_with_its_reason(tmp_path, tiny):
    from scrubjay.experiments.launch.parallel import run_in_processes

    run = Run.create(tiny(device="cuda"), tmp_path / "run")
    with pytest.raises(RuntimeError, match="device='cuda'"):
        run_in_processes([run], jobs=1)


@pytest.mark.parametrize(
    ("variables", "has_colours"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)]
)
def test_help_on_a_terminal_has_no_colours_if_they_are_not_wanted(variables, has_colours):
    ours, theirs = pty.openpty()
    # With NO_COLOR set, the command has already set tyro's variable in this process.
    color_variables = {"NO_COLOR", "PYTHON_TYRO_ANSI_CODES"}
    env = {name: value for name, value in os.environ.items() if name not in color_variables}
    command = [sys.executable, "-P", "-m", "scrubjay", "kagentbench", "--help"]
    with subprocess.Popen(command, env=env | {"TERM": "xterm"} | variables, stdout=theirs) as running:
        os.close(theirs)
        output = b""
        while part := _read(ours):
            output += part
    os.close(ours)
    assert running.returncode == 0
    assert b"--help" in output
    assert (b"\x1b[" in output) == has_colours


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux raises it if the other side is closed
        return b""
