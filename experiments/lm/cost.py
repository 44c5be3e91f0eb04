"""Cost of generation under context policies, fitted to measured times, and the policy that limits allow.

scrubjay longcontext cost --prompt 8192 --generate 256 --latency 60 --memory 200
scrubjay longcontext cost --rows runs/speed256 runs/speed1024

The model is that of Kinetics (Sadhukhan et al. 2025, arXiv 2506.05333). Generation computes products with the
weights and with the keys and values that a token reads, and it moves their bytes. A time is the sum of both,
each multiplied by a constant of the machine. Differences: the published cost of a budget without overhead
adds what the ramp of the first tokens saves, where it must be subtracted; the weights are read once for each
generated token, which the paper leaves out because its batches are large.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from transformers import PreTrainedModel

from scrubjay.experiments.files import own_folder, read_object
from scrubjay.experiments.lm.options import FULL, RECOMPUTE, CostOptions, make_policy
from scrubjay.experiments.lm.reading import read
from scrubjay.experiments.lm.speed import ROW
from scrubjay.experiments.measurements import SETTINGS, Records, markdown, write_table
from scrubjay.experiments.resources import stopwatch
from scrubjay.memory import context
from scrubjay.memory.context.policies.base import CacheShape
from scrubjay.memory.context.policies.budget import BudgetPolicy
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.recycled import RecycledPolicy

PREFERENCE = ("full", "chunks", "recycled", "snapkv", "h2o", "sinks", "window")
"""Policies by how well they find facts in a long text, best first (`experiments/results/longcontext.md`)."""
_BUDGETS = tuple(2**power for power in range(6, 18))
_STEPS = 8


@dataclass(frozen=True)
class ModelSizes:
    """Sizes of a language model that determine its cost."""

    parameters: int
    """Number of weights that each token multiplies."""
    shape: CacheShape
    """Sizes of its key-value cache."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> ModelSizes:
        """Return the sizes of a model."""
        cache = context.PolicyCache(context.make(FULL), model)
        with torch.no_grad():
            model(torch.zeros(1, 1, dtype=torch.long, device=model.device), cache=cache)
        return cls(sum(weight.numel() for weight in model.parameters()), cache.shape())


@dataclass(frozen=True)
class Workload:
    """Tokens to read and to generate."""

    prompt: int
    """Number of tokens of the prompt."""
    new_tokens: int = 1
    """Number of tokens that each answer has."""
    answers: int = 1
    """Number of answers to the same prompt, generated together."""


class Cost(NamedTuple):
    """Cost of generating the answers of a workload."""

    compute: float
    """Floating-point operations."""
    memory: float
    """Bytes read."""


@dataclass(frozen=True)
class Machine:
    """Speed of a machine. A time is the sum of both products with a cost."""

    seconds_per_operation: float
    seconds_per_byte: float

    def seconds(self, cost: Cost) -> float:
        """Return the time of a cost, in seconds."""
        return self.seconds_per_operation * cost.compute + self.seconds_per_byte * cost.memory


class Row(NamedTuple):
    """Time per generated token under a policy after a context, measured or to predict."""

    policy: context.ContextPolicy
    context: int
    seconds: float


def count_keys(workload: Workload, budget: float | None = None) -> float:
    """Return how many keys the tokens of one answer read in total, with at most `budget` keys for a token.

    This is the continuous form of the paper, with a minus before the ramp.
    """
    prompt, count = workload.prompt, workload.new_tokens
    if budget is None or budget >= prompt + count:
        return prompt * count + count**2 / 2
    return budget * count - max(0.0, budget - prompt) ** 2 / 2


