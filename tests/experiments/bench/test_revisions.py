"""Benchmark of two commits."""

import os
import subprocess
from pathlib import Path

import pytest

from scrubjay.experiments.bench.revisions import RevisionsBench, main, time_cases
from scrubjay.memory import list_memories

ROOT = Path(__file__).resolve().parents[3]


def _is_checkout() -> bool:
    """Check if this folder is a git checkout with a writable git directory."""
    git = ["git", "-C", str(ROOT), "rev-parse", "--git-common-dir"]
    result = subprocess.run(git, check=False, capture_output=True, text=True)
    return result.returncode == 0 and os.access(ROOT / result.stdout.strip(), os.W_OK)


@pytest.mark.slow
@pytest.mark.skipif(not _is_checkout(), reason="not a checkout of one's own")
def test_a_commit_is_timed_beside_this_tree_and_leaves_nothing(capsys):
    git = ["git", "-C", str(ROOT), "worktree", "list"]
    before = subprocess.run(git, check=True, capture_output=True, text=True).stdout
    main(RevisionsBench(base="HEAD", case="hcam", rounds=1, least_seconds=0.0))
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert table[0] == "| case | HEAD | this tree | now / earlier | by round |"
    assert len(table) == 2 + 3
    for row in table[2:]:
        base, now, ratio = row.split("|")[2:5]
        assert float(base) > 0
        assert float(now) > 0
        assert ratio.strip().startswith("**")
    assert subprocess.run(git, check=True, capture_output=True, text=True).stdout == before


@pytest.mark.matrix
def test_every_case_runs():
    times = time_cases("", 0.0)
    assert sum("PPO update" in case for case in times) == len(list_memories())
    assert min(times.values()) > 0


@pytest.mark.skipif(not _is_checkout(), reason="not a checkout of one's own")
def test_an_unknown_commit_is_named_by_git(capfd):
    with pytest.raises(subprocess.CalledProcessError):
        main(RevisionsBench(base="no-such-commit", rounds=1))
    assert "no-such-commit" in capfd.readouterr().err
