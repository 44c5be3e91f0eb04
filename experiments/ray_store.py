"""Store of keys and values in an actor of Ray, on any node of a cluster.

    from scrubjay.experiments import RayStore
    from scrubjay.memory.context import PolicyCache
    from scrubjay.memory.context.elsewhere import ElsewherePolicy

    stores = tuple(RayStore(num_cpus=1) for _ in range(2))
    cache = PolicyCache(ElsewherePolicy(stores), model)

Keys and values pass through Ray's object store, from the node of the model to that of the actor. Ray sends
the queries and outputs of one token with the call, and larger ones also through the object store. `ray.init`
must have been called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from jaxtyping import Float, Int
from ray.exceptions import RayActorError
from torch import Tensor

from scrubjay.kernels.normalisers import Part
from scrubjay.memory.context.elsewhere.stores import TableStore, check_no_gradient
from scrubjay.memory.context.elsewhere.table import Columns
from scrubjay.memory.context.policies.dense import Scoring


class _Actor:
    """Store in the process of the actor."""

    def __init__(self) -> None:
        self._store = TableStore()

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the store."""
        return getattr(self._store, method)(*arguments)

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table."""
        self._store.append(name, new)

    def attend(self, name: int, query: Tensor, scale: float, cap: float | None) -> Part:
        """Return the part of the attention over a table."""
        return self._store.begin_attention(name, query, Scoring(scale, cap))()

    def get_node(self) -> str:
        """Return the id of the node on which the actor runs."""
        return ray.get_runtime_context().get_node_id()


class RayStore:
    """Store in an actor of Ray, which ends with this object.

    Args:
        options: Options of `ray.remote`, such as `num_cpus` (default 1) and `resources`.
    """

    def __init__(self, **options: Any) -> None:
        settings: Any = {"num_cpus": 1} | options
        actor: Any = ray.remote(**settings)(_Actor)
        self._actor = actor.remote()
        self._forgotten_names: list[int] = []

    @property
    def node(self) -> str:
        """Id of the node on which the store lives."""
        return _get(self._actor.get_node.remote())

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table; the first call creates it."""
        check_no_gradient(*new)
        while self._forgotten_names:
            self._call("forget", self._forgotten_names.pop())
        _get(self._actor.append.remote(name, ray.put(tuple(part.detach().cpu() for part in new))))

    def begin_attention(
        self, name: int, query: Float[Tensor, "batch heads length width"], scoring: Scoring
    ) -> Callable[[], Part]:
        """Send the queries; return the function that waits for the part of the attention.

        Args:
            name: Table.
            query: Queries of the new tokens.
            scoring: The model's scale and soft cap.
        """
        check_no_gradient(query)
        reply = self._actor.attend.remote(name, query.detach().cpu(), scoring.scale, scoring.cap)

        def wait() -> Part:
            output, normaliser = _get(reply)
            return output.to(query.device), normaliser.to(query.device)

        return wait

    def read(self, name: int, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1` of a table.

        Args:
            name: Table.
            first: Index of the first token.
            last: Index after the last token.
        """
        return self._call("read", name, first, last)

    def truncate(self, name: int, columns: int) -> None:
        """Keep only the first tokens of a table."""
        self._call("truncate", name, columns)

    def reorder(self, name: int, rows: Int[Tensor, " selected"]) -> None:
        """Select batch rows of a table."""
        self._call("reorder", name, rows)

    def copy(self, name: int, new_name: int) -> None:
        """Copy a table."""
        self._call("copy", name, new_name)

    def forget(self, name: int) -> None:
        """Delete a table, if it exists, before tokens are added to another one."""
        # The garbage collector may call this inside of a function of Ray.
        self._forgotten_names.append(name)

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        return self._call("nbytes", name)

    def _call(self, method: str, *arguments: Any) -> Any:
        return _get(self._actor.call.remote(method, *arguments))


def _get(reply: Any) -> Any:
    """Return the value of a reply. Raises RuntimeError if the actor has ended."""
    try:
        return ray.get(reply)
    except RayActorError as error:
        raise RuntimeError(
            "the actor of a store has ended, and its keys and values are lost; begin with a new store and a "
            f"new cache: {error}"
        ) from error
