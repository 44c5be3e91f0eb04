"""Products with indexed rows of a table, without copying the rows: the fast CPU path of sparse attention.

Every query n lists K runs of C rows in a table `[rows, width]`. Run k holds the rows `first[n, k] + c *
stride` for c = 0 to C - 1. Any two runs hold the same rows or share none. There are three products.
Each is linear in both factors, and its derivatives are again among the three. So derivatives of any order
exist.

- `dots(x, table)[n, k, c]`: the dot product of x[n] with each listed row
- `mix(weights, table)[n]`: the weighted sum of the listed rows
- `spread(weights, x)[row]`: the transpose of `mix`, with a fixed order of summation

Torch reads the rows in place: `sampled_addmm` for dots, `embedding_bag` for sums. A copy of the rows would
move three times as many bytes.
"""

from __future__ import annotations

import functools
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from scrubjay.kernels.derivatives import are_batched
from scrubjay.kernels.dispatch import any_dual, without_autocast

DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True, eq=False)
class Runs:
    """Indices of the rows that each query lists in a table of `rows` rows.

    Each query lists K runs. A run has `length` rows, and consecutive rows of a run are `stride` apart.
    """

    first: Int[Tensor, "N K"]
    length: int
    stride: int
    rows: int

    @functools.cached_property
    def indices(self) -> Int[Tensor, "N KC"]:
        """Indices of the K * C table rows that each query lists, one run after another."""
        # Indices are much of the memory traffic for narrow rows, so int32 is used where it fits.
        dtype = torch.int32 if self.rows < 2**31 else torch.int64
        step = torch.arange(self.length, dtype=dtype) * self.stride
        return (self.first.to(dtype)[:, :, None] + step).flatten(1)


def dots(x: Float[Tensor, "N D"], table: Float[Tensor, "R D"], runs: Runs) -> Float[Tensor, "N K C"]:
    """Return the dot product of each query with each row that the query lists.

    Both tensors must be on the CPU, in float32 or float64.
    """
    return _product(_Dots, x, table, runs)


def mix(weights: Float[Tensor, "N K C"], table: Float[Tensor, "R V"], runs: Runs) -> Float[Tensor, "N V"]:
    """Return for each query the weighted sum of the rows that the query lists.

    Both tensors must be on the CPU, in float32 or float64.
    """
    return _product(_Mix, weights, table, runs)


def _product(product: Any, left: Tensor, right: Tensor, runs: Runs) -> Tensor:
    # Autograd bookkeeping takes a third of a policy step, so skip it if no gradient is needed.
    needs_graph = torch.is_grad_enabled() and (left.requires_grad or right.requires_grad)
    return (product.apply if needs_graph or any_dual(left, right) else product.forward)(left, right, runs)


