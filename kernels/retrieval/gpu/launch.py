"""Forward and backward pass of chunk retrieval by Triton kernels, and configurations that tests compile."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch, ensure_dense_rows
from scrubjay.kernels.retrieval.gpu.attend import attend_launch
from scrubjay.kernels.retrieval.gpu.gradients import (
    coarse_gradients,
    list_readers,
    memory_gradient_launch,
    query_gradient_launch,
    score_gradients,
)
from scrubjay.kernels.retrieval.gpu.select import select_launch
from scrubjay.kernels.retrieval.gpu.tiles import AttentionOutputs, OutputGrads, pack_reading
from scrubjay.kernels.retrieval.problem import Choice, Problem, Reading


def choose(problem: Problem, choice: Choice) -> Tensor:
    """Return the selected chunks, best first; -1 for unused slots."""
    summary_query, summaries = ensure_dense_rows(problem.summary_query), ensure_dense_rows(problem.summaries)
    chunks = summary_query.new_empty(*summary_query.shape[:3], choice.top_k, dtype=torch.int32)
    problem = problem._replace(summary_query=summary_query, summaries=summaries)
    select_launch(problem, choice, chunks).run()
    return chunks


def forward(problem: Problem, choice: Choice) -> tuple[Tensor, AttentionOutputs]:
    """Return the selected chunks (-1 for unused slots) and the attention outputs."""
    chunks = choose(problem, choice)
    return chunks, run_attention(problem.reading(chunks), choice, problem)


def run_attention(reading: Reading, choice: Choice, score_source: Problem | None = None) -> AttentionOutputs:
    """Attend to the chunks by their scores, or by scores computed from `score_source`."""
    reading = pack_reading(reading)
    if score_source is not None:
        score_source = score_source._replace(
            summary_query=ensure_dense_rows(score_source.summary_query),
            summaries=ensure_dense_rows(score_source.summaries),
        )
    query, chunks = reading.query, reading.chunks
    batch, time, heads, _ = query.shape
    outputs = AttentionOutputs(
        out=query.new_empty(batch, time, heads, reading.values.shape[-1]),
        weights=query.new_empty(chunks.shape, dtype=torch.float32),
        normalisers=query.new_empty(
            batch, time, heads, 1 if choice.joint else chunks.shape[3], dtype=torch.float32
        ),
        lse=query.new_empty(batch, time, heads, dtype=torch.float32),
    )
    attend_launch(reading, choice, score_source, outputs).run()
    return outputs


def backward(
    reading: Reading,
    choice: Choice,
    outputs: AttentionOutputs,
    output_grads: OutputGrads,
    needs_memory_grads: bool,
    score_source: Problem | None = None,
) -> dict[str, Tensor]:
    """Return the gradients of the tensors by name.

    With `score_source`, its summary queries and summaries get gradients instead of the scores.

    Args:
        reading: Inputs of the op.
        choice: Options of selection and attention.
        outputs: Outputs of the forward pass.
        output_grads: Gradients of the read-out and its log normaliser.
        needs_memory_grads: Compute the gradients of keys, values and positions.
        score_source: Queries and summaries that scores were computed from; None if the reading has scores.
    """
    reading = pack_reading(reading)
    output_grads = OutputGrads(
        output_grads.out.contiguous(),
        None if output_grads.lse is None else output_grads.lse.float().contiguous(),
    )
    query, keys, values = reading.query, reading.keys, reading.values
    input_grads = {"query": query.new_empty(query.shape)}
    delta = torch.empty_like(outputs.normalisers)
    query_gradient_launch(reading, choice, outputs, output_grads, input_grads["query"], delta).run()
    if needs_memory_grads:
        input_grads["keys"], input_grads["values"] = (
            keys.new_empty(keys.shape),
            values.new_empty(values.shape),
        )
        memory_grads = (input_grads["keys"], input_grads["values"])
        memory_gradient_launch(
            reading, choice, outputs, output_grads, delta, list_readers(reading), memory_grads
        ).run()
        if reading.positions is not None:
            keys_sum, values_sum = (grad.sum((0, 1, 3), dtype=torch.float32) for grad in memory_grads)
            input_grads["positions"] = (keys_sum + values_sum).to(reading.positions.dtype)
    if choice.joint:
        return input_grads
    input_grads["scores"] = score_gradients(choice, outputs.weights, delta, output_grads.lse)
    if score_source is not None:
        score_grad = input_grads.pop("scores")
        input_grads["summary_query"], input_grads["summaries"] = coarse_gradients(
            score_source, choice, reading.chunks, score_grad
        )
    return input_grads


def configurations() -> dict[str, Launch]:
    """Return example launches by name. They hold meta tensors, so they compile without a GPU."""
    # 16 query heads on 2 key heads with chunks of 64, selected per key head; and HCAM's shape, 4 heads with
    # one selection.
    per_key_head, one_selection = (16, 2, 2, 64), (4, 1, 1, 16)
    launches = {}
    for dtype, width, shape, joint in (
        (torch.bfloat16, 64, per_key_head, True),
        (torch.bfloat16, 128, per_key_head, True),
        (torch.float16, 64, one_selection, False),
        (torch.float32, 64, per_key_head, True),
    ):
        combine = "joint" if joint else "hierarchical"
        name = f"{str(dtype).removeprefix('torch.')}, D={width}, {combine}, C={shape[3]}"
        for kernel, launch in _launches(dtype, width, shape, joint).items():
            launches[f"{kernel}: {name}"] = launch
    return launches


def _launches(
    dtype: torch.dtype, width: int, shape: tuple[int, int, int, int], joint: bool
) -> dict[str, Launch]:
    heads, groups, coarse, length = shape
    batch, time, num_chunks = 2, 128, 256

    def empty(*sizes: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(*sizes, dtype=dtype, device="meta")

    choice = Choice(4, joint, width**-0.5, width**-0.5, 0, 0)
    keys = empty(batch, num_chunks, length, groups, width)
    values = empty(*keys.shape) if joint else keys
    chunks = empty(batch, time, coarse, choice.top_k, dtype=torch.int32)
    problem = Problem(
        empty(batch, time, heads, width),
        keys,
        values,
        empty(batch, num_chunks, coarse, width),
        empty(batch, time, num_chunks, dtype=torch.bool),
        empty(batch, time, coarse, width),
        None if joint else empty(length, width),
        None,
    )
    weights = empty(*chunks.shape, dtype=torch.float32)
    outputs = AttentionOutputs(
        empty(*problem.query.shape),
        weights,
        empty(batch, time, heads, 1 if joint else choice.top_k, dtype=torch.float32),
        empty(batch, time, heads, dtype=torch.float32),
    )
    output_grads = OutputGrads(outputs.out, outputs.lse)
    delta = empty(*outputs.normalisers.shape, dtype=torch.float32)
    lists = batch * groups * num_chunks
    entries = batch * time * problem.units * choice.top_k
    readers = (empty(entries, dtype=torch.int64), empty(lists + 1, dtype=torch.int64))
    reading = problem.reading(chunks)
    scored_reading = problem.reading(chunks, weights)
    launches = {
        "select": select_launch(problem, choice, chunks),
        "attend": attend_launch(reading, choice, problem, outputs),
        "query gradient": query_gradient_launch(reading, choice, outputs, output_grads, outputs.out, delta),
        "memory gradient": memory_gradient_launch(
            reading, choice, outputs, output_grads, delta, readers, (keys, values)
        ),
    }
    # Joint attention ignores the scores.
    return (
        launches
        if joint
        else launches | {"attend by scores": attend_launch(scored_reading, choice, None, outputs)}
    )
