"""The main configurations of chunk retrieval's kernels, to be compiled in checks."""

from __future__ import annotations

import torch
from torch import Tensor

from scrubjay.kernels.launch import Launch
from scrubjay.kernels.retrieval.gpu.attend import attend_launch
from scrubjay.kernels.retrieval.gpu.gradients import memory_gradient_launch, query_gradient_launch
from scrubjay.kernels.retrieval.gpu.select import select_launch
from scrubjay.kernels.retrieval.gpu.tensors import Filled, Grads
from scrubjay.kernels.retrieval.problem import Choice, Problem


def configurations() -> dict[str, Launch]:
    """Return the launches of the main configurations on meta tensors, to compile without a GPU."""
    # 16 query heads on 2 key heads in chunks of 64, selected per key head; and HCAM's, 4 heads of one
    # selection.
    grouped, single = (16, 2, 2, 64), (4, 1, 1, 16)
    launches = {}
    for dtype, width, shape, joint in (
        (torch.bfloat16, 64, grouped, True),
        (torch.bfloat16, 128, grouped, True),
        (torch.float16, 64, single, False),
        (torch.float32, 64, grouped, True),
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
    read = Filled(
        empty(*problem.query.shape),
        weights,
        empty(batch, time, heads, 1 if joint else choice.top_k, dtype=torch.float32),
        empty(batch, time, heads, dtype=torch.float32),
    )
    grads = Grads(read.out, read.lse)
    delta = empty(*read.normalisers.shape, dtype=torch.float32)
    lists = batch * groups * num_chunks
    entries = batch * time * problem.units * choice.top_k
    readers = (empty(entries, dtype=torch.int64), empty(lists + 1, dtype=torch.int64))
    reading = problem.reading(chunks)
    scored = problem.reading(chunks, weights)
    launches = {
        "select": select_launch(problem, choice, chunks),
        "attend": attend_launch(reading, choice, problem, read),
        "query gradient": query_gradient_launch(reading, choice, read, grads, read.out, delta),
        "memory gradient": memory_gradient_launch(
            reading, choice, read, grads, delta, readers, (keys, values)
        ),
    }
    # Joint, no score is looked at, given or not.
    return launches if joint else launches | {"attend by scores": attend_launch(scored, choice, None, read)}
