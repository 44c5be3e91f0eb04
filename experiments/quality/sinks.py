"""Attention sinks in trained window attention: heads that put unneeded attention on the first token.

    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.sinks --out runs/sinks
    python -P -m scrubjay.experiments.quality.sinks --memory hcam --out runs/sinks-hcam

A memory whose window covers a whole sequence is trained on MQAR as a sequence model, with softmax and with
sigmoid attention. `gtrxl` has gates that can drop the attention output. `hcam` always adds the output; its
chunks have the length of the sequence, so no chunk is read. A head has a sink if the attention to the first
token, averaged over the queries of a sequence, exceeds a threshold (Gu et al. 2025, arXiv 2410.10781, section
3). Weights of sigmoid attention need not sum to 1, so they are measured with and without division by their
sum. Untrained models are measured for comparison. The same command resumes an interrupted run. Prints a
table; all numbers are in `scores.jsonl`. Options: `--help`.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.files import CONFIG
from scrubjay.experiments.measurements import Records, markdown
from scrubjay.experiments.quality.probe import prepare_out, run_probe, write_report
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.config import derive_seed
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.experiments.statistics import format_spread
from scrubjay.experiments.tasks.sequences import MQAR
from scrubjay.experiments.training import resume, train
from scrubjay.memory import make_config
from scrubjay.memory.parts.window import Activation, WindowAttention
from scrubjay.memory.sequence import SequenceModel

_SCORES = {"activation": str, "seed": int, "trained": bool, "accuracy": float}
_MEASURES = ("attention", "share")
_LENGTH = MQAR().length
_MEMORIES: dict[str, dict[str, int]] = {
    "gtrxl": {"num_layers": 1, "window": _LENGTH},
    "hcam": {"chunk_size": _LENGTH, "num_chunks": 1, "top_k": 1},
}


@dataclass(frozen=True, kw_only=True)
class SinksBench:
    """Options of the benchmark."""

    memory: Literal["gtrxl", "hcam"] = "gtrxl"
    """Memory with window attention."""
    activations: tuple[Activation, ...] = ("softmax", "sigmoid")
    """Activation functions to compare. Each one turns attention scores into weights."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of the models."""
    total_steps: int = 1_000_000
    """Training tokens per model."""
    sequences: int = 256
    """Sequences on which attention is measured."""
    threshold: float = 0.3
    """Mean attention to the first token above which a head has a sink."""
    out: Path = Path("runs/sinks")
    """Output directory of the runs and the table."""
    quiet: bool = False
    """Hide the progress display."""


def task(bench: SinksBench, activation: Activation, seed: int) -> SequenceTaskConfig:
    """Return the experiment: MQAR of 8 pairs in 64 tokens, with all tokens in the window."""
    return SequenceTaskConfig(
        suite=MQAR(),
        memory=make_config(bench.memory, dim=64, activation=activation, **_MEMORIES[bench.memory]),
        total_steps=bench.total_steps,
        seed=seed,
        eval_items=(),
        eval_longer=(1,),
        eval_rows=512,
    )


@torch.no_grad()
def first_token_attention(
    model: SequenceModel, tokens: Int[Tensor, "batch time"]
) -> dict[str, Float[Tensor, "batch modules heads"]]:
    """Return each head's mean attention to the first token: the weight, and its share of the sum of all
    weights.

    The weights of a head may sum to less than 1.
    """
    measurements: dict[str, list[Tensor]] = {measure: [] for measure in _MEASURES}

    def look(module: WindowAttention, inputs: tuple[Any, ...], _: Tensor) -> None:
        weights = module.segment_weights(*inputs[:3])
        time = weights.shape[2]
        # At step t the first token is t steps back.
        first = weights.flip(3).diagonal(dim1=2, dim2=3)[..., :time]
        measurements["attention"].append(first.mean(dim=2))
        measurements["share"].append((first / weights.sum(dim=3)[..., : first.shape[2]]).mean(dim=2))

    modules = [module for module in model.modules() if isinstance(module, WindowAttention)]
    hooks = [module.register_forward_hook(look) for module in modules]
    try:
        model(tokens, model.initial_state(len(tokens)))
    finally:
        for hook in hooks:
            hook.remove()
    return {measure: torch.stack(each, dim=1) for measure, each in measurements.items()}


