"""How a checkpoint keeps the states of environments: as plain data, or pickled for who trusts the run."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from scrubjay.experiments.runs.plain import to_plain

_log = logging.getLogger(__name__)

_PICKLED = "pickled env"


def kept(samplers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return samplers' states for a checkpoint: an environment's that is not of plain data is pickled."""
    return [{**entry, "sampler": _kept(entry["sampler"])} for entry in samplers]


def taken(samplers: Sequence[dict[str, Any]], name: str, trust: bool) -> list[dict[str, Any]]:
    """Undo `kept`; without `trust` nothing is unpickled, and where something was, new episodes will begin.

    Of the environment's `name` that is said in one line.
    """
    found = [{**entry, "sampler": dict(entry["sampler"])} for entry in samplers]
    pickled = [entry["sampler"] for entry in found if _PICKLED in entry["sampler"]]
    for state in pickled:
        written = state.pop(_PICKLED)
        state["env"] = pickle.loads(written.tobytes()) if trust and written.size else None
    if any(state["env"] is None for state in pickled):
        _log.warning(
            "the state of %s is no plain data, so that it is read, if at all, only with --trust: "
            "resuming with fresh episodes, not exactly",
            name,
        )
    return found


def _kept(state: dict[str, Any]) -> dict[str, Any]:
    try:
        to_plain(state["env"])
    except (TypeError, RecursionError):
        return {**state, "env": None, _PICKLED: np.frombuffer(_pickled(state["env"]), np.uint8)}
    return state


def _pickled(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001  (an environment may hold what nothing can write: windows, threads)
        return b""
