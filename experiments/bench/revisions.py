"""Speed of the working tree compared with an earlier commit, for common ops.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.revisions --base COMMIT

Checks the earlier commit out into a temporary folder and starts processes of both versions in turns. Each
process runs every case several times and reports the 10th percentile of its CPU times. Prints the minimum
over the processes in milliseconds, because other work on the machine only adds time, and the ratio of the two
versions. Options: `--help`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RevisionsBench:
    """Options of the benchmark."""

    base: str
    """Commit of this repository to compare with."""
    rounds: int = 7
    """Processes per revision."""
    least_seconds: float = 0.4
    """Minimum duration in seconds of a case in a process."""


def main(bench: RevisionsBench) -> None:
    """Run the benchmark and print its table."""
    here = Path(__file__).resolve().parents[2]
    times: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="scrubjay-") as folder:
        there = Path(folder) / "base"
        git = ["git", "-C", str(here)]
        subprocess.run([*git, "worktree", "add", "--quiet", "--detach", str(there), bench.base], check=True)
        try:
            for done in range(bench.rounds):
                for name, tree in (("base", there), ("here", here)):
                    for case, milliseconds in _time_checkout(tree, bench.least_seconds).items():
                        times.setdefault(case, {}).setdefault(name, []).append(milliseconds)
                print(f"round {done + 1} of {bench.rounds}", file=sys.stderr, flush=True)
        finally:
            subprocess.run([*git, "worktree", "remove", "--force", str(there)], check=True)
    print(
        f"float32, 1 thread, {os.cpu_count()} CPUs; minimum CPU ms of {bench.rounds} processes per version.\n"
    )
    print(f"| case | {bench.base} | this tree | earlier / now |")
    print("|---|---|---|---|")
    for case, case_times in times.items():
        base, now = min(case_times["base"]), min(case_times["here"])
        print(f"| {case} | {base:.3f} | {now:.3f} | **{base / now:.2f}x** |")


def _time_checkout(tree: Path, least_seconds: float) -> dict[str, float]:
    """Return CPU milliseconds by case, timed in a new process with the package of the checkout `tree`."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src")}
    command = [sys.executable, "-P", str(Path(__file__).resolve()), "--time", str(least_seconds)]
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def time_cases(least_seconds: float) -> dict[str, float]:
    """Return the 10th percentile of each case's CPU milliseconds, in this process."""
    import torch

    torch.set_num_threads(1)
    torch.manual_seed(0)
    percentiles = {}
    for case, run in _cases().items():
        run()
        durations: list[float] = []
        while sum(durations) < least_seconds or len(durations) < 5:
            begin = time.process_time()
            run()
            durations.append(time.process_time() - begin)
        percentiles[case] = 1e3 * sorted(durations)[len(durations) // 10]
    return percentiles


def _cases() -> dict[str, Callable[[], object]]:
    """Return the timed functions by case name. Each function works with every commit of the package."""
    import torch

    from scrubjay import memory
    from scrubjay.kernels import chunk_retrieval, nearest, sink_attention

    def retrieval(combine, rows, queries, heads, groups, chunks, length, *, learns=False):
        query = torch.randn(rows, queries, heads, 64, requires_grad=learns)
        keys, values = (torch.randn(rows, chunks, length, groups, 64, requires_grad=learns) for _ in "kv")
        summaries, valid = keys.detach().mean(dim=2), torch.full((rows, queries), chunks)
        coarse = query[:, :, :groups].detach()

        def run():
            with torch.set_grad_enabled(learns):
                out = chunk_retrieval(
                    query, keys, values, summaries, valid, top_k=4, combine=combine, summary_query=coarse
                )
                if learns:
                    out.sum().backward()

        return run

    def sinks(queries, slots):
        query, keys, values = (torch.randn(4, count, 8, 64) for count in (queries, slots, slots))
        step = torch.arange(slots).expand(4, slots)
        query_step = step[:, slots - queries :]
        return lambda: sink_attention(
            query, keys, values, query_step, step, torch.zeros_like(query_step), window=128, num_sinks=4
        )

    def hcam(rows, steps):
        module = memory.make("hcam", dim=64)
        state, x = module.initial_state(rows), torch.randn(rows, steps, 64)
        with torch.no_grad():
            _, state = module(torch.randn(rows, 200, 64), state)

        def run():
            with torch.set_grad_enabled(steps > 1):
                out = module(x, state)[0]
                if steps > 1:
                    out.sum().backward()

        return run

    table, vector = torch.randn(100_000, 384).numpy(), torch.randn(1, 384).numpy()
    return {
        "chunk_retrieval, joint, batch size 8, one step": retrieval("joint", 8, 1, 8, 8, 128, 128),
        "chunk_retrieval, joint, 256 queries": retrieval("joint", 1, 256, 8, 8, 128, 128),
        "chunk_retrieval, joint, 256 queries, forward and backward": retrieval(
            "joint", 1, 256, 8, 8, 128, 128, learns=True
        ),
        "chunk_retrieval, hierarchical, batch size 64, one step": retrieval(
            "hierarchical", 64, 1, 4, 1, 32, 16
        ),
        "chunk_retrieval, hierarchical, batch size 32, 128 queries": retrieval(
            "hierarchical", 32, 128, 4, 1, 32, 16
        ),
        "chunk_retrieval, hierarchical, batch size 32, 128 queries, forward and backward": retrieval(
            "hierarchical", 32, 128, 4, 1, 32, 16, learns=True
        ),
        "hcam, batch size 64, one step": hcam(64, 1),
        "hcam, batch size 16, 128 steps, forward and backward": hcam(16, 128),
        "sink_attention, one step": sinks(1, 132),
        "sink_attention, 1,024 queries": sinks(1024, 1024),
        "nearest, numpy array of 100,000 rows of width 384": lambda: nearest(vector, table, 256),
    }


if __name__ == "__main__":
    if "--time" in sys.argv:
        print(json.dumps(time_cases(float(sys.argv[-1]))))
    else:
        import tyro

        main(tyro.cli(RevisionsBench, description=__doc__))
