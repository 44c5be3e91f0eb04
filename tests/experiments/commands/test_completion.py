"""Completion in a real bash, and agreement of its options with --help."""

import argparse
import contextlib
import os
import re
import subprocess
import sys

import pytest

from scrubjay.experiments.commands import COMMANDS
from scrubjay.experiments.commands.completion import SHELLS, parser_after
from scrubjay.experiments.commands.main import main

_BY_PATTERN = {"--any.field", "--memory.parts", "--help"}
"""Options in help texts that are placeholders or common to all commands."""


@pytest.fixture
def bash(tmp_path):
    """Return a function that returns bash's completions for each of several lines."""
    program = tmp_path / "bin" / "scrubjay"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m scrubjay "$@"\n')
    program.chmod(0o755)
    ask = """
        eval "$(scrubjay completion bash)" && complete -p scrubjay || exit 1
        for line in "$@"; do
            COMP_LINE="$line" COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
            _python_argcomplete scrubjay
            printf "%s|" "${COMPREPLY[@]}"
            echo
        done
    """

    def complete_lines(*lines: str) -> list[set[str]]:
        done = subprocess.run(
            ["bash", "--norc", "-c", ask, "bash", *lines],
            env={**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=True,
            timeout=600,
            cwd=tmp_path,
        )
        registration, *completions = done.stdout.splitlines()
        assert registration.endswith("_python_argcomplete scrubjay"), done.stderr
        return [{word.rstrip(" ") for word in line.split("|") if word} for line in completions]

    return complete_lines


def test_bash_completes_verbs_and_names(bash):
    verbs, recipes, memories, environments, actions, kinds, policies = bash(
        "scrubjay ",
        "scrubjay train tmaze-",
        "scrubjay train tmaze --memory titans_",
        "scrubjay train ppo --env scrubjay/T",
        "scrubjay memory ",
        "scrubjay memory add --kind e",
        "scrubjay chat --policy s",
    )
    assert verbs == set(COMMANDS)
    assert recipes == {"tmaze-20", "tmaze-demo"}
    assert memories == {"titans_mac", "titans_mag", "titans_mal"}
    assert environments == {"scrubjay/TMaze-v0"}
    assert {"add", "search", "export"} < actions
    assert kinds == {"episode"}
    assert policies == {"sinks", "snapkv"}


def test_bash_completes_options_of_the_recipe_and_of_the_memory_that_is_named(bash):
    of_verb, settings, value, of_learner, of_memory, of_default, of_team = bash(
        "scrubjay eval --ep",
        "scrubjay eval --mem",
        "scrubjay eval --memory ",
        "scrubjay train tmaze --learner.gam",
        "scrubjay train tmaze --memory hcam --memory.ch",
        "scrubjay train tmaze --memory.",
        "scrubjay train uav-small --policy.graph-r",
    )
    assert of_verb == {"--episodes"}
    assert settings == {"--memory", "--memoryless"}
    assert not value
    assert of_learner == {"--learner.gamma"}
    assert of_memory == {"--memory.chunk-size"}
    assert of_default == {"--memory.dim"}
    assert of_team == {"--policy.graph-rounds"}


@pytest.mark.slow
def test_bash_completes_run_directories(bash, tmp_path):
    run = tmp_path / "runs" / "tmaze-gru"
    run.mkdir(parents=True)
    (run / "config.json").touch()
    (tmp_path / "runs" / "my notes").mkdir()
    above, runs, one = bash(
        "scrubjay eval ru", "scrubjay resume runs/", "scrubjay plot runs/tmaze-gru runs/tm"
    )
    assert above == {"runs/"}
    assert runs == {"runs/tmaze-gru", r"runs/my\ notes/"}
    assert one == {"runs/tmaze-gru"}


def test_a_run_that_a_stranger_named_runs_nothing_and_steers_nothing(bash, tmp_path):
    for name in ("$(touch caught)", "red\x1b[31m", "one\x0btwo", "good"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (choices,) = bash("scrubjay eval runs/")
    assert choices == {"runs/good/", r"runs/\$\(touch\ caught\)/"}
    assert not (tmp_path / "caught").exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_has_a_script_and_help_says_where_it_goes(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_ARGCOMPLETE" in script
    assert "scrubjay" in script
    assert main(["completion", "--help"]) == 0
    assert SHELLS[shell] in capsys.readouterr().out


@pytest.mark.parametrize(("words", "message"), [(["tcsh"], "bash, zsh, fish"), (["bash", "zsh"], "'zsh'")])
def test_another_shell_is_one_line(words, message, capsys):
    assert main(["completion", *words]) == 2
    assert message in capsys.readouterr().err


def options(verb: str, *words: str) -> set[str]:
    """Return the options that completion offers for a command."""
    parser: argparse.ArgumentParser = parser_after([verb, *words])
    for word in (verb, *words[:1]):
        (choices,) = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = choices.choices[word]
    return {flag for action in parser._actions for flag in action.option_strings}


@pytest.mark.one_in(5)
@pytest.mark.parametrize("verb", [verb for verb in COMMANDS if verb not in ("memory", "longcontext")])
def test_completion_knows_the_options_that_help_tells(verb, capsys, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    with contextlib.suppress(SystemExit):
        main([verb, "--help"])
    text = capsys.readouterr().out
    help_options = set(re.findall(r"^(?:│ )?(--[a-z][\w.-]*)", text, re.MULTILINE))
    help_options |= set(re.findall(r"(?<=\[)--[a-z][\w.-]*", text))
    assert help_options - _BY_PATTERN <= options(verb)
    if "╭" in text:
        assert help_options, "its help was not understood"


@pytest.mark.parametrize("words", ["memory add", "longcontext speed"])
def test_completion_knows_the_options_of_words_below_a_verb(words):
    assert {"--help"} < options(*words.split())


@pytest.mark.slow
def test_a_shell_that_asks_again_does_not_wait_for_torch(modules_after, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    program = "from scrubjay.experiments.commands import completion\n"
    lines = (["train", "tmaze"], ["eval"], ["agent"], ["memory", "add"], ["longcontext", "speed"])
    for words in lines:
        modules_after(f"{program}completion.parser_after({words})")
    modules = modules_after(f"{program}for words in {lines}: completion.parser_after(words)")
    assert modules.isdisjoint({"torch", "ray", "gymnasium", "transformers", "langchain_core", "matplotlib"})
