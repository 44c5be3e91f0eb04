"""Metrics of a run: one JSON line and one set of TensorBoard scalars per update."""

from __future__ import annotations

import json
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from scrubjay.agents.rl.rollout import EpisodeStats
from scrubjay.experiments.files import check_numbers, open_to_append, parse_object, read_lines

WINDOW = 100
"""Number of episodes in the moving average of charts."""

_END_BYTES = 2**16
"""Bytes at the end of metrics.jsonl in which its last row is searched."""

Episode = tuple[float, int, float | None, dict[str, float]]
"""Return, length, success (None if unknown), and further measures of an episode."""

OnUpdate = Callable[[int, dict[str, float]], None]
"""Callback after each update, with the step and the row of metrics."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl, one per update; an incomplete last line is skipped.

    Raises ValueError if another line is damaged.
    """
    rows = [check_numbers(row) for row in read_lines(path)]
    for row in rows:
        _ = row["step"]
    return [dict(row) for row in rows]


def read_last_row(path: Path) -> dict[str, float] | None:
    """Return the last complete row of a metrics file that is still being written, or None if it has no row.

    Reads only the end of the file. Raises ValueError if the row is damaged.
    """
    try:
        with path.open("rb") as file:
            start = max(0, path.stat().st_size - _END_BYTES)
            file.seek(start)
            lines = file.read().splitlines(keepends=True)[1 if start else 0 :]
    except FileNotFoundError:
        return None
    whole = [line for line in lines[-2:] if line.endswith(b"\n")]
    return dict(check_numbers(parse_object(whole[-1].decode("utf-8", "replace"), path))) if whole else None


class EpisodeWindow:
    """Means over the last `WINDOW` finished episodes."""

    def __init__(self) -> None:
        self._episodes: deque[Episode] = deque(maxlen=WINDOW)

    def extend(self, episodes: Iterable[EpisodeStats]) -> None:
        """Add finished episodes, oldest first."""
        for episode in episodes:
            success = None if episode.success is None else float(episode.success)
            entry = (float(episode.episode_return), int(episode.length), success, dict(episode.measures))
            self._episodes.append(entry)

    def means(self) -> dict[str, float]:
        """Return the columns charts/*: mean return and length; if known, also mean success and measures.

        The column charts/episodes is the number of episodes in these means.
        """
        if not self._episodes:
            return {}
        count = len(self._episodes)
        means = {
            "charts/episodic_return": sum(episode[0] for episode in self._episodes) / count,
            "charts/episodic_length": sum(episode[1] for episode in self._episodes) / count,
        }
        successes = [episode[2] for episode in self._episodes if episode[2] is not None]
        if successes:
            means["charts/success"] = sum(successes) / len(successes)
        for name in self._episodes[-1][3]:
            means[f"charts/{name}"] = sum(episode[3].get(name, 0.0) for episode in self._episodes) / count
        return {**means, "charts/episodes": count}

    def get_state(self) -> list[Episode]:
        """Return the last finished episodes, at most `WINDOW`, as plain data."""
        return list(self._episodes)

    def set_state(self, state: Iterable[Episode]) -> None:
        """Restore the state that `get_state` returned."""
        self._episodes = deque(state, maxlen=WINDOW)


class MetricsLog:
    """Writer of rows to metrics.jsonl and TensorBoard.

    When a run resumes, rows that are later than its checkpoint are removed.
    """

    def __init__(self, path: Path, offset: int = 0, step: int = 0) -> None:
        from torch.utils.tensorboard import (
            SummaryWriter,  # importing takes half a second and only training needs it
        )

        self._file = open_to_append(path)
        try:
            self._check_length(path, offset)
        except ValueError:
            self._file.close()
            raise
        self._file.truncate(offset)
        if offset == 0:
            for events in path.parent.glob("events.out.tfevents.*"):
                events.unlink()
        # An untrusted folder may hold links. No link can have a name that ends at random.
        suffix = f".{secrets.token_hex(8)}"
        self._writer: Any = SummaryWriter(
            str(path.parent), purge_step=step + 1 if step else None, filename_suffix=suffix
        )

    def _check_length(self, path: Path, offset: int) -> None:
        """Raise ValueError unless a line of the file ends at `offset`."""
        if os.fstat(self._file.fileno()).st_size < offset:
            raise ValueError(
                f"{path} is shorter than the checkpoint says; restore the file from a copy or start a new run"
            )
        with path.open("rb") as file:
            file.seek(max(0, offset - 1))
            if offset and file.read(1) != b"\n":
                raise ValueError(
                    f"{path} has changed since the checkpoint; restore the file from a copy, or start a "
                    "new run"
                )

    def write(self, step: int, row: dict[str, float]) -> None:
        """Add one row of metrics."""
        self._file.write(json.dumps({"step": step, **row}) + "\n")
        self._file.flush()
        for name, value in row.items():
            self._writer.add_scalar(name, value, step)

    def sync(self) -> int:
        """Sync all rows to disk. Return the file size in bytes: the `offset` of a resumed `MetricsLog`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._writer.flush()
        return self._file.tell()

    def close(self) -> None:
        """Flush and close metrics.jsonl and the TensorBoard file."""
        self._file.close()
        self._writer.close()