def generation_cost(sizes: ModelSizes, workload: Workload, policy: context.ContextPolicy) -> Cost:
    """Return the cost of generating the answers under a policy; reading the prompt is not included."""
    shape, answers, policy = sizes.shape, workload.answers, policy.inner
    full = count_keys(workload)
    # Bytes of the prompt are read once for all answers, if all tokens are read.
    full_transfers = workload.prompt * workload.new_tokens + answers * workload.new_tokens**2 / 2
    keys, transfers = full, full_transfers
    if isinstance(policy, BudgetPolicy):
        keys = count_keys(workload, policy.num_tokens)
        transfers = answers * keys
    if isinstance(policy, RecycledPolicy):
        keys += (full - keys) / policy.stride
        transfers += (full_transfers - transfers) / policy.stride
    key_products = 2 * shape.heads * shape.key_width * shape.layers
    value_products = 2 * shape.heads * shape.value_width * shape.layers
    key_bytes = shape.key_heads * shape.key_width * shape.itemsize * shape.layers
    compute = answers * (2 * sizes.parameters * workload.new_tokens + keys * (key_products + value_products))
    memory = workload.new_tokens * sizes.parameters * shape.itemsize + transfers * shape.token_bytes
    if isinstance(policy, ChunksPolicy):  # each token rates the mean key of each chunk
        compute += answers * full / policy.chunk_size * key_products
        memory += full_transfers / policy.chunk_size * key_bytes
    return Cost(compute, memory)


def predict_seconds(machine: Machine, sizes: ModelSizes, row: Row) -> float:
    """Return the predicted time of one generated token."""
    return machine.seconds(generation_cost(sizes, Workload(row.context), row.policy))


def fit_machine(sizes: ModelSizes, rows: Sequence[Row]) -> Machine:
    """Return the speed that predicts the measured rows with the least mean square relative error.

    Neither constant is negative. Raises ValueError without rows.
    """
    if not rows:
        raise ValueError("no measured times; measure some with scrubjay longcontext speed")
    costs = np.array([generation_cost(sizes, Workload(row.context), row.policy) for row in rows])
    features = costs / np.array([[row.seconds] for row in rows])
    scale = features.max(axis=0)
    best, least = np.zeros(2), np.inf
    for columns in ([0, 1], [0], [1]):  # with two constants, these are all cases of nonnegative least squares
        solution, *_ = np.linalg.lstsq(features[:, columns] / scale[columns], np.ones(len(rows)), rcond=None)
        constants = np.zeros(2)
        constants[columns] = solution / scale[columns]
        error = float(((features @ constants - 1) ** 2).sum())
        if (solution >= 0).all() and error < least:
            best, least = constants, error
    return Machine(*best.tolist())


def relative_errors(machine: Machine, sizes: ModelSizes, rows: Sequence[Row]) -> list[float]:
    """Return the relative error of the prediction of each row."""
    return [abs(predict_seconds(machine, sizes, row) / row.seconds - 1) for row in rows]


def run_cost(options: CostOptions, command: str) -> list[Path]:
    """Fit the machine, write table.md with predicted costs, print it, and return its path.

    Raises ValueError on invalid options.
    """
    model = options.start()
    sizes = ModelSizes.of(model)
    rows = [row for folder in options.rows for row in read_rows(folder, options)]
    if len(rows) == 1:
        raise ValueError("--rows has one measured time; fit and check need at least two: add a folder")
    if rows:
        machine = fit_machine(sizes, rows[::2])
        errors = relative_errors(machine, sizes, rows[1::2])
        about = (
            f"Two constants were fitted to {len(rows[::2])} measured times. They predict the other "
            f"{len(rows[1::2])} with a median error of {statistics.median(errors):.0%} and a largest error "
            f"of {max(errors):.0%}."
        )
    else:
        machine = fit_machine(sizes, measure_rows(model))
        about = "Two constants were fitted to two times that were measured now, under `full`."
    workload = Workload(options.prompt, options.generate, options.answers)
    candidates = rank_candidates(sizes, machine, workload)
    own_folder(options.out)
    sections = [about, describe_recommendation(candidates, options), tabulate(candidates, options)]
    path = write_table(options.out, command, *sections)
    print("\n\n".join(sections))
    return [path]


class Candidate(NamedTuple):
    """Policy with a budget, and its predicted cost."""

    name: str
    budget: int | None
    seconds: float
    """Time per generated token of each answer."""
    nbytes: int
    """Bytes of the caches of all answers at their end."""

    def is_within(self, options: CostOptions) -> bool:
        """Return True if both limits of the options hold."""
        slow = options.latency is not None and 1000 * self.seconds > options.latency
        large = options.memory is not None and self.nbytes / 2**20 > options.memory
        return not (slow or large)


