"""Speed of the working tree compared with an earlier commit: each memory, decoding, the bank, and kernels.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.revisions --base COMMIT

Checks the earlier commit out into a temporary folder and starts processes of both versions in turns. Each
process runs the cases of its own version, because names change; a commit before these cases is timed with
those of today. A process runs a case several times and reports the 10th percentile of its CPU times. The
table has the minimum over the processes in milliseconds, because other work on the machine only adds time.
Beside the ratio of the minima stand the least and the largest ratio of two processes of one round. Ctrl-C
prints the table of the finished rounds. Options: `--help`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro

from scrubjay import memory
from scrubjay.kernels import chunk_retrieval, nearest, sink_attention


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
    cases = tree / "experiments" / "bench" / "revisions.py"
    if "def time_cases(part" not in cases.read_text(encoding="utf-8"):
        cases = Path(__file__)
    done = subprocess.run(
        [sys.executable, "-P", str(cases), "--time", bench.case, str(bench.least_seconds)],
        env=os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return json.loads(done.stdout)


Case = Callable[[], object]


def time_cases(part: str, least_seconds: float) -> dict[str, float]:
    """Return the 10th percentile of CPU milliseconds of each case whose name contains `part`.

    A case runs once unmeasured, and then at least five times and `least_seconds` seconds.
    """
    torch.set_num_threads(1)
    percentiles = {}
    for name, prepare in _cases():
        if part not in name:
            continue
        torch.manual_seed(0)
        run = prepare()
        run()
        durations: list[float] = []
        while sum(durations) < least_seconds or len(durations) < 5:
            begin = time.process_time()
            run()
            durations.append(time.process_time() - begin)
        percentiles[name] = 1e3 * sorted(durations)[len(durations) // 10]
    return percentiles


def _cases() -> Iterator[tuple[str, Callable[[], Case]]]:
    """Yield the name of each case and a function that prepares it."""
    for name in memory.list_memories():
        yield f"{name}, PPO update", lambda name=name: _update(name)
        for batch_size in (1, 64):
            yield (
                f"{name}, 64 acts, batch size {batch_size}",
                lambda name=name, n=batch_size: StepLoop(memory.make(name, dim=64), n, 64),
            )
    for name in ("full", "window", "sinks", "snapkv", "recycled", "h2o", "chunks"):
        yield f"decode 16 tokens, {name}", lambda name=name: _decode(name)
    yield "bank, add a record", lambda: _bank(writes=True)
    yield "bank of 1,000 records, search", lambda: _bank(writes=False)
    joint, hierarchical = (8, 8, 128, 128), (4, 1, 32, 16)
    yield "chunk_retrieval, joint, batch size 8, one step", lambda: _retrieve("joint", 8, 1, *joint)
    yield "chunk_retrieval, joint, 256 queries", lambda: _retrieve("joint", 1, 256, *joint)
    yield (
        "chunk_retrieval, joint, 256 queries, forward and backward",
        lambda: _retrieve("joint", 1, 256, *joint, learns=True),
    )
    yield (
        "chunk_retrieval, hierarchical, batch size 64, one step",
        lambda: _retrieve("hierarchical", 64, 1, *hierarchical),
    )
    yield (
        "chunk_retrieval, hierarchical, batch size 32, 128 queries",
        lambda: _retrieve("hierarchical", 32, 128, *hierarchical),
    )
    yield (
        "chunk_retrieval, hierarchical, batch size 32, 128 queries, forward and backward",
        lambda: _retrieve("hierarchical", 32, 128, *hierarchical, learns=True),
    )
    yield "sink_attention, one step", lambda: _sinks(1, 132)
    yield "sink_attention, 1,024 queries", lambda: _sinks(1024, 1024)
    yield "nearest, numpy array of 100,000 rows of width 384", _nearest


def _update(name: str) -> Case:
    """Prepare a PPO update of one pass and one minibatch on a segment of 16 environments x 64 steps."""
    import gymnasium
    from gymnasium.vector import AutoresetMode

    import scrubjay.envs  # noqa: F401  registers the environments
    from scrubjay.agents import PolicyConfig, PPOConfig, Sampler, Spaces

    gymnasium.logger.min_level = gymnasium.logger.ERROR
    envs: Any = gymnasium.make_vec(
        "scrubjay/RepeatPrevious-v0",
        num_envs=16,
        vectorization_mode="vector_entry_point",
        autoreset_mode=AutoresetMode.SAME_STEP,
    )
    make_spaces: Any = getattr(Spaces, "from_env", None) or Spaces.of  # pyright: ignore[reportAttributeAccessIssue]  # its name at 03307f0
    policy = PolicyConfig(memory=memory.make_config(name, dim=64)).build(make_spaces(envs))
    learner = PPOConfig(epochs=1, num_minibatches=1).build(policy)
    segment = Sampler(envs, policy, 64).collect()
    return lambda: learner.update(segment)


class StepLoop:
    """Sequential steps of a batch whose episodes began at different steps."""

    def __init__(self, module: memory.Memory, rows: int, steps: int) -> None:
        self.inputs = torch.randn(steps, rows, module.dim)
        start = torch.zeros(rows, 256, dtype=torch.bool)
        start[torch.arange(rows), torch.arange(rows) % 128] = True
        with torch.no_grad():
            _, state = module(torch.randn(rows, 256, module.dim), module.initial_state(rows), start)
        self.stepper = module.stepper(state)

    def __call__(self) -> None:
        """Take the steps."""
        for x in self.inputs:
            self.stepper.step(x)


def _decode(name: str) -> Case:
    """Prepare the decoding of 16 tokens after a prompt of 512, under a context policy with 256 keys."""
    import copy

    from transformers import LlamaConfig, LlamaForCausalLM

    from scrubjay.experiments.bench.decoding import SIZES
    from scrubjay.memory import context

    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**next(iter(SIZES.values())))).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, 528))
    options: dict[str, Any] = {} if name == "full" else {"budget": 256}
    cache = context.PolicyCache(context.make(name, **options), model)
    with torch.no_grad():
        model.model(ids[:, :512], cache=cache)

    @torch.no_grad()
    def run() -> None:
        clone: Any = copy.deepcopy(cache)
        for place in range(512, 528):
            model(ids[:, place : place + 1], position_ids=torch.tensor([[place]]), cache=clone)

    return run


def _bank(writes: bool) -> Case:
    """Prepare a write to a bank in a file, or a search by words."""
    folder = tempfile.TemporaryDirectory(prefix="scrubjay-")
    bank = memory.MemoryBank(Path(folder.name) / "bank.db")
    generator = torch.Generator().manual_seed(0)

    def text(words: int) -> str:
        return " ".join(f"w{i}" for i in torch.randint(0, 500, (words,), generator=generator).tolist())

    for _ in range(1000):
        bank.add(text(12))

    def run(_: object = folder) -> object:  # keeps the folder as long as the case
        return bank.add(text(12)) if writes else bank.search(text(4))

    return run


def _retrieve(
    combine: Any,
    rows: int,
    queries: int,
    heads: int,
    groups: int,
    chunks: int,
    length: int,
    learns: bool = False,
) -> Case:
    """Prepare a retrieval of the best four chunks.

    Args:
        combine: "joint" or "hierarchical".
        rows: batch size.
        queries: queries of a row.
        heads: attention heads.
        groups: heads of keys and values.
        chunks: chunks of a row.
        length: steps of a chunk.
        learns: run the backward pass, too.
    """
    query = torch.randn(rows, queries, heads, 64, requires_grad=learns)
    keys, values = (torch.randn(rows, chunks, length, groups, 64, requires_grad=learns) for _ in "kv")
    summaries, valid = keys.detach().mean(dim=2), torch.full((rows, queries), chunks)
    coarse = query[:, :, :groups].detach()

    def run() -> None:
        with torch.set_grad_enabled(learns):
            out = chunk_retrieval(
                query, keys, values, summaries, valid, top_k=4, combine=combine, summary_query=coarse
            )
            if learns:
                out.sum().backward()

    return run


def _sinks(queries: int, slots: int) -> Case:
    query, keys, values = (torch.randn(4, count, 8, 64) for count in (queries, slots, slots))
    step = torch.arange(slots).expand(4, slots)
    query_step = step[:, slots - queries :]
    return lambda: sink_attention(
        query, keys, values, query_step, step, torch.zeros_like(query_step), window=128, num_sinks=4
    )


def _nearest() -> Case:
    table, vector = torch.randn(100_000, 384).numpy(), torch.randn(1, 384).numpy()
    return lambda: nearest(vector, table, 256)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--time"]:
        print(json.dumps(time_cases(sys.argv[2], float(sys.argv[3]))))
    else:
        main(tyro.cli(RevisionsBench, description=__doc__))