class _Product(torch.autograd.Function):
    """Base class of `_Dots`, `_Mix` and `_Spread`. These products are linear in both factors."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        left, right, ctx.runs = inputs
        ctx.save_for_backward(left, right)
        ctx.save_for_forward(left, right)


class _Dots(_Product):
    @staticmethod
    def forward(x: Tensor, table: Tensor, runs: Runs) -> Tensor:
        _silence_beta_warning()
        indices = runs.indices
        count, indices_per_query = indices.shape
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, indices.numel() + 1, indices_per_query, dtype=indices.dtype),
            indices.flatten(),
            x.new_zeros(indices.numel()),
            size=(count, runs.rows),
            check_invariants=False,
        )
        # Write in place; otherwise the pattern is copied first.
        torch.sparse.sampled_addmm(pattern, x, table.T, beta=0.0, out=pattern)
        return pattern.values().view(count, -1, runs.length)

    @staticmethod
    def compute_from_fetched(x: Tensor, table: Tensor, runs: Runs) -> Tensor:
        return (x[:, None] * _fetch_rows(table, runs)).sum(dim=2).reshape(len(x), -1, runs.length)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Any) -> Any:
        x, table = ctx.saved_tensors
        grad = grads[0]
        to_x = _apply_product(_Mix, grad, table, ctx.runs) if ctx.needs_input_grad[0] else None
        to_table = _apply_product(_Spread, grad, x, ctx.runs) if ctx.needs_input_grad[1] else None
        return to_x, to_table, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _product_rule(_Dots, ctx, tangents)


class _Mix(_Product):
    @staticmethod
    def forward(weights: Tensor, table: Tensor, runs: Runs) -> Tensor:
        per_sample = weights.reshape(runs.indices.shape)
        return functional.embedding_bag(runs.indices, table, per_sample_weights=per_sample, mode="sum")

    @staticmethod
    def compute_from_fetched(weights: Tensor, table: Tensor, runs: Runs) -> Tensor:
        return (weights.reshape(len(weights), -1, 1) * _fetch_rows(table, runs)).sum(dim=1)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Any) -> Any:
        weights, table = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_weights = _apply_product(_Dots, grad, table, ctx.runs) if ctx.needs_input_grad[0] else None
        to_table = _apply_product(_Spread, weights, grad, ctx.runs) if ctx.needs_input_grad[1] else None
        return to_weights, to_table, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _product_rule(_Mix, ctx, tangents)


class _Spread(_Product):
    @staticmethod
    def forward(weights: Tensor, x: Tensor, runs: Runs) -> Tensor:
        # Sorted by run, the queries that list a run are a bag, and each of its rows sums that bag of x's
        # rows.
        first, order = runs.first.flatten().sort(stable=True)
        distinct, counts = first.unique_consecutive(return_counts=True)
        offsets = (counts.cumsum(0) - counts) + len(order) * torch.arange(runs.length)[:, None]
        query = (order // runs.first.shape[1]).repeat(runs.length)
        per_sample = weights.reshape(-1, runs.length)[order].T.flatten()
        sums = functional.embedding_bag(
            query, x, offsets.flatten(), per_sample_weights=per_sample, mode="sum"
        )
        out = x.new_zeros(runs.rows, x.shape[1])
        rows = distinct + runs.stride * torch.arange(runs.length)[:, None]
        out[rows.flatten()] = sums
        return out

    @staticmethod
    def compute_from_fetched(weights: Tensor, x: Tensor, runs: Runs) -> Tensor:
        shares = (weights.reshape(len(weights), -1, 1) * x[:, None]).reshape(-1, x.shape[1])
        return shares.new_zeros(runs.rows, x.shape[1]).index_add(0, runs.indices.flatten(), shares)

    @staticmethod
    @without_autocast
    def backward(ctx: Any, *grads: Any) -> Any:
        weights, x = ctx.saved_tensors
        grad = grads[0].contiguous()
        to_weights = _apply_product(_Dots, x, grad, ctx.runs) if ctx.needs_input_grad[0] else None
        to_x = _apply_product(_Mix, weights, grad, ctx.runs) if ctx.needs_input_grad[1] else None
        return to_weights, to_x, None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        return _product_rule(_Spread, ctx, tangents)


def _apply_product(product: Any, left: Tensor, right: Tensor, runs: Runs) -> Tensor:
    """Return the product of `left` and `right`, as a step of a backward pass.

    `product` is `_Dots`, `_Mix` or `_Spread`. If vmap batches the gradients, the rows are copied, because
    the operations without a copy do not support vmap.
    """
    batched = are_batched(left, right)
    return product.compute_from_fetched(left, right, runs) if batched else product.apply(left, right, runs)


def _fetch_rows(table: Tensor, runs: Runs) -> Float[Tensor, "N KC D"]:
    return table.index_select(0, runs.indices.flatten()).reshape(*runs.indices.shape, table.shape[1])


def _product_rule(product: Any, ctx: Any, tangents: tuple) -> Tensor | None:
    left, right = ctx.saved_tensors
    terms = []
    if tangents[0] is not None:
        terms.append(product.apply(tangents[0].contiguous(), right, ctx.runs))
    if tangents[1] is not None:
        terms.append(product.apply(left, tangents[1].contiguous(), ctx.runs))
    return sum(terms[1:], terms[0]) if terms else None


@functools.cache
def _silence_beta_warning() -> None:
    """Trigger and silence torch's one-time warning that sparse CSR tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor([0, 0], [], [], size=(1, 1))
