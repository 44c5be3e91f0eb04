"""The kernels of chunk retrieval, one after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import with_dense_rows
from scrubjay.kernels.retrieval.gpu.attend import attend_launch
from scrubjay.kernels.retrieval.gpu.gradients import (
    coarse_gradients,
    memory_gradient_launch,
    query_gradient_launch,
    readers_of,
)
from scrubjay.kernels.retrieval.gpu.select import select_launch
from scrubjay.kernels.retrieval.problem import Choice, Problem


def forward(problem: Problem, choice: Choice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the read-out, the chunks kept (-1 for none), their weights and the log normalisers."""
    problem = _ready(problem)
    query = problem.query
    batch, time, heads, _ = query.shape
    kept = (batch, time, problem.summary_query.shape[2], choice.top_k)
    out = query.new_empty(batch, time, heads, problem.values.shape[-1])
    chunks = query.new_empty(kept, dtype=torch.int32)
    weights = query.new_empty(kept, dtype=torch.float32)
    normalisers = query.new_empty(
        batch, time, heads, 1 if choice.joint else choice.top_k, dtype=torch.float32
    )
    select_launch(problem, choice, chunks).run()
    attend_launch(problem, choice, chunks, out, weights, normalisers).run()
    return out, chunks, weights, normalisers


def backward(
    problem: Problem,
    choice: Choice,
    grad: Tensor,
    out: Tensor,
    saved: tuple[Tensor, Tensor, Tensor],
    wanted: list[bool],
) -> list[Tensor]:
    """Return the gradients of the eight tensors of `problem`, an empty one where none is wanted.

    Args:
        problem: The op's arguments, as kernels take them.
        choice: How chunks are chosen and combined.
        grad: Of `out`.
        out: What was read.
        saved: Chunks kept, their weights, and log normalisers, as `forward` returned them.
        wanted: Which of the eight.
    """
    problem = _ready(problem)
    grad = grad.contiguous()
    want = Problem(*wanted)  # pyright: ignore[reportArgumentType]
    found: dict[str, Tensor] = {}
    found["query"] = problem.query.new_empty(problem.query.shape)
    chunks, weights, normalisers = saved
    delta = torch.empty_like(normalisers)
    query_gradient_launch(problem, choice, saved, out, grad, found["query"], delta).run()
    if want.keys or want.values or want.positions:
        found["keys"] = problem.keys.new_empty(problem.keys.shape)
        found["values"] = problem.values.new_empty(problem.values.shape)
        listed = readers_of(problem, chunks)
        memory_gradient_launch(
            problem, choice, saved, grad, delta, listed, found["keys"], found["values"]
        ).run()
    if problem.positions is not None and want.positions:
        both = found["keys"].sum((0, 1, 3), dtype=torch.float32) + found["values"].sum(
            (0, 1, 3), dtype=torch.float32
        )
        found["positions"] = both.to(problem.positions.dtype)
    if want.summaries or want.summary_query:
        found["summary_query"], found["summaries"] = coarse_gradients(problem, choice, chunks, weights, delta)
    return [
        found[name] if wanted_here else problem.query.new_empty(0)
        for name, wanted_here in zip(Problem._fields, wanted, strict=True)
    ]


def _ready(problem: Problem) -> Problem:
    """Return the tensors as kernels read them: widths contiguous, lengths int32, positions packed."""
    shared = problem.values is problem.keys
    ready = {
        name: with_dense_rows(tensor)
        for name, tensor in problem._asdict().items()
        if tensor is not None and name not in ("valid", "positions", "lengths")
    }
    if shared:
        ready["values"] = ready["keys"]
    positions, lengths = problem.positions, problem.lengths
    return problem._replace(
        **ready,
        positions=None if positions is None else positions.contiguous(),
        lengths=None
        if lengths is None
        else lengths.clamp(0, problem.keys.shape[2]).to(torch.int32).contiguous(),
    )
