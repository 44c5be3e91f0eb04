"""Speed of the working tree compared with an earlier commit: each memory, decoding, the bank, and kernels.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.revisions --base COMMIT

Checks the earlier commit out into a temporary folder and starts processes of both versions in turns. Each
process runs the cases of `revision_cases` several times and reports the 10th percentile of a case's CPU
times. The table has the minimum over the processes in milliseconds, because other work on the machine only
adds time. Beside the ratio of the minima stand the least and the largest ratio of two processes of one
round. Ctrl-C prints the table of the finished rounds. Options: `--help`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import tyro

_CASES = "revision_cases"


@dataclass(frozen=True)
class RevisionsBench:
    """Options of the benchmark."""

    base: str
    """Commit of this repository to compare with."""
    case: str = ""
    """Run only the cases whose name contains this text, e.g. "PPO update" or "hcam"."""
    rounds: int = 5
    """Processes per version."""
    least_seconds: float = 0.2
    """Minimum duration in seconds of a case in a process."""


def main(bench: RevisionsBench) -> None:
    """Run the benchmark and print its table."""
    here = Path(__file__).resolve().parents[2]
    rounds: list[tuple[dict[str, float], dict[str, float]]] = []
    with tempfile.TemporaryDirectory(prefix="scrubjay-") as folder:
        there = Path(folder) / "base"
        git = ["git", "-C", str(here)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(there), bench.base], check=True)
        try:
            for done in range(bench.rounds):
                trees = [there, here]
                times = {tree: _time_checkout(tree, bench) for tree in trees[:: 1 if done % 2 else -1]}
                rounds.append((times[there], times[here]))
                print(f"round {done + 1} of {bench.rounds}", file=sys.stderr, flush=True)
        except KeyboardInterrupt:
            print("stopped; the table shows the finished rounds", file=sys.stderr)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(there)], check=True)
    if rounds:
        print("\n".join(_table(rounds, bench)))


def _table(rounds: list[tuple[dict[str, float], dict[str, float]]], bench: RevisionsBench) -> list[str]:
    lines = [
        f"float32, 1 thread, {os.cpu_count()} CPUs; minimum CPU ms of {len(rounds)} processes per version.",
        "",
        f"| case | {bench.base} | this tree | now / earlier | by round |",
        "|---|---|---|---|---|",
    ]
    for case in [name for name in rounds[0][1] if name in rounds[0][0]]:
        base, now = (min(times[version][case] for times in rounds) for version in (0, 1))
        ratios = [after[case] / before[case] for before, after in rounds]
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        lines.append(f"| {case} | {base:.3f} | {now:.3f} | **{now / base:.2f}x** | {spread} |")
    return lines


def _time_checkout(tree: Path, bench: RevisionsBench) -> dict[str, float]:
    """Return CPU milliseconds by case, timed in a new process with the package of the checkout `tree`."""
    cases = tree / "experiments" / "bench" / f"{_CASES}.py"
    if not cases.exists():
        cases = Path(__file__).with_name(f"{_CASES}_{bench.base}.py")
    if not cases.exists():
        raise SystemExit(f"{bench.base} has no {_CASES}.py; write the adapter {cases} first")
    done = subprocess.run(
        [sys.executable, "-P", str(cases.resolve()), bench.case, str(bench.least_seconds)],
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


if __name__ == "__main__":
    main(tyro.cli(RevisionsBench, description=__doc__))
