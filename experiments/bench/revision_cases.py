"""The cases that `revisions` times in one process: updates and acts of every memory, decoding, bank, kernels.

A commit is timed with its own file of cases, because names change. A commit without one needs an adapter
`revision_cases_COMMIT.py` in this folder: it gives the names of today to the package of the commit, and then
runs this file.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from scrubjay import memory
from scrubjay.kernels import chunk_retrieval, nearest, sink_attention

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
            yield f"{name}, 64 acts, batch size {batch_size}", lambda name=name, n=batch_size: _act(name, n)
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

    from scrubjay.experiments.bench.throughput import ScrubjayTrainer, ThroughputConfig
    from scrubjay.experiments.tasks.environments import EnvConfig

    gymnasium.logger.min_level = gymnasium.logger.ERROR
    config = ThroughputConfig(num_envs=16, segment_length=64, epochs=1, num_minibatches=1)
    envs = EnvConfig(config.env).make_vector(config.num_envs)
    trainer = ScrubjayTrainer(config, memory.make_config(name, dim=config.dim), envs)
    trainer.update()
    return trainer.learn


def _act(name: str, batch_size: int) -> Case:
    """Prepare 64 inference steps in the middle of episodes that began at different steps."""
    module = memory.make(name, dim=64)
    inputs = torch.randn(64, batch_size, 64)
    start = torch.zeros(batch_size, 256, dtype=torch.bool)
    start[torch.arange(batch_size), torch.arange(batch_size) % 128] = True
    with torch.no_grad():
        _, state = module(torch.randn(batch_size, 256, 64), module.initial_state(batch_size), start)
    stepper = module.stepper(state)

    def run() -> None:
        for x in inputs:
            stepper.step(x)

    return run


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
        copied: Any = copy.deepcopy(cache)
        for place in range(512, 528):
            model(ids[:, place : place + 1], position_ids=torch.tensor([[place]]), cache=copied)

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
    print(json.dumps(time_cases(sys.argv[1], float(sys.argv[2]))))
