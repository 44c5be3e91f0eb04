"""CPU time per generated token of a language model with each context policy and with transformers' cache.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.bench.decoding

Llama models of two sizes with random weights process a prompt and then decode token by token, with the
position ids and mask of `generate`, in float32 on one thread. The prompt has 2,048 tokens, and the policies
attend to 1,024 keys. Transformers' DynamicCache and `full` get a shorter prompt, so that they hold 1,024 keys
half-way through the timed tokens. The caches alternate in one process: each decodes a few tokens, then the
next one does. Each round starts from copies of the prefilled caches. Times are CPU times, because the machine
may be shared. In the row "sinks with sink_attention" the policy `sinks` decodes with the kernel of this name.
The kernel expects sinks and window as one set of keys, so it needs a copy of the keys for every token. Prints
a table. Options: `--help`.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers
import tyro
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from scrubjay.experiments.bench import take_turns
from scrubjay.memory import context
from scrubjay.memory.context.policies.base import LayerMemory
from scrubjay.memory.context.policies.sinks import SinksPolicy, StreamMemory

DYNAMIC_CACHE, KERNEL_SINKS = "DynamicCache", "sinks with sink_attention"
SIZES: dict[str, dict[str, Any]] = {
    "4 layers of width 256": {
        "vocab_size": 512,
        "hidden_size": 256,
        "intermediate_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
    "size of SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
}
"""Model sizes, all with heads of width 64."""


@dataclass(frozen=True)
class DecodingBench:
    """Options of the benchmark."""

    budget: int = 1024
    """Cached keys that a token attends to."""
    policies: tuple[str, ...] = ("full", "window", "sinks", "snapkv", "recycled", "h2o", "chunks")
    """Names of the context policies to measure."""
    tokens: tuple[int, ...] = (160, 32)
    """Number of decoded tokens per round, for each model size. Some policies do extra work at intervals: h2o
    evicts keys at every 16th token, snapkv evicts keys at every 32nd token, and recycled attends to all keys
    at every 10th token."""
    rounds: tuple[int, ...] = (7, 3)
    """Number of timed rounds, for each model size."""
    turn: int = 16
    """Number of tokens that one cache decodes before the next cache takes over."""
    seed: int = 0
    """Seed of weights and prompt."""


class KernelSinks(SinksPolicy):
    """Policy `sinks` without its specialized decode step: one token is processed like several tokens."""

    def build(self) -> LayerMemory:
        """Build an empty memory for one layer."""
        return KernelStream(self.num_tokens, self.num_sinks)


class KernelStream(StreamMemory):
    """`StreamMemory` without its specialized decode step."""

    attend = LayerMemory.attend


def main(bench: DecodingBench) -> None:
    """Run the benchmark and print its table."""
    torch.set_num_threads(1)
    torch.manual_seed(bench.seed)
    print(
        f"{bench.budget:,} keys, heads of 64, float32, 1 thread; medians of rounds; "
        f"torch {torch.__version__}, transformers {transformers.__version__}, {os.cpu_count()} CPUs\n"
    )
    print("| model | cache | CPU ms/token | relative to DynamicCache | min to max |")
    print("|---|---|---|---|---|")
    for (size, sizes), tokens, rounds in zip(SIZES.items(), bench.tokens, bench.rounds, strict=True):
        times = measure(LlamaForCausalLM(LlamaConfig(**sizes)).eval(), bench, tokens, rounds)
        for name, cache_times in times.items():
            ratios = [own / base for own, base in zip(cache_times, times[DYNAMIC_CACHE], strict=True)]
            print(
                f"| {size} | {name} | {1000 * statistics.median(cache_times):.2f} | "
                f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |",
                flush=True,
            )


@torch.no_grad()
def measure(
    model: LlamaForCausalLM, bench: DecodingBench, tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Return each cache's CPU seconds per token, one entry per round."""
    ids = torch.randint(0, model.config.vocab_size, (1, 2 * bench.budget + tokens))
    caches: dict[str, Any] = {}
    for name, (make, num_seen) in list_caches(model, bench, tokens).items():
        caches[name] = make()
        model.model(ids[:, :num_seen], cache=caches[name])
    times: dict[str, list[float]] = {name: [] for name in caches}
    turns = -(-tokens // bench.turn)
    order = list(caches)
    for _ in range(rounds):
        copies = {name: copy.deepcopy(caches[name]) for name in order}
        methods = {name: partial(decode_tokens, model, copies[name], ids, bench.turn) for name in order}
        for name, seconds in take_turns(methods, turns, warm_up=0).items():
            times[name].append(sum(seconds) / (turns * bench.turn))
        order = [*order[1:], order[0]]
    return times


def list_caches(
    model: LlamaForCausalLM, bench: DecodingBench, tokens: int
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Map the name of each cache to a function that builds the cache, and to the prompt length in tokens."""
    long_prompt, short_prompt = 2 * bench.budget, bench.budget - tokens // 2
    caches: dict[str, tuple[Callable[[], Any], int]] = {
        DYNAMIC_CACHE: (lambda: DynamicCache(config=model.config), short_prompt)
    }
    for name in bench.policies:
        options = {} if name == "full" else {"budget": bench.budget}
        policy = context.make(name, **options)
        caches[name] = (
            lambda policy=policy: context.PolicyCache(policy, model),
            short_prompt if name == "full" else long_prompt,
        )
    if "sinks" in bench.policies:
        caches[KERNEL_SINKS] = (lambda: context.PolicyCache(KernelSinks(bench.budget), model), long_prompt)
    return caches


def decode_tokens(model: LlamaForCausalLM, cache: Any, ids: Int[Tensor, "1 time"], tokens: int) -> float:
    """Process the next tokens one by one; return the CPU seconds."""
    num_seen = cache.get_seq_length()
    mask = torch.ones(1, num_seen + tokens, dtype=torch.long)
    positions = torch.arange(num_seen + tokens)[None]
    start = time.process_time()
    for place in range(num_seen, num_seen + tokens):
        current = slice(place, place + 1)
        model(
            ids[:, current],
            attention_mask=mask[:, : place + 1],
            position_ids=positions[:, current],
            cache=cache,
        )
    return time.process_time() - start


if __name__ == "__main__":
    main(tyro.cli(DecodingBench, description=__doc__))