def rank_candidates(sizes: ModelSizes, machine: Machine, workload: Workload) -> list[Candidate]:
    """Return all policies with budgets below the length of the text, the preferred ones first.

    A policy that is better at finding facts comes first, and then a larger budget.
    """
    length = workload.prompt + workload.new_tokens
    candidates = []
    for name in PREFERENCE:
        for budget in [None] if name == FULL else [b for b in reversed(_BUDGETS) if b < length]:
            try:
                policy = make_policy(name, budget)
            except ValueError:  # a budget that is too small for the policy
                continue
            cost = generation_cost(sizes, workload, policy)
            seconds = machine.seconds(cost) / workload.new_tokens
            nbytes = workload.answers * policy.nbytes(length, sizes.shape)
            candidates.append(Candidate(name, budget, seconds, nbytes))
    return candidates


def describe_recommendation(candidates: Sequence[Candidate], options: CostOptions) -> str:
    """Return a sentence with the first candidate within the limits, or with what the best one exceeds."""
    limits = [f"{options.latency:g} ms per token"] if options.latency is not None else []
    limits += [f"{options.memory:g} MiB"] if options.memory is not None else []
    if not limits:
        return "Without --latency and --memory, nothing is recommended."
    for one in candidates:
        if one.is_within(options):
            budget = "" if one.budget is None else f" with a budget of {one.budget:,}"
            return f"Within {' and '.join(limits)}: the policy `{one.name}`{budget}."
    fastest = min(candidates, key=lambda one: (one.seconds, one.nbytes))
    return (
        f"No policy is within {' and '.join(limits)}. The fastest is `{fastest.name}` with "
        f"{1000 * fastest.seconds:.1f} ms per token and {fastest.nbytes / 2**20:.1f} MiB."
    )


def tabulate(candidates: Sequence[Candidate], options: CostOptions) -> str:
    """Return a Markdown table of all candidates."""
    lines = [
        [
            one.name,
            "" if one.budget is None else f"{one.budget:,}",
            f"{1000 * one.seconds:.1f}",
            f"{one.nbytes / 2**20:.1f}",
            "yes" if one.is_within(options) else "no",
        ]
        for one in candidates
    ]
    return markdown(["policy", "budget", "predicted ms/token", "cache, MiB", "within the limits"], lines)


def read_rows(folder: Path, options: CostOptions) -> list[Row]:
    """Return the median CPU time per token of each context and method in a folder of `longcontext speed`.

    Raises ValueError if the folder holds none, or if it is of another model or data type.
    """
    if not (folder / SETTINGS).exists():
        raise ValueError(f"{folder} holds no results; name a folder of scrubjay longcontext speed")
    settings = read_object(folder / SETTINGS)
    for name in ("model", "dtype"):
        if settings.get(name) != getattr(options, name):
            raise ValueError(
                f"{folder} was measured with {name}={settings.get(name)!r}, not {getattr(options, name)!r}; "
                f"pass the same --{name}"
            )
    times: dict[tuple[int, str], list[float]] = {}
    for row in Records(folder / "turns.jsonl", ROW).rows:
        if row["method"] != RECOMPUTE:
            times.setdefault((row["context"], row["method"]), []).append(row["cpu"])
    if not times:
        raise ValueError(f"{folder} has no measured times yet; end its scrubjay longcontext speed first")
    budget = int(settings["budget"])
    return [
        Row(make_policy(name, budget), length, statistics.median(some))
        for (length, name), some in times.items()
    ]


@torch.no_grad()
def measure_rows(model: PreTrainedModel) -> list[Row]:
    """Measure the time per token under the full cache after a short and after a long context."""
    rows = []
    policy = context.make(FULL)
    cache = context.PolicyCache(policy, model)
    tokens = torch.randint(0, model.config.get_text_config(decoder=True).vocab_size, (2048,))
    for length in (64, 2048 - _STEPS):
        for _ in read(model, cache, tokens[cache.get_seq_length() : length], 512):
            pass
        seconds = []
        for token in tokens[:_STEPS].split(1):
            with stopwatch() as timer:
                next(read(model, cache, token, 1))
            seconds.append(timer.cpu)
        rows.append(Row(policy, length, statistics.median(seconds)))
    return rows
