"""Time and traffic per generated token if keys and values lie in other processes, against the full cache.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.elsewhere.speed

A Llama model with the shapes of SmolLM2-135M and random weights decodes in float32 after random keys and
values; to read prompts of 32,768 tokens would take long, and the content changes no time. Each process has
one thread. The caches take turns in one process: each decodes a few tokens, then the next one does. The first
table has wall-clock times and the CPU time of the model's process and of its slowest store. On a machine that
is busy with other work, only the CPU times tell how long the steps would take on free cores: the model waits
while the stores compute. The second table compares the model of `elsewhere.traffic` with the measurement. Its
constants are measured in the same run. Options: `--help`.
"""

from __future__ import annotations

import gc
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

import ray
import torch
import tyro
from jaxtyping import Int
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from scrubjay.experiments.bench import measure_seconds, take_turns, time_in_turns
from scrubjay.experiments.bench.decoding import SIZES
from scrubjay.experiments.ray_store import RayStore
from scrubjay.memory.context import CacheShape, ContextPolicy, PolicyCache, make
from scrubjay.memory.context.elsewhere import (
    ElsewherePolicy,
    Link,
    StoreProcess,
    count_break_even_tokens,
    count_traffic,
    estimate_seconds,
)
from scrubjay.memory.context.elsewhere.table import partial_attention
from scrubjay.memory.context.policies.dense import Scoring, causal_attention

FULL = "full"


@dataclass(frozen=True)
class ElsewhereBench:
    """Options of the benchmark."""

    contexts: tuple[int, ...] = (2048, 8192, 32768)
    """Tokens in the cache before the measured ones."""
    stores: tuple[int, ...] = (1, 2)
    """Numbers of store processes."""
    ray: int = 0
    """Number of stores in actors of Ray on this machine; 0 to omit Ray."""
    block: int = 256
    """Number of tokens that move together."""
    turn: int = 4
    """Number of tokens that one cache decodes before the next cache takes over."""
    rounds: int = 12
    """Number of turns of each cache."""
    size: str = "size of SmolLM2-135M"
    """Model size, a name of the benchmark `decoding`."""
    seed: int = 0
    """Seed of weights, keys and values."""


@dataclass(frozen=True)
class Turn:
    """Cost of one turn, per token."""

    num_stores: int
    """Number of stores of the cache."""
    seconds: float
    """Wall-clock time."""
    cpu_seconds: float
    """CPU time of the model's process."""
    store_seconds: float
    """CPU time of the store process that used most; 0 without store processes."""
    sent_bytes: float
    """Bytes of all messages to and from store processes, without blocks that became full."""


