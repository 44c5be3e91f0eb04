"""Main configurations of the chunk retrieval kernels, compiled in tests."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.retrieval.gpu.attend import attend_launch
from scrubjay.kernels.retrieval.gpu.gradients import memory_gradient_launch, query_gradient_launch
from scrubjay.kernels.retrieval.gpu.select import select_launch
from scrubjay.kernels.retrieval.gpu.tensors import AttentionOutputs, OutputGrads
from scrubjay.kernels.retrieval.problem import Choice, Problem


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
