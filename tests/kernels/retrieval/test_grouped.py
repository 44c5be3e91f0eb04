"""Queries grouped by chunk against rows one by one: who reads where, and what they read."""

import math

import pytest
import torch

from scrubjay.kernels import attend_chosen, chunk_retrieval
from scrubjay.kernels.retrieval import vectorised
from scrubjay.kernels.retrieval.grouped import are_worth_it, group
from scrubjay.kernels.retrieval.problem import Reading


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("alike", [False, True])
def test_every_pair_has_a_slot_of_its_own_at_its_chunk(alike):
    """Whether chunks are equally liked, or all queries want the same few."""
    batch, time, units, top_k, chunks = 2, 40, 3, 2, 5
    generator = torch.Generator().manual_seed(1)
    index = torch.rand(batch, time, units, chunks, generator=generator).topk(top_k).indices
    kept = torch.zeros(index.shape)
    if alike:
        index[:] = torch.tensor([4, 1])
    kept[0, :3] = -math.inf
    kept[1, 5, 1, 1] = -math.inf
    groups = group(kept, index, chunks)
    for b in range(batch):
        for u in range(units):
            number = b * units + u
            of_tile = [*range(chunks), *groups.further[number].tolist()]
            taken = set()
            for t in range(time):
                for k in range(top_k):
                    if kept[b, t, u, k] == -math.inf:
                        continue
                    slot = int(groups.slot[b, t, u, k])
                    assert of_tile[slot // groups.size] == index[b, t, u, k]
                    assert groups.query[number, slot] == t
                    taken.add(slot)
            assert len(taken) == (kept[b, :, u] > -math.inf).sum()
            others = set(range(len(of_tile) * groups.size)) - taken
            assert (groups.query[number, list(others)] == time).all()


@pytest.mark.parametrize("combine", ["joint", "hierarchical"])
@pytest.mark.parametrize("heads", [(2, 2, 1), (4, 2, 2), (4, 1, 4)])
@pytest.mark.parametrize("extras", [False, True])
def test_groups_read_what_rows_read_and_are_differentiated_alike(combine, heads, extras, monkeypatch):
    count, of_keys, coarse = heads
    chunks, length, width, time = 5, 3, 4, 30
    query = random(2, time, count, width, seed=1)
    keys, values = (random(2, chunks, length, of_keys, width, seed=seed) for seed in (0, 2))
    summaries, asked = random(2, chunks, 1, 6, seed=3), random(2, time, coarse, 6, seed=4)
    valid = torch.rand(2, time, chunks, generator=torch.Generator().manual_seed(5)) < 0.6
    valid[0, 3], valid[1, :, 2] = False, False
    # Nobody may read it, so it may hold anything.
    keys[1, 2], values[1, 2] = math.nan, math.inf
    given = [tensor.requires_grad_() for tensor in (query, keys, values, asked)]
    options = {}
    if extras:
        given.append(random(length, width, seed=6).requires_grad_())
        options = {"lengths": torch.randint(0, length + 1, (2, chunks)), "implementation": "listed"}
    found = []
    for worth in (True, False):
        monkeypatch.setattr(vectorised, "are_worth_it", lambda *_, worth=worth: worth)
        out, lse = chunk_retrieval(
            given[0],
            given[1],
            given[2],
            summaries,
            valid,
            top_k=2,
            combine=combine,
            summary_query=given[3],
            positions=given[4] if extras else None,
            return_lse=True,
            **options,
        )
        slope = random(*out.shape, seed=7)
        total = (out * slope).sum() + lse[lse > -math.inf].sum()
        grads = torch.autograd.grad(total, given, allow_unused=True)
        found.append([out, lse, *grads])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_a_chunk_that_nobody_chose_may_hold_anything(monkeypatch):
    monkeypatch.setattr(vectorised, "are_worth_it", lambda *_: True)
    query, keys = random(1, 40, 1, 4), random(1, 4, 2, 1, 4, seed=1)
    keys[0, 3] = math.nan
    chunks = torch.arange(2).expand(1, 40, 1, 2) + torch.arange(40)[:, None, None] % 2
    given = [query.requires_grad_(), keys.requires_grad_()]
    out = attend_chosen(given[0], given[1], given[1], chunks, combine="joint")
    for grad in torch.autograd.grad(out.square().sum(), given):
        assert grad.isfinite().all()


def test_second_derivatives_and_forward_mode(monkeypatch):
    monkeypatch.setattr(vectorised, "are_worth_it", lambda *_: True)
    monkeypatch.setattr(vectorised, "_path", lambda *_: "listed")
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
    assert are_worth_it(Reading(query, keys, keys, choice, choice, None, None), 4) is worth
