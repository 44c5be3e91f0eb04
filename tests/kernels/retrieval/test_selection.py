"""Ties and rounding in the selection of chunks over tensors."""

import math

import pytest
import torch

from scrubjay.kernels.retrieval import selection
from scrubjay.kernels.retrieval.problem import Choice, Problem


def problem(query, summaries, valid=None) -> Problem:
    stand_in = summaries[:, :, None]
    if valid is None:
        valid = torch.ones(*query.shape[:2], summaries.shape[1], dtype=torch.bool)
    return Problem(query, stand_in, stand_in, summaries, valid, query, None, None)


def choice(top_k, **options) -> Choice:
    return Choice(top_k, True, 1.0, 0.125, options.get("num_sinks", 0), options.get("num_locals", 0))


@pytest.mark.parametrize("pieces", [1 << 21, 100])
def test_equal_summaries_score_alike_in_a_large_product(pieces, monkeypatch):
    """A large product may round equal rows differently; the earlier chunk must still win."""
    monkeypatch.setattr(selection, "_PIECE_SCALARS", pieces)
    generator = torch.Generator().manual_seed(0)
    summaries = torch.randn(1, 1, 1, 64, generator=generator).expand(1, 200, 1, 64).clone()
    query = torch.randn(1, 50, 3, 64, generator=generator)
    chunks, _ = selection.select(problem(query, summaries), choice(5))
    assert (chunks.sort(dim=-1).values == torch.arange(5)).all()
    chunks, _ = selection.select_in_order(problem(query, summaries), choice(5))
    assert (chunks == torch.arange(5)).all()
    chunks, _ = selection.select_in_order(problem(query, summaries), choice(5, num_sinks=1, num_locals=2))
    assert (chunks == torch.tensor([0, 198, 199, 1, 2])).all()


def test_equal_summaries_among_the_selected_chunks_are_in_order():
    """Rounding may also separate equal chunks if all chunks are selected."""
    generator = torch.Generator().manual_seed(1)
    one, two = torch.randn(2, 1, 1, 1, 64, generator=generator)
    summaries = torch.cat([two, one, one, two, one, torch.zeros_like(one)], dim=1)
    query = torch.cat([one, one * 0.3, one * 7], dim=1)
    chunks, scores = selection.select_in_order(problem(query, summaries), choice(6))
    twins = {(1, 2, 4), (0, 3)}
    for row in chunks[0, :, 0].tolist():
        order = {chunk: place for place, chunk in enumerate(row)}
        for group in twins:
            assert sorted(group, key=order.__getitem__) == list(group)
    assert (scores.diff(dim=-1) < 1e-5).all()


def test_scores_of_chosen_chunks_are_the_scores_by_which_they_were_chosen():
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(2, 3, 4, 8, generator=generator, dtype=torch.float64)
    summaries = torch.randn(2, 6, 2, 8, generator=generator, dtype=torch.float64)
    valid = torch.rand(2, 3, 6, generator=generator) < 0.5
    valid[0, 0] = False
    summaries[~valid.any(dim=1)] = math.nan
    inputs = problem(query, summaries, valid)
    chunks, scores = selection.select_in_order(inputs, choice(3))
    again = selection.score_chunks(inputs, choice(3), chunks)
    torch.testing.assert_close(again, scores)


def test_idle_queries_and_unread_summaries_are_blanked_and_no_other():
    generator = torch.Generator().manual_seed(3)
    query, summaries = torch.randn(1, 2, 1, 4, generator=generator), torch.ones(1, 3, 1, 4)
    valid = torch.tensor([[[True, False, True], [False, False, False]]])
    inputs = problem(query, summaries.requires_grad_(), valid)
    zeroed_inputs = selection.zero_unread_summaries(selection.zero_idle_queries(inputs))
    assert torch.equal(zeroed_inputs.query[0, 0], query[0, 0])
    assert (zeroed_inputs.query[0, 1] == 0).all()
    assert zeroed_inputs.summary_query is zeroed_inputs.query
    assert zeroed_inputs.summaries[0, :, 0, 0].tolist() == [1, 0, 1]
    whole = problem(query, summaries)
    assert selection.zero_unread_summaries(selection.zero_idle_queries(whole)) is whole


@pytest.mark.parametrize("twins", [2, 90])
def test_of_many_chunks_the_earlier_of_equals_wins_however_many_there_are(twins):
    """A few neighbours resolve a tie of two chunks, but not a tie of ninety."""
    generator = torch.Generator().manual_seed(4)
    summaries = torch.randn(1, 100, 1, 64, generator=generator) * 0.01
    query = torch.randn(1, 40, 1, 64, generator=generator)
    # Equal chunks for every query, which have the best score for about half of the queries.
    places = torch.randperm(100, generator=generator)[:twins].sort().values
    summaries[:, places] = query[:, :1] * 3
    chunks, _ = selection.select_in_order(problem(query, summaries), choice(3))
    best = (query[0, :, 0] @ query[0, 0, 0]) > 1
    assert best.sum() > 5
    for row in chunks[0, best, 0]:
        assert row[: min(3, twins)].tolist() == places[: min(3, twins)].tolist()


def test_scores_of_the_selected_chunks_alone_have_the_full_gradient(monkeypatch):
    """With many chunks only the selected ones are rescored, under a mask per sequence or per query."""
    monkeypatch.setattr(selection, "_RESCORE_RATIO", 16)
    generator = torch.Generator().manual_seed(5)
    summaries = torch.randn(2, 64, 2, 8, generator=generator, dtype=torch.float64)
    query = torch.randn(2, 6, 4, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    row = torch.rand(2, 1, 64, generator=generator) < 0.5
    each = torch.rand(2, 6, 64, generator=generator) < 0.03
    each[0, 0] = False
    for valid in (row.expand(2, 6, 64), each):
        problem_inputs = problem(query, summaries, valid)
        results = []
        for inputs in (problem_inputs, problem_inputs._replace(summaries=summaries.clone().requires_grad_())):
            chunks, scores = selection.select(inputs, choice(2))
            assert scores.requires_grad
            (grad,) = torch.autograd.grad(scores.nan_to_num(neginf=0).square().sum(), query)
            order = scores.argsort(dim=-1, descending=True)
            results.append((chunks.gather(3, order), scores.gather(3, order), grad))
        (one, score, grad), (other, other_score, by_all) = results
        there = other_score > -math.inf
        assert (one == other)[there].all()
        torch.testing.assert_close(score, other_score)
        torch.testing.assert_close(grad, by_all)
