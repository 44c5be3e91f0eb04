"""Errors name missing packages of extras and the install command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

MEMORY_GYM = "pip install --no-deps memory-gym pygame"
# Simulate packages that are not installed.
WITHOUT = """
import contextlib, io, json, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("mpe2", "popgym", "memory_gym", "imageio_ffmpeg"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Without())
from scrubjay.experiments.commands.main import main
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stderr(io.StringIO()) as told, contextlib.redirect_stdout(told):
        code = main(words)
    print(json.dumps([code, told.getvalue()]))
"""
CASES = [
    (["train", "spread"], "No module named 'mpe2'; pip install 'scrubjay[mpe]'"),
    (["play", "spread"], "pip install 'scrubjay[mpe]'"),
    (["train", "team", "--env", "mpe2.simple_tag_v3:parallel_env"], "pip install 'scrubjay[mpe]'"),
    (["train", "ppo", "--env", "popgym:popgym-CountRecallEasy-v0"], "pip install 'scrubjay[popgym]'"),
    (["train", "ppo", "--env", "popgym.envs.count_recall:CountRecallEasy"], "pip install 'scrubjay[popgym]'"),
    (["play", "popgym:popgym-CountRecallEasy-v0"], "pip install 'scrubjay[popgym]'"),
    (
        ["train", "ppo", "--env", "popgym-CountRecallEasy-v0"],
        "did you mean 'popgym:popgym-CountRecallEasy-v0' (extra popgym)?",
    ),
    (["train", "ppo", "--env", "memory_gym:MortarMayhem-Grid-v0"], MEMORY_GYM),
    (["train", "ppo", "--env", "memory_gym.mortar_mayhem_grid:GridMortarMayhemEnv"], MEMORY_GYM),
    (["play", "scrubjay/TMaze-v0", "--out", "x.mp4"], "pip install 'scrubjay[film]'"),
]


def test_what_is_missing_is_named_with_what_brings_it(tmp_path):
    command = [sys.executable, "-c", WITHOUT, json.dumps([words for words, _ in CASES])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=True)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    for (words, message), (code, output) in zip(CASES, answers, strict=True):
        assert code == 2, words
        assert message in output, words
        assert output.count("\n") == 1, words
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "mpe2.simple_sprad_v3:parallel_env",
            "No module named 'mpe2.simple_sprad_v3'; write module:callable",
        ),
        ("popgym:popgym-CountRecalEasy-v0", "did you mean 'popgym:popgym-CountRecallEasy-v0'?"),
    ],
)
def test_who_has_the_package_is_not_told_to_install_it(name, message, usage_error, require):
    require(name[: name.index(":")].partition(".")[0])
    output = usage_error("train", "team" if "mpe2" in name else "ppo", "--env", name)
    assert message in output
    assert "pip install" not in output
