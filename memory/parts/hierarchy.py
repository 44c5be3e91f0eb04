"""Hierarchical attention of HCAM (Lampinen et al. 2021, arXiv 2105.14039, section 3).

A query selects chunks by their summaries, then attends inside them. If there are few chunks, the steps of all
chunks are projected and read in large matrix products. If there are many chunks, only the selected ones are
read. Their steps are not projected. Instead the key projection is applied to the query, and the value
projection to the read-out.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scrubjay.kernels import choose_chunks, chunk_retrieval
from scrubjay.kernels.dispatch import load_implementation, needs_plain_autograd, without_autocast
from scrubjay.kernels.retrieval.problem import any_along


class ReadWeights(NamedTuple):
    """Projections of a hierarchical read, each applied as `x @ weight + bias`; F is the feature width.

    The summary projections have one head. All other projections are split into `num_heads` along F.
    """

    summary_key: Float[Tensor, "dim F"]
    summary_query: Float[Tensor, "width F"]
    key: Float[Tensor, "dim F"]
    query: Float[Tensor, "width F"]
    value: Float[Tensor, "dim F"]
    out: Float[Tensor, "F F"]
    key_bias: Float[Tensor, "F"] | None = None
    query_bias: Float[Tensor, "F"] | None = None
    value_bias: Float[Tensor, "F"] | None = None
    out_bias: Float[Tensor, "F"] | None = None


def hierarchical_attention(
    queries: Float[Tensor, "batch time width"],
    keys: Float[Tensor, "batch chunks dim"],
    contents: Float[Tensor, "batch chunks chunk_size dim"],
    mask: Bool[Tensor, "batch time chunks"] | None,
    weights: ReadWeights,
    positions: Float[Tensor, "chunk_size dim"] | None = None,
    *,
    top_k: int = 4,
    num_heads: int = 1,
    stop_memory_gradient: bool = True,
) -> Float[Tensor, "batch time F"]:
    """Attend inside the chunks that a query selects, and return the weighted sum of the outputs.

    The weight of a chunk is the softmax of its summary's score among the selected chunks.

    Args:
        queries: One query per step.
        keys: Summaries of the chunks.
        contents: Steps of the chunks.
        mask: True for chunks that a query may read; None for all. A query without readable chunks gets zeros.
        weights: Projections for the selection of chunks and for the attention inside chunks.
        positions: Encodings to add to the stored steps of every chunk, oldest first; None adds nothing.
        top_k: Number of chunks that each query selects.
        num_heads: Number of heads of the attention inside chunks.
        stop_memory_gradient: Whether to stop the gradient into `keys` and `contents`.

    Raises:
        ValueError: if `num_heads` does not divide the feature width F of `weights`, or shapes disagree.
    """
    features = weights.query.shape[1]
    if features % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide the feature width {features}")
    if mask is None:
        mask = torch.ones(*queries.shape[:2], keys.shape[1], dtype=torch.bool, device=keys.device)
    if stop_memory_gradient:
        keys, contents = keys.detach(), contents.detach()
    few = _is_dense_cheaper(queries, contents, weights.key, top_k, num_heads)
    read = _read_dense if few else _read_selected
    output = read(queries, keys, contents, mask, weights, positions, top_k, num_heads)
    if weights.value_bias is not None:
        output = output + weights.value_bias
    out = output @ weights.out
    if weights.out_bias is not None:
        out = out + weights.out_bias
    return torch.where(any_along(mask, -1)[..., None], out, 0.0)


def _is_dense_cheaper(queries: Tensor, contents: Tensor, key: Tensor, top_k: int, num_heads: int) -> bool:
    """Return True if reading all chunks is faster than reading only the selected ones.

    Selected chunks are read one by one, at a third of the speed of one matrix product over all chunks. Every
    head reads the full width of a selected chunk.
    """
    time, chunks, features = queries.shape[1], contents.shape[1], key.shape[1]
    if time == 1 or contents.is_cuda or queries.dtype not in (torch.float32, torch.float64):
        return False
    cheaper = chunks * (features + time) <= 3 * time * num_heads * min(chunks, top_k)
    return cheaper and 0 not in (len(queries), chunks) and not needs_plain_autograd(queries, contents, key)


@without_autocast
def _read_dense(
    queries: Tensor,
    keys: Tensor,
    contents: Tensor,
    mask: Tensor,
    weights: ReadWeights,
    positions: Tensor | None,
    top_k: int,
    num_heads: int,
) -> Float[Tensor, "batch time F"]:
    """Return the attention output, computed by matrix products over all stored steps.

    Queries, keys and values are projected to contiguous tensors `[batch, features, steps]`.
    """
    (batch, chunks, length, _), (time, features) = contents.shape, (queries.shape[1], weights.query.shape[1])
    width = features // num_heads
    if chunks > top_k:
        with torch.no_grad():
            summary_query = (queries @ weights.summary_query @ weights.summary_key.T)[:, :, None]
            selection = choose_chunks(
                mask, top_k=top_k, summary_query=summary_query, summaries=keys[:, :, None]
            ).chunks
            selection = selection[:, :, 0].remainder(chunks + 1)  # -1 (no chunk) maps to an extra column
            selected_mask = mask.new_zeros(batch, time, chunks + 1).scatter_(2, selection, True)
            mask = mask & selected_mask[..., :chunks]

    def project(weight: Tensor, items: Float[Tensor, "batch items dim"]) -> Float[Tensor, "batch F items"]:
        return torch.bmm(weight.T.expand(batch, -1, -1), items.mT)

    scale = width**-0.5
    query = project(weights.query * scale, queries)
    if weights.query_bias is not None:
        query = query + (weights.query_bias * scale)[:, None]
    stored_steps = (contents if positions is None else contents + positions).flatten(1, 2)
    # The key bias shifts all positions of a chunk equally, so the softmax is invariant to it.
    key, value = project(weights.key, stored_steps), project(weights.value, stored_steps)
    coarse = (keys @ weights.summary_key) @ (weights.summary_query.T * features**-0.5)
    scores = torch.bmm(coarse, queries.mT).masked_fill(~mask.mT, torch.finfo(queries.dtype).min)
    read = load_implementation("retrieval.dense").attend_all(
        query.view(-1, width, time),
        key.view(-1, width, chunks * length).mT,
        value.view(-1, width, chunks * length),
        torch.softmax(scores, dim=1)[:, None, :, None, None],
    )
    return read.view(batch, features, time).mT


def _read_selected(
    queries: Tensor,
    keys: Tensor,
    contents: Tensor,
    mask: Tensor,
    weights: ReadWeights,
    positions: Tensor | None,
    top_k: int,
    num_heads: int,
) -> Float[Tensor, "batch time F"]:
    """Attend to the selected steps without projecting them.

    The key projection is applied to the queries, and the value projection to the output of the attention.
    """
    batch, time, _ = queries.shape
    features = weights.query.shape[1]
    query = queries @ weights.query
    if weights.query_bias is not None:
        query = query + weights.query_bias
    # Positions are added once to the stored steps if these are fewer than the steps read. The GPU kernel adds
    # them while reading.
    chunks, dim = contents.shape[1], contents.shape[3]
    adds_once = chunks * dim <= 8 * time * num_heads * min(top_k, chunks)
    if positions is not None and adds_once and not contents.is_cuda:
        contents, positions = contents + positions, None
    stored_steps = contents[:, :, :, None]
    read = chunk_retrieval(
        _per_head(query, weights.key, num_heads),
        stored_steps,
        stored_steps,
        summaries=keys[:, :, None],
        valid=mask,
        top_k=top_k,
        scale=(features // num_heads) ** -0.5,
        summary_query=(queries @ weights.summary_query @ weights.summary_key.T)[:, :, None],
        summary_scale=features**-0.5,
        positions=positions,
    )
    value = weights.value.view(-1, num_heads, features // num_heads).transpose(0, 1)
    return (read.flatten(0, 1).transpose(0, 1) @ value).transpose(0, 1).reshape(batch, time, features)


def _per_head(query: Tensor, key: Tensor, num_heads: int) -> Tensor:
    """Return `[batch, time, heads, dim]`: each head's query multiplied with that head's key projection."""
    batch, time, features = query.shape
    per_head = query.view(batch * time, num_heads, features // num_heads).transpose(0, 1)
    projection = key.view(-1, num_heads, features // num_heads).permute(1, 2, 0)
    return (per_head @ projection).transpose(0, 1).view(batch, time, num_heads, key.shape[0])
