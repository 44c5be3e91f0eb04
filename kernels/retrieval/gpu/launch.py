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
    score_gradients,
)
from scrubjay.kernels.retrieval.gpu.select import select_launch
from scrubjay.kernels.retrieval.gpu.tensors import Filled, Grads, ready
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading


def choose(problem: Problem, choice: Choice) -> Tensor:
    """Return the chunks kept, best first, -1 for none."""
    summary_query, summaries = with_dense_rows(problem.summary_query), with_dense_rows(problem.summaries)
    chunks = summary_query.new_empty(*summary_query.shape[:3], choice.top_k, dtype=torch.int32)
    problem = problem._replace(summary_query=summary_query, summaries=summaries)
    select_launch(problem, choice, chunks).run()
    return chunks


def forward(problem: Problem, choice: Choice) -> tuple[Tensor, Filled]:
    """Return the chunks kept (-1 for none), and what is read of them."""
    chunks = choose(problem, choice)
    return chunks, read(problem.reading(chunks), choice, problem)


def read(reading: Reading, choice: Choice, coarse: Problem | None = None) -> Filled:
    """Return what is read of chunks, by their scores or those computed from `coarse`."""
    reading = ready(reading)
    if coarse is not None:
        coarse = coarse._replace(
            summary_query=with_dense_rows(coarse.summary_query), summaries=with_dense_rows(coarse.summaries)
        )
    query, chunks = reading.query, reading.chunks
    batch, time, heads, _ = query.shape
    filled = Filled(
        out=query.new_empty(batch, time, heads, reading.values.shape[-1]),
        weights=query.new_empty(chunks.shape, dtype=torch.float32),
        normalisers=query.new_empty(
            batch, time, heads, 1 if choice.joint else chunks.shape[3], dtype=torch.float32
        ),
        lse=query.new_empty(batch, time, heads, dtype=torch.float32),
    )
    attend_launch(reading, choice, coarse, filled).run()
    return filled


def backward(
    reading: Reading,
    choice: Choice,
    read: Filled,
    grads: Grads,
    in_memory: bool,
    coarse: Problem | None = None,
) -> dict[str, Tensor]:
    """Return gradients by name: of the reading's tensors, of `coarse` in place of scores where it is given.

    Args:
        reading: The op's arguments, as kernels take them.
        choice: How chunks are chosen and combined.
        read: What forward wrote.
        grads: Of the read-out and its normaliser.
        in_memory: Whether those of keys, values and positions are wanted.
        coarse: Where scores were computed from; None if the reading has them.
    """
    reading = ready(reading)
    grads = Grads(grads.out.contiguous(), None if grads.lse is None else grads.lse.float().contiguous())
    query, keys, values = reading.query, reading.keys, reading.values
    found = {"query": query.new_empty(query.shape)}
    delta = torch.empty_like(read.normalisers)
    query_gradient_launch(reading, choice, read, grads, found["query"], delta).run()
    if in_memory:
        found["keys"], found["values"] = keys.new_empty(keys.shape), values.new_empty(values.shape)
        both = (found["keys"], found["values"])
        memory_gradient_launch(reading, choice, read, grads, delta, readers_of(reading), both).run()
        if reading.positions is not None:
            of_keys, of_values = (grad.sum((0, 1, 3), dtype=torch.float32) for grad in both)
            found["positions"] = (of_keys + of_values).to(reading.positions.dtype)
    if choice.joint:
        return found
    found["scores"] = score_gradients(choice, read.weights, delta, grads.lse)
    if coarse is not None:
        score_grad = found.pop("scores")
        found["summary_query"], found["summaries"] = coarse_gradients(
            coarse, choice, reading.chunks, score_grad
        )
    return found
