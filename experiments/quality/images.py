"""What an encoder of images sees of a ballet: which of the dancers moves, and where to.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.images --out runs/images

A labelled probe without a memory: of two frames that follow each other, one behind the other, an encoder is
to say the colour of the dancer that moves and its move, of which there are eight. It learns by cross-entropy
from ballets that are new all the time, and is tested on ballets of other seeds. The kinds of `ImageEncoder`
are trained alike. The same command goes on where it was stopped. Prints a table. Options: `--help`.
"""

from __future__ import annotations

import dataclasses
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

from scrubjay.agents.rl.encoders.image import ImageEncoder, ImageKind
from scrubjay.envs.ballet.env import COLOUR_AT, MOVE_AT, SLOT_SIZE, SLOTS, BalletVector
from scrubjay.envs.ballet.world import COLOUR_NAMES, NO_MOVE
from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.records import Records, header, markdown, settle
from scrubjay.experiments.runs.seeding import derive_seed


@dataclass(frozen=True, kw_only=True)
class ImagesProbe:
    """Sizes of the measurement."""

    kinds: tuple[ImageKind, ...] = ("convolution", "routing")
    """Encoders."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of weights and ballets."""
    dancers: int = 8
    """In a ballet."""
    dim: int = 64
    """What an image is encoded as."""
    batch: int = 32
    """Ballets at once."""
    updates: int = 1500
    """Gradient steps."""
    tests: int = 64
    """Batches in the test."""
    learning_rate: float = 1e-3
    """Adam's, falling to zero in a line."""
    out: Path = Path("runs/images")
    """Directory of the results."""
    quiet: bool = False
    """Show no progress."""


class Moment(NamedTuple):
    """Two frames of many ballets, and who moved in the later."""

    frames: UInt8[Tensor, "batch height width channels_twice"]
    colour: Int[Tensor, " batch"]
    move: Int[Tensor, " batch"]


def watch(rows: int, dancers: int, seed: int) -> Iterator[Moment]:
    """Yield the moments of ballets in which somebody moves, without end; every ballet is another."""
    idle = np.zeros(rows, dtype=np.int64)
    seen = BalletVector(rows, dancers, 1, "rgb", dtype="uint8")
    told = BalletVector(rows, dancers, 1, "symbolic")
    first: int | None = seed
    while True:
        # Of the same seed, so that one tells what is to be seen in the other.
        before, symbols = seen.reset(seed=first)[0]["image"], told.reset(seed=first)[0]
        first = None
        for _ in range(seen.choice_step):
            now, symbols = seen.step(idle)[0]["image"], told.step(idle)[0]
            slots = np.asarray(symbols)[:, : SLOTS * SLOT_SIZE].reshape(rows, SLOTS, SLOT_SIZE)
            moves = slots[..., MOVE_AT : MOVE_AT + NO_MOVE]
            mover = moves.any(axis=2)
            if mover.any():
                frames = torch.from_numpy(np.concatenate([before, now], axis=3))
                colour, move = slots[mover, COLOUR_AT:].argmax(1), moves[mover].argmax(1)
                yield Moment(frames, torch.from_numpy(colour), torch.from_numpy(move))
            before = now


class Probe(nn.Module):
    """An encoder, and a linear layer for each answer."""

    def __init__(self, kind: ImageKind, dim: int) -> None:
        super().__init__()
        self.encoder = ImageEncoder(Box(0, 255, (99, 99, 6), np.uint8), dim, kind)
        self.colour, self.move = nn.Linear(dim, len(COLOUR_NAMES)), nn.Linear(dim, NO_MOVE)

    def forward(self, frames: Tensor) -> tuple[Float[Tensor, "batch colours"], Float[Tensor, "batch moves"]]:
        """Return the logits of both answers."""
        encoded = self.encoder(frames)
        return self.colour(encoded), self.move(encoded)


def train(options: ImagesProbe, kind: ImageKind, seed: int) -> dict[str, object]:
    """Return how often a probe that was trained answers right, and what training took."""
    torch.manual_seed(seed)
    model = Probe(kind, options.dim)
    optimizer = torch.optim.Adam(model.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, options.updates)
    ballets = watch(options.batch, options.dancers, derive_seed(seed, "sampling"))
    spent = 0.0
    with ProgressDisplay(f"{kind} s{seed}", options.updates, enabled=not options.quiet) as display:
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
            spent += time.process_time() - began
            display.update(update + 1, {})
    right = torch.zeros(3, dtype=torch.long)
    ballets = watch(options.batch, options.dancers, derive_seed(seed, "evaluation"))
    for _, moment in zip(range(options.tests), ballets, strict=False):
        with torch.no_grad():
            colour, move = model(moment.frames)
        found = torch.stack([colour.argmax(1) == moment.colour, move.argmax(1) == moment.move])
        right += torch.cat([found.sum(1), found.all(0).sum()[None]])
    asked = options.tests * options.batch
    shares = {name: int(n) / asked for name, n in zip(("colour", "move", "both"), right, strict=True)}
    return {
        "kind": kind,
        "seed": seed,
        **shares,
        "asked": asked,
        "milliseconds": round(1e3 * spent / options.updates, 1),
        "parameters": sum(parameter.numel() for parameter in model.encoder.parameters()),
    }


def run(options: ImagesProbe, command: str) -> Path:
    """Train what has not been trained yet, write the table, and return its path."""
    free = ("kinds", "seeds", "out", "quiet")
    settle(options.out, {k: v for k, v in dataclasses.asdict(options).items() if k not in free})
    records = Records(options.out / "probes.jsonl", {"kind": str, "seed": int, "both": float})
    for seed in options.seeds:
        for kind in options.kinds:
            if not records.find(kind=kind, seed=seed):
                records.append(train(options, kind, seed))
    rows = []
    for kind in options.kinds:
        found = [row for seed in options.seeds for row in records.find(kind=kind, seed=seed)]
        shares = [
            f"{np.mean([row[name] for row in found]):.2f} ({', '.join(f'{row[name]:.2f}' for row in found)})"
            for name in ("colour", "move", "both")
        ]
        took = np.mean([row["milliseconds"] for row in found])
        rows.append([kind, *shares, f"{took:.0f}", f"{found[0]['parameters']:,}"])
    columns = ["images", "colour", "move", "both", "update, ms of the processor", "parameters"]
    table = options.out / "table.md"
    write_atomically(table, f"{header(command)}\n\n{markdown(columns, rows)}\n")
    return table


def main() -> int:
    """Train and print; return the exit code."""
    return run_probe("images", ImagesProbe, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
