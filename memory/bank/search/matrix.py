"""Where a bank's embeddings are held while it is searched: in numpy's memory, or on a device of torch.

Rows of numbers with room to grow. What comes in and goes out are arrays of numpy;
`scrubjay.kernels.row_scores` scans the rows where they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float, Int

from scrubjay.kernels import row_scores

if TYPE_CHECKING:
    import torch


class Matrix:
    """Rows of `dimension` numbers in numpy's memory."""

    def __init__(self, dimension: int) -> None:
        self._rows = self._in(np.zeros((0, dimension), dtype=np.float32))

    def reserve(self, rows: int) -> None:
        """Make room for so many rows, at first zeros."""
        self._rows = with_room(self._rows, rows)

    def __setitem__(self, rows: slice | Int[np.ndarray, "R"], vectors: Float[np.ndarray, "R D"]) -> None:
        self._rows[self._in(rows)] = self._in(vectors)

    def keep(self, rows: Int[np.ndarray, "R"]) -> None:
        """Drop all rows but these, and the room."""
        self._rows = self._rows[self._in(rows)]

    def scores(self, query: Float[np.ndarray, "D"], rows: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the products of listed rows with a query."""
        return self._out(row_scores(self._in(query[None]), self._rows, self._in(rows)))[0]

    def first_scores(self, query: Float[np.ndarray, "D"], count: int) -> Float[np.ndarray, "count"]:
        """Return the products of the first rows with a query."""
        return self._out(row_scores(self._in(query[None]), self._rows[:count]))[0]

    def _in(self, array: Any) -> Any:
        return array

    def _out(self, rows: Any) -> np.ndarray:
        return rows


class DeviceMatrix(Matrix):
    """Rows of `dimension` numbers on a device of torch."""

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._device = device
        super().__init__(dimension)

    def reserve(self, rows: int) -> None:
        """Make room for so many rows, at first zeros."""
        import torch

        self._rows = with_room(self._rows, rows, functools.partial(torch.zeros, device=self._device))

    def _in(self, array: Any) -> Any:
        import torch

        return array if isinstance(array, slice) else torch.from_numpy(array).to(self._device)

    def _out(self, rows: torch.Tensor) -> np.ndarray:
        return rows.cpu().numpy()


def with_room(array: Any, rows: int, zeros: Callable[..., Any] = np.zeros) -> Any:
    """Return an array or tensor with so many rows at least, more than asked for if it must grow."""
    if rows <= len(array):
        return array
    grown = zeros((max(rows, len(array) * 3 // 2, 64), *array.shape[1:]), dtype=array.dtype)
    grown[: len(array)] = array
    return grown
