"""Environment states in a checkpoint: plain data, or else pickled data that only trusted runs may load."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np

from scrubjay.experiments.runs.serialization import to_plain

_log = logging.getLogger(__name__)

_PICKLED = "pickled env"


def pack_env_states(samplers: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the states `samplers` in a form that a checkpoint can store.

    Each sampler state contains an environment state, which is pickled if it is not plain data.
    """
    return [{**entry, "sampler": _pack(entry["sampler"])} for entry in samplers]


def unpack_env_states(samplers: Sequence[dict[str, Any]], name: str, trust: bool) -> list[dict[str, Any]]:
    """Return the sampler states that `pack_env_states` packed.

    Without `trust` nothing is unpickled. Environments with pickled states then start new episodes, and a
    warning names the environment `name`.
    """
    entries = [{**entry, "sampler": dict(entry["sampler"])} for entry in samplers]
    pickled_states = [entry["sampler"] for entry in entries if _PICKLED in entry["sampler"]]
    for state in pickled_states:
        payload = state.pop(_PICKLED)
        state["env"] = pickle.loads(payload.tobytes()) if trust and payload.size else None
    if any(state["env"] is None for state in pickled_states):
        _log.warning(
            "the state of %s is not plain data and is read only with --trust: resuming with new episodes, "
            "not exactly",
            name,
        )
    return entries


def _pack(state: dict[str, Any]) -> dict[str, Any]:
    try:
        to_plain(state["env"])
    except (TypeError, RecursionError):
        return {**state, "env": None, _PICKLED: np.frombuffer(_pickle(state["env"]), np.uint8)}
    return state


def _pickle(value: Any) -> bytes:
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001  (an environment may hold objects that cannot be pickled: windows, threads)
        return b""
