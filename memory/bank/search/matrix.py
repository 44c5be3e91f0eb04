"""Growable matrix of a bank's embeddings, held by NumPy or on a torch device.

Inputs and outputs are NumPy arrays; `scrubjay.kernels.row_scores` scans the rows on their device.
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
    """Matrix with rows of `dimension` numbers, held by NumPy."""

    def __init__(self, dimension: int) -> None:
        self._rows = self._to_device(np.zeros((0, dimension), dtype=np.float32))

    def reserve(self, rows: int) -> None:
        """Reserve memory for at least `rows` rows, filled with zeros."""
        self._rows = reserve_rows(self._rows, rows)

    def __setitem__(self, rows: slice | Int[np.ndarray, "R"], vectors: Float[np.ndarray, "R D"]) -> None:
        self._rows[self._to_device(rows)] = self._to_device(vectors)

    def keep(self, rows: Int[np.ndarray, "R"]) -> None:
        """Drop all rows that are not in `rows`, and release the reserved memory."""
        self._rows = self._rows[self._to_device(rows)]

    def scores(self, query: Float[np.ndarray, "D"], rows: Int[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
        """Return the dot products of these rows with a query."""
        return self._to_numpy(row_scores(self._to_device(query[None]), self._rows, self._to_device(rows)))[0]

    def first_scores(self, query: Float[np.ndarray, "D"], count: int) -> Float[np.ndarray, "count"]:
        """Return the dot products of the first `count` rows with a query."""
        return self._to_numpy(row_scores(self._to_device(query[None]), self._rows[:count]))[0]

    def _to_device(self, array: Any) -> Any:
        return array

    def _to_numpy(self, rows: Any) -> np.ndarray:
        return rows


class DeviceMatrix(Matrix):
    """Matrix with rows of `dimension` numbers, held on a torch device."""

    def __init__(self, dimension: int, device: torch.device) -> None:
        self._device = device
        super().__init__(dimension)

    def reserve(self, rows: int) -> None:
        """Reserve memory for at least `rows` rows, filled with zeros."""
        import torch

        self._rows = reserve_rows(self._rows, rows, functools.partial(torch.zeros, device=self._device))

    def _to_device(self, array: Any) -> Any:
        import torch

        return array if isinstance(array, slice) else torch.from_numpy(array).to(self._device)

    def _to_numpy(self, rows: torch.Tensor) -> np.ndarray:
        return rows.cpu().numpy()


def reserve_rows(array: Any, rows: int, zeros: Callable[..., Any] = np.zeros) -> Any:
    """Return the array or tensor with at least `rows` rows.

    If `array` is too short, it is copied to an array with at least 1.5 times as many rows, so that copies
    stay rare.
    """
    if rows <= len(array):
        return array
    larger = zeros((max(rows, len(array) * 3 // 2, 64), *array.shape[1:]), dtype=array.dtype)
    larger[: len(array)] = array
    return larger
