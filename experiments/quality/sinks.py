"""Whether attention to a window learns a sink: the first token, on which heads spend what they do not need.

    export OMP_NUM_THREADS=1
    python -P -m scrubjay.experiments.quality.sinks --out runs/sinks
    python -P -m scrubjay.experiments.quality.sinks --memory hcam --out runs/sinks-hcam

A memory whose window is a whole sequence learns MQAR as a sequence model, with a softmax and with a sigmoid
for each score: `gtrxl`, whose gates may leave out what was read, or `hcam`, which adds it, and whose chunks
are as long as the sequence, so that nothing is read of them. A head has a sink where the attention to the
first token, averaged over a sequence's queries, exceeds a threshold (Gu et al. 2025, arXiv 2410.10781,
section 3); sigmoids are measured as they are and as shares of their sum. Untrained models stand beside. The
same command goes on where it was stopped. Prints a table; every model's numbers are in `scores.jsonl`.
Options: `--help`.
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from scrubjay.experiments.kinds.sequence import SequenceTaskConfig
from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.run import Run
from scrubjay.experiments.runs.checkpoint import load_weights
from scrubjay.experiments.runs.directory import CONFIG, write_atomically
from scrubjay.experiments.runs.records import Records, header, markdown, settle
from scrubjay.experiments.runs.seeding import derive_seed
from scrubjay.experiments.runs.statistics import spread_in_words
from scrubjay.experiments.tasks.suites import MQAR
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
    """Sizes of the measurement."""

    memory: Literal["gtrxl", "hcam"] = "gtrxl"
    """What attends to a window."""
    activations: tuple[Activation, ...] = ("softmax", "sigmoid")
    """What makes weights of scores."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the models."""
    total_steps: int = 1_000_000
    """Tokens that each learns from."""
    sequences: int = 256
    """On which attention is measured."""
    threshold: float = 0.3
    """The mean attention to the first token beyond which a head has a sink."""
    out: Path = Path("runs/sinks")
    """Directory of the runs and the table."""
    quiet: bool = False
    """Show no progress."""


def task(bench: SinksBench, activation: Activation, seed: int) -> SequenceTaskConfig:
    """Return the experiment: MQAR of 8 pairs in 64 tokens, all of which are in the window."""
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
def to_first(
    model: SequenceModel, tokens: Int[Tensor, "batch time"]
) -> dict[str, Float[Tensor, "batch modules heads"]]:
    """Return each head's attention to the first token, averaged over queries: as it is, and of its sum."""
    found: dict[str, list[Tensor]] = {measure: [] for measure in _MEASURES}

    def look(module: WindowAttention, given: tuple[Any, ...], _: Tensor) -> None:
        weights = module.attended(*given[:3])
        time = weights.shape[2]
        # Before step t the first token is t back.
        first = weights.flip(3).diagonal(dim1=2, dim2=3)[..., :time]
        found["attention"].append(first.mean(dim=2))
        found["share"].append((first / weights.sum(dim=3)[..., : first.shape[2]]).mean(dim=2))

    modules = [module for module in model.modules() if isinstance(module, WindowAttention)]
    hooks = [module.register_forward_hook(look) for module in modules]
    try:
        model(tokens, model.initial_state(len(tokens)))
    finally:
        for hook in hooks:
            hook.remove()
    return {measure: torch.stack(each, dim=1) for measure, each in found.items()}


def score(bench: SinksBench, config: SequenceTaskConfig, model: SequenceModel) -> dict[str, float]:
    """Return the sink rates of a model and its heads' mean attention to the first token, by measure."""
    tokens, _ = config.suite.draw(bench.sequences, derive_seed(config.seed, "evaluation"), 0)
    scores = {}
    for measure, first in to_first(model, tokens).items():
        scores[f"{measure}_rate"] = (first > bench.threshold).float().mean().item()
        scores[f"{measure}_mean"] = first.mean().item()
        scores[f"{measure}_most"] = first.mean(dim=0).amax().item()
    return scores


def run(bench: SinksBench, command: str) -> Path:
    """Train what is missing, measure, and return the table's file.

    Raises ValueError if the directory holds results of other settings, Interrupted after Ctrl-C.
    """
    kept = {"out", "quiet", "seeds", "activations"}
    settle(bench.out, {k: v for k, v in dataclasses.asdict(bench).items() if k not in kept})
    records = Records(bench.out / "scores.jsonl", _SCORES)
    for seed in bench.seeds:
        for activation in bench.activations:
            if not records.find(activation=activation, seed=seed):
                for row in _measured(bench, activation, seed):
                    records.append({"activation": activation, "seed": seed, **row})
    path = bench.out / "sinks.md"
    write_atomically(path, _report(bench, records, command))
    return path


def _measured(bench: SinksBench, activation: Activation, seed: int) -> list[dict[str, Any]]:
    folder = bench.out / f"{activation}-s{seed}"
    if (folder / CONFIG).exists():
        trained = resume(folder, progress=not bench.quiet)
    else:
        trained = train(task(bench, activation, seed), folder, progress=not bench.quiet)
    config = trained.config
    assert isinstance(config, SequenceTaskConfig)
    torch.manual_seed(seed)
    model = config.make_model()
    before = {"trained": False, "accuracy": config.success_without_memory, **score(bench, config, model)}
    model.load_state_dict(load_weights(trained.checkpoint))
    return [before, {"trained": True, "accuracy": _accuracy(trained), **score(bench, config, model)}]


def _accuracy(trained: Run) -> float:
    config = trained.config
    assert isinstance(config, SequenceTaskConfig)
    return config.accuracies(trained.result)[config.trained]


def _report(bench: SinksBench, records: Records, command: str) -> str:
    columns = [
        "activation",
        "questions answered right",
        "sink rate",
        "mean attention to the first token",
        "of the head that attends to it most",
        "sink rate of shares",
        "mean share",
    ]
    names = ["accuracy", "attention_rate", "attention_mean", "attention_most", "share_rate", "share_mean"]
    rows = []
    for activation in bench.activations:
        for trained in (False, True):
            found = records.find(activation=activation, trained=trained)
            found = [row for row in found if row["seed"] in bench.seeds]
            cells = [spread_in_words([row[name] for row in found]) for name in names]
            if not trained:
                cells[0] = ""
            rows.append([f"{activation}{'' if trained else ', untrained'}", *cells])
    uniform = sum(1 / count for count in range(1, _LENGTH + 1)) / _LENGTH
    text = (
        f"Memory {bench.memory}. Interquartile means over {len(bench.seeds)} seeds, with the least and the "
        f"most. MQAR of 8 pairs in {_LENGTH} tokens, {bench.total_steps:,} tokens of training, 2 blocks of 4 "
        f"heads, {bench.sequences} sequences. A head has a sink where its mean attention to the first token "
        f"exceeds {bench.threshold}. Who attends to all that is in sight alike gives the first token "
        f"{uniform:.3f}."
    )
    return "\n\n".join([header(command), text, markdown(columns, rows)]) + "\n"


def main() -> int:
    """Train, measure and print; return the exit code."""
    return run_probe("sinks", SinksBench, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