def main(bench: ElsewhereBench) -> None:
    """Run the benchmark and print its tables."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    model = LlamaForCausalLM(LlamaConfig(**SIZES[bench.size])).eval()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    print(
        f"{bench.size}, float32, blocks of {bench.block}, 1 thread per process; medians of {bench.rounds} "
        f"turns of {bench.turn} tokens; torch {torch.__version__}, {os.cpu_count()} CPUs, load {load}\n"
    )
    print(
        "| tokens | cache | ms/token | relative to full | min to max | CPU ms/token: model | slowest store | "
        "both, relative to full | bytes/token | by `count_traffic` |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    turns: dict[tuple[int, str], list[Turn]] = {}
    shape = None
    for tokens in bench.contexts:
        with open_caches(model, bench, tokens) as caches:
            results = measure(model, bench, caches)
            shape = next(iter(caches.values())).shape()
        for name, own in results.items():
            turns[tokens, name] = own
            print(format_row(tokens, name, own, results[FULL], shape), flush=True)
    assert shape is not None
    print_model(bench, shape, turns)


@contextmanager
def open_caches(
    model: LlamaForCausalLM, bench: ElsewhereBench, tokens: int
) -> Iterator[dict[str, PolicyCache]]:
    """Yield caches with `tokens` random keys and values, by name; afterwards their stores end."""
    with ExitStack() as stack:
        policies: dict[str, ContextPolicy] = {FULL: make("full")}
        for count in bench.stores:
            stores = tuple(stack.enter_context(StoreProcess()) for _ in range(count))
            policies[name_stores(count)] = ElsewherePolicy(stores, bench.block)
        if bench.ray:
            ray.init(num_cpus=bench.ray, include_dashboard=False, log_to_driver=False)
            stack.callback(ray.shutdown)
            actors = tuple(RayStore(num_cpus=1) for _ in range(bench.ray))
            policies[f"{bench.ray} stores of Ray"] = ElsewherePolicy(actors, bench.block)
        caches = {name: PolicyCache(policy, model) for name, policy in policies.items()}
        for cache in caches.values():
            fill(cache, model, tokens)
        yield caches
        caches.clear()
        gc.collect()


def name_stores(count: int) -> str:
    """Return the name of a cache in `count` processes."""
    return f"{count} process{'es' if count > 1 else ''}"


@torch.no_grad()
def fill(cache: PolicyCache, model: LlamaForCausalLM, tokens: int) -> None:
    """Put random keys and values into an empty cache."""
    config: Any = model.config
    heads, width = config.num_key_value_heads, config.hidden_size // config.num_attention_heads
    for layer in cache.attention_layers:
        keys, values = torch.randn(2, 1, heads, tokens, width, dtype=model.dtype)
        layer.memory.load_state_dict({"keys": keys, "values": values})
        layer.past_length = tokens
        layer.shape = CacheShape(
            1, 1, config.num_attention_heads, heads, width, width, model.dtype.itemsize, model.device.type
        )
    cache.count = tokens


def measure(
    model: LlamaForCausalLM, bench: ElsewhereBench, caches: Mapping[str, PolicyCache]
) -> dict[str, list[Turn]]:
    """Return the turns of each cache."""
    ids = torch.randint(0, model.config.vocab_size, (1, bench.turn))
    methods = {name: partial(decode, model, cache, ids) for name, cache in caches.items()}
    return take_turns(methods, bench.rounds)


@torch.no_grad()
def decode(model: LlamaForCausalLM, cache: PolicyCache, ids: Int[Tensor, "1 tokens"]) -> Turn:
    """Read tokens one by one; return the cost of one of them."""
    policy = cache.policy
    stores = policy.stores if isinstance(policy, ElsewherePolicy) else ()
    processes = [store for store in stores if isinstance(store, StoreProcess)]
    count = ids.shape[1]
    before = [(read_cpu_seconds(store), store.bytes_sent + store.bytes_received) for store in processes]
    began, cpu_began = time.perf_counter(), time.process_time()
    for token in ids.split(1, dim=1):
        model(token, cache=cache)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    after = [(read_cpu_seconds(store), store.bytes_sent + store.bytes_received) for store in processes]
    differences = [(end[0] - start[0], end[1] - start[1]) for start, end in zip(before, after, strict=True)]
    return Turn(
        len(stores),
        seconds / count,
        cpu_seconds / count,
        max((used for used, _ in differences), default=0.0) / count,
        sum(size for _, size in differences) / count,
    )


def read_cpu_seconds(store: StoreProcess) -> float:
    """Return the CPU time of a store process; 0 where the system does not say."""
    try:
        text = Path(f"/proc/{store.pid}/schedstat").read_text(encoding="ascii")
    except OSError:
        return 0.0
    return int(text.split()[0]) / 1e9


def format_row(tokens: int, name: str, turns: list[Turn], full: list[Turn], shape: CacheShape) -> str:
    """Return the row of a cache in the first table."""
    ratios = [own.seconds / base.seconds for own, base in zip(turns, full, strict=True)]
    model, store = (1000 * median(part) for part in list_cpu(turns))
    both = [sum(cpu) for cpu in zip(*list_cpu(turns), strict=True)]
    shares = [own / base.cpu_seconds for own, base in zip(both, full, strict=True)]
    cells = [
        f"{tokens:,}",
        name,
        f"{1000 * median(turn.seconds for turn in turns):.1f}",
        f"{median(ratios):.2f}",
        f"{min(ratios):.2f} to {max(ratios):.2f}",
        f"{model:.1f}",
        f"{store:.1f}" if store else "",
        f"{median(shares):.2f}" if store or name == FULL else "",
        f"{median(turn.sent_bytes for turn in turns):,.0f}" if store else "",
        f"{count_traffic(shape, turns[0].num_stores):,}" if turns[0].num_stores else "",
    ]
    return f"| {' | '.join(cells)} |"


def list_cpu(turns: list[Turn]) -> tuple[list[float], list[float]]:
    """Return the CPU times of the model's process and of the slowest store, of each turn."""
    return [turn.cpu_seconds for turn in turns], [turn.store_seconds for turn in turns]


