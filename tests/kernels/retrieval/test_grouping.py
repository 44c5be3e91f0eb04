"""Grouped attention compared with reading rows one by one: slots, outputs and gradients."""

import math

import pytest
import torch

from scrubjay.kernels import attend_chosen, chunk_retrieval
from scrubjay.kernels.retrieval import vectorized
from scrubjay.kernels.retrieval.grouping import build_groups, is_grouping_faster
from scrubjay.kernels.retrieval.problem import Reading


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alike", [False, True])
def test_every_pair_has_a_slot_of_its_own_at_its_chunk(alike):
    """Test equal selections for all queries if `alike`, otherwise uniform random selections."""
    batch, time, units, top_k, chunks = 2, 40, 3, 2, 5
    generator = torch.Generator().manual_seed(1)
    index = torch.rand(batch, time, units, chunks, generator=generator).topk(top_k).indices
    scores = torch.zeros(index.shape)
    if alike:
        index[:] = torch.tensor([4, 1])
    scores[0, :3] = -math.inf
    scores[1, 5, 1, 1] = -math.inf
    groups = build_groups(scores, index, chunks)
    for b in range(batch):
        for u in range(units):
            number = b * units + u
            tile_chunks = [*range(chunks), *groups.extra_chunks[number].tolist()]
            used_slots = set()
            for t in range(time):
                for k in range(top_k):
                    if scores[b, t, u, k] == -math.inf:
                        continue
                    slot = int(groups.slot[b, t, u, k])
                    assert tile_chunks[slot // groups.size] == index[b, t, u, k]
                    assert groups.query[number, slot] == t
                    used_slots.add(slot)
            assert len(used_slots) == (scores[b, :, u] > -math.inf).sum()
            others = set(range(len(tile_chunks) * groups.size)) - used_slots
            assert (groups.query[number, list(others)] == time).all()


@pytest.mark.parametrize("combine", ["joint", "hierarchical"])
@pytest.mark.parametrize("heads", [(2, 2, 1), (4, 2, 2), (4, 1, 4)])
@pytest.mark.parametrize("extras", [False, True])
def test_groups_read_what_rows_read_and_are_differentiated_alike(combine, heads, extras, monkeypatch):
    count, key_heads, coarse = heads
    chunks, length, width, time = 5, 3, 4, 30
    query = random(2, time, count, width, seed=1)
    keys, values = (random(2, chunks, length, key_heads, width, seed=seed) for seed in (0, 2))
    summaries, summary_query = random(2, chunks, 1, 6, seed=3), random(2, time, coarse, 6, seed=4)
    valid = torch.rand(2, time, chunks, generator=torch.Generator().manual_seed(5)) < 0.6
    valid[0, 3], valid[1, :, 2] = False, False
    # No query may read this chunk, so it may hold any values.
    keys[1, 2], values[1, 2] = math.nan, math.inf
    inputs = [tensor.requires_grad_() for tensor in (query, keys, values, summary_query)]
    options = {}
    if extras:
        inputs.append(random(length, width, seed=6).requires_grad_())
        options = {"lengths": torch.randint(0, length + 1, (2, chunks)), "implementation": "listed"}
    results = []
    for worth in (True, False):
        monkeypatch.setattr(vectorized, "is_grouping_faster", lambda *_, worth=worth: worth)
        out, lse = chunk_retrieval(
            inputs[0],
            inputs[1],
            inputs[2],
            summaries,
            valid,
            top_k=2,
            combine=combine,
            summary_query=inputs[3],
            positions=inputs[4] if extras else None,
            return_lse=True,
            **options,
        )
        slope = random(*out.shape, seed=7)
        total = (out * slope).sum() + lse[lse > -math.inf].sum()
        grads = torch.autograd.grad(total, inputs, allow_unused=True)
        results.append([out, lse, *grads])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)


def test_an_unselected_chunk_may_hold_any_values(monkeypatch):
    monkeypatch.setattr(vectorized, "is_grouping_faster", lambda *_: True)
    query, keys = random(1, 40, 1, 4), random(1, 4, 2, 1, 4, seed=1)
    keys[0, 3] = math.nan
    chunks = torch.arange(2).expand(1, 40, 1, 2) + torch.arange(40)[:, None, None] % 2
    inputs = [query.requires_grad_(), keys.requires_grad_()]
    out = attend_chosen(inputs[0], inputs[1], inputs[1], chunks, combine="joint")
    for grad in torch.autograd.grad(out.square().sum(), inputs):
        assert grad.isfinite().all()


def test_second_derivatives_and_forward_mode(monkeypatch):
    monkeypatch.setattr(vectorized, "is_grouping_faster", lambda *_: True)
    monkeypatch.setattr(vectorized, "_select_path", lambda *_: "listed")
    query, keys = random(1, 6, 2, 3), random(1, 3, 2, 2, 3, seed=1)
    chunks = torch.arange(2).expand(1, 6, 1, 2)

    def read(query, keys):
        return attend_chosen(query, keys, keys, chunks, combine="joint")

    inputs = (query.requires_grad_(), keys.requires_grad_())
    assert torch.autograd.gradcheck(read, inputs, fast_mode=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(read, inputs, fast_mode=True)


@pytest.mark.parametrize(
    ("queries", "chunks", "length", "worth"),
    [(256, 32, 128, True), (256, 32, 16, False), (16, 32, 128, False), (256, 2048, 128, False)],
)
def test_groups_are_formed_where_chunks_are_large_and_asked_by_many(queries, chunks, length, worth):
    query, keys = torch.empty(1, queries, 8, 64), torch.empty(1, chunks, length, 8, 64)
    choice = torch.empty(1, queries, 8, 4)
    assert is_grouping_faster(Reading(query, keys, keys, choice, choice, None, None), 4) is worth
