"""Probe of image encoders on the ballet environment: the moving dancer and its move.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.images --out runs/images

A supervised probe without a memory. From two consecutive frames, stacked by channel, an encoder predicts the
color of the moving dancer and its move, one of eight. It is trained with cross-entropy on new ballets at
each step, and tested on ballets of other seeds. All types of `ImageEncoder` are trained in the same way. The
same command resumes an interrupted run. Prints a table. Options: `--help`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from gymnasium.spaces import Box
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.agents.rl.encoders.observation import ImageEncoder, ImageEncoderType
from scrubjay.envs.ballet.env import COLOUR_OFFSET, MOVE_OFFSET, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.envs.ballet.world import COLOUR_NAMES, NO_MOVE
from scrubjay.experiments.measurements import Records, markdown
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.quality.probe import prepare_out, run_probe, write_report
from scrubjay.experiments.runs.config import derive_seed


@dataclass(frozen=True, kw_only=True)
class ImagesProbe:
    """Options of the probe."""

    kinds: tuple[ImageEncoderType, ...] = ("convolution", "routing")
    """Types of image encoders to train."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Random seeds of weights and ballets."""
    dancers: int = 8
    """Dancers per ballet."""
    dim: int = 64
    """Width of the encoder's output."""
    batch: int = 32
    """Ballets per batch."""
    updates: int = 1500
    """Gradient steps."""
    tests: int = 64
    """Number of test batches."""
    learning_rate: float = 1e-3
    """Learning rate of Adam, with linear decay to zero."""
    out: Path = Path("runs/images")
    """Output directory."""
    quiet: bool = False
    """Hide the progress display."""


class BalletFrames(NamedTuple):
    """Two consecutive frames of a batch of ballets, with color and move of the moving dancer."""

    frames: UInt8[Tensor, "batch height width channels_twice"]
    colour: Int[Tensor, " batch"]
    move: Int[Tensor, " batch"]


def iterate_ballets(rows: int, dancers: int, seed: int) -> Iterator[BalletFrames]:
    """Yield batches without end. Each row has two frames of a ballet, between which a dancer moves."""
    idle = np.zeros(rows, dtype=np.int64)
    pixel_env = BalletVector(rows, dancers, 1, "rgb", dtype="uint8")
    symbolic_env = BalletVector(rows, dancers, 1, "symbolic")
    first: int | None = seed
    while True:
        # Both have the same seed, so the symbolic observations label the pixels.
        before, symbols = pixel_env.reset(seed=first)[0]["image"], symbolic_env.reset(seed=first)[0]
        first = None
        for _ in range(pixel_env.choice_step):
            now, symbols = pixel_env.step(idle)[0]["image"], symbolic_env.step(idle)[0]
            slots = np.asarray(symbols)[:, : SLOTS * SLOT_SIZE].reshape(rows, SLOTS, SLOT_SIZE)
            moves = slots[..., MOVE_OFFSET : MOVE_OFFSET + NO_MOVE]
            mover = moves.any(axis=2)
            if mover.any():
                frames = torch.from_numpy(np.concatenate([before, now], axis=3))
                colour, move = slots[mover, COLOUR_OFFSET:].argmax(1), moves[mover].argmax(1)
                yield BalletFrames(frames, torch.from_numpy(colour), torch.from_numpy(move))
            before = now


class ImageProbe(nn.Module):
    """Image encoder with two linear heads, one for the dancer's color and one for the dancer's move."""

    def __init__(self, kind: ImageEncoderType, dim: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(Box(0, 255, (99, 99, 6), np.uint8), dim, kind)
        self.colour, self.move = nn.Linear(dim, len(COLOUR_NAMES)), nn.Linear(dim, NO_MOVE)

    def forward(self, frames: Tensor) -> tuple[Float[Tensor, "batch colours"], Float[Tensor, "batch moves"]]:
        """Return the logits of color and move."""
        features = self.encoder(frames)
        return self.colour(features), self.move(features)


def train(options: ImagesProbe, kind: ImageEncoderType, seed: int) -> dict[str, object]:
    """Train a probe; return its test accuracies and training time."""
    torch.manual_seed(seed)
    model = ImageProbe(kind, options.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.updates)
    ballets = iterate_ballets(options.batch, options.dancers, derive_seed(seed, "sampling"))
    training_seconds = 0.0
    with ProgressDisplay(f"{kind} s{seed}", options.updates, show=not options.quiet) as display:
        for update in range(options.updates):
            moment = next(ballets)
            began = time.process_time()
            colour, move = model(moment.frames)
            loss = functional.cross_entropy(colour, moment.colour) + functional.cross_entropy(
                move, moment.move
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            training_seconds += time.process_time() - began
            display.update(update + 1, {})
    right = torch.zeros(3, dtype=torch.long)
    ballets = iterate_ballets(options.batch, options.dancers, derive_seed(seed, "evaluation"))
    for _, moment in zip(range(options.tests), ballets, strict=False):
        with torch.no_grad():
            colour, move = model(moment.frames)
        correct = torch.stack([colour.argmax(1) == moment.colour, move.argmax(1) == moment.move])
        right += torch.cat([correct.sum(1), correct.all(0).sum()[None]])
    num_tests = options.tests * options.batch
    shares = {name: int(n) / num_tests for name, n in zip(("colour", "move", "both"), right, strict=True)}
    return {
        "kind": kind,
        "seed": seed,
        **shares,
        "asked": num_tests,
        "milliseconds": round(1e3 * training_seconds / options.updates, 1),
        "parameters": sum(parameter.numel() for parameter in model.encoder.parameters()),
    }


def run(options: ImagesProbe, command: str) -> Path:
    """Train the missing probes, write the table, and return its path."""
    prepare_out(options, free=("kinds", "seeds"))
    records = Records(options.out / "probes.jsonl", {"kind": str, "seed": int, "both": float})
    for seed in options.seeds:
        for kind in options.kinds:
            if not records.find(kind=kind, seed=seed):
                records.append(train(options, kind, seed))
    rows = []
    for kind in options.kinds:
        runs = [row for seed in options.seeds for row in records.find(kind=kind, seed=seed)]
        shares = [
            f"{np.mean([row[name] for row in runs]):.2f} ({', '.join(f'{row[name]:.2f}' for row in runs)})"
            for name in ("colour", "move", "both")
        ]
        took = np.mean([row["milliseconds"] for row in runs])
        rows.append([kind, *shares, f"{took:.0f}", f"{runs[0]['parameters']:,}"])
    columns = ["images", "colour", "move", "both", "CPU ms per update", "parameters"]
    return write_report(options.out / "table.md", command, markdown(columns, rows))


if __name__ == "__main__":
    sys.exit(run_probe("images", ImagesProbe, __doc__, run))