def score(bench: SinksBench, config: SequenceTaskConfig, model: SequenceModel) -> dict[str, float]:
    """Return sink rate, mean and maximum of attention to the first token, with and without normalization."""
    tokens, _ = config.suite.draw(bench.sequences, derive_seed(config.seed, "evaluation"), 0)
    scores = {}
    for measure, first in first_token_attention(model, tokens).items():
        scores[f"{measure}_rate"] = (first > bench.threshold).float().mean().item()
        scores[f"{measure}_mean"] = first.mean().item()
        scores[f"{measure}_most"] = first.mean(dim=0).amax().item()
    return scores


def run(bench: SinksBench, command: str) -> Path:
    """Train and measure the missing models, write the table, and return its path.

    Raises ValueError if the directory holds results of other settings, GracefulInterrupt after Ctrl-C.
    """
    prepare_out(bench, free=("seeds", "activations"))
    records = Records(bench.out / "scores.jsonl", _SCORES)
    for seed in bench.seeds:
        for activation in bench.activations:
            if not records.find(activation=activation, seed=seed):
                for row in _measure(bench, activation, seed):
                    records.append({"activation": activation, "seed": seed, **row})
    return write_report(bench.out / "sinks.md", command, *_report(bench, records))


def _measure(bench: SinksBench, activation: Activation, seed: int) -> list[dict[str, Any]]:
    folder = bench.out / f"{activation}-s{seed}"
    if (folder / CONFIG).exists():
        finished_run = resume(folder, progress=not bench.quiet)
    else:
        finished_run = train(task(bench, activation, seed), folder, progress=not bench.quiet)
    config = finished_run.config
    assert isinstance(config, SequenceTaskConfig)
    torch.manual_seed(seed)
    model = config.make_model()
    before = {"trained": False, "accuracy": config.success_without_memory, **score(bench, config, model)}
    model.load_state_dict(load_weights(finished_run.checkpoint))
    accuracy = config.accuracies(finished_run.result)[config.train_sizes]
    return [before, {"trained": True, "accuracy": accuracy, **score(bench, config, model)}]


def _report(bench: SinksBench, records: Records) -> tuple[str, str]:
    columns = [
        "activation",
        "accuracy",
        "sink rate",
        "mean attention to the first token",
        "maximum over heads",
        "sink rate, normalized",
        "mean attention, normalized",
    ]
    names = ["accuracy", "attention_rate", "attention_mean", "attention_most", "share_rate", "share_mean"]
    rows = []
    for activation in bench.activations:
        for is_trained in (False, True):
            results = records.find(activation=activation, trained=is_trained)
            results = [row for row in results if row["seed"] in bench.seeds]
            cells = [format_spread([row[name] for row in results]) for name in names]
            if not is_trained:
                cells[0] = ""
            rows.append([f"{activation}{'' if is_trained else ', untrained'}", *cells])
    uniform = sum(1 / count for count in range(1, _LENGTH + 1)) / _LENGTH
    text = (
        f"Memory {bench.memory}. Interquartile means over {len(bench.seeds)} seeds, with minimum and "
        f"maximum. MQAR of 8 pairs in {_LENGTH} tokens, {bench.total_steps:,} training tokens, 2 blocks of 4 "
        f"heads, {bench.sequences} sequences. A head has a sink if its mean attention to the first token "
        f"exceeds {bench.threshold}. Uniform attention gives the first token "
        f"{uniform:.3f}."
    )
    return text, markdown(columns, rows)


if __name__ == "__main__":
    sys.exit(run_probe("sinks", SinksBench, __doc__, run))