def print_model(
    bench: ElsewhereBench, shape: CacheShape, turns: Mapping[tuple[int, str], list[Turn]]
) -> None:
    """Print the constants of the model, and its predictions beside the measurement."""
    for count in bench.stores:
        link = measure_link(bench, shape, count)
        print(
            f"\n{name_stores(count)}: round trip {1e6 * link.round_trip:.0f} us, messages "
            f"{link.bandwidth / 1e9:.2f} GB/s, the model reads {link.model_bandwidth / 1e9:.1f} GB/s, "
            f"a store {link.store_bandwidth / 1e9:.1f} GB/s\n"
        )
        print("| tokens | ms/token more than full: predicted | measured, CPU | measured, wall clock |")
        print("|---|---|---|---|")
        differences: list[tuple[int, float]] = []
        for tokens in bench.contexts:
            here, there = estimate_seconds(shape, count, link, tokens)
            own, full = turns[tokens, name_stores(count)], turns[tokens, FULL]
            pairs = list(zip(own, full, strict=True))
            cpu = median(a.cpu_seconds + a.store_seconds - b.cpu_seconds for a, b in pairs)
            wall = median(a.seconds - b.seconds for a, b in pairs)
            differences.append((tokens, cpu))
            print(f"| {tokens:,} | {1000 * (there - here):.1f} | {1000 * cpu:.1f} | {1000 * wall:.1f} |")
        break_even = count_break_even_tokens(shape, count, link)
        print(
            f"\nIt pays from {format_tokens(break_even)} on by the model, and from "
            f"{format_tokens(fit_break_even(differences))} on by a line through the measured CPU times."
        )


def format_tokens(tokens: float) -> str:
    """Return a length in words."""
    return "no length" if math.isinf(tokens) else f"{tokens:,.0f} tokens"


def fit_break_even(differences: list[tuple[int, float]]) -> float:
    """Return the length at which a line through (tokens, seconds more than full) is 0.

    The result is infinity if the line does not fall.
    """
    if len(differences) < 2:
        return math.inf
    slope, start = linear_regression(*zip(*differences, strict=True))
    return max(0.0, -start / slope) if slope < 0 else math.inf


@torch.no_grad()
def measure_link(bench: ElsewhereBench, shape: CacheShape, num_stores: int) -> Link:
    """Measure the constants of the model in CPU time: that of this process, and of its slowest store."""
    sizes = (2, shape.layers, 1, shape.key_heads, max(bench.contexts) // 4, shape.key_width)
    keys, values = torch.randn(sizes)  # of all layers, so that they do not stay in the processor's cache
    mask = torch.ones(1, keys.shape[4], dtype=torch.bool)
    query, scoring = torch.randn(1, shape.heads, 1, shape.key_width), Scoring(shape.key_width**-0.5)

    def read(attend: Callable[..., object]) -> None:
        for own_keys, own_values in zip(keys, values, strict=True):
            attend(query, own_keys, own_values, None, scoring)

    reads = {"model": partial(read, causal_attention), "store": partial(read, partial_attention)}
    times = time_in_turns(reads, bench.rounds)
    size = keys.nbytes + values.nbytes
    with ExitStack() as stack:
        stores = [stack.enter_context(StoreProcess()) for _ in range(num_stores)]

        def ask() -> None:
            for wait in [store.begin_attention(0, query, scoring) for store in stores]:
                wait()

        def send() -> None:
            stores[0].append(1, (keys[0], values[0], mask))
            stores[0].forget(1)

        # Before each request the model reads the weights of a layer, so the processor's cache is cold.
        weights = torch.randn(2**22)
        for store in stores:
            store.append(0, (keys[0, :, :, :1], values[0, :, :, :1], torch.ones(1, 1, dtype=torch.bool)))
        steps = {"ask": partial(measure_both, stores, ask), "rest": lambda: float(weights.sum())}
        asks = take_turns(steps, 20 * bench.rounds)["ask"]
        sends = take_turns({"send": partial(measure_both, stores, send)}, bench.rounds)["send"]
    sent_bytes = (keys[0].nbytes + values[0].nbytes) / median(sends)
    return Link(median(asks), sent_bytes, size / median(times["model"]), size / median(times["store"]))


def measure_both(stores: list[StoreProcess], run: Callable[[], object]) -> float:
    """Return the CPU seconds of one call: those of this process, and those of the slowest store."""
    before = [read_cpu_seconds(store) for store in stores]
    own = measure_seconds(run, time.process_time)
    return own + max(read_cpu_seconds(store) - start for store, start in zip(stores, before, strict=True))


if __name__ == "__main__":
    main(tyro.cli(ElsewhereBench, description=__doc__))
