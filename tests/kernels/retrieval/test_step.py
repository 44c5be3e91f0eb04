"""Selection of chunks in one step of an agent against the general path."""

import math
from typing import Any

import pytest
import torch

from scrubjay.kernels import choose_chunks
from scrubjay.kernels.retrieval import step


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("complete", [True, False])
def test_a_step_selects_as_the_general_path(rows, complete, monkeypatch):
    """Few products are exact; many are rounded, and exact where the last selected chunk is nearly tied."""
    generator = torch.Generator().manual_seed(rows)
    summaries = torch.randn(rows, 5, 1, 16, generator=generator).repeat(1, 4, 1, 1)
    summaries[:, 7] = math.nan
    query = torch.randn(rows, 1, 1, 16, generator=generator)
    valid = torch.ones(rows, 1, 20, dtype=torch.bool)
    if not complete:
        valid = torch.rand(rows, 1, 20, generator=generator) < 0.3
        valid[0] = False
    for top_k in (1, 6, 20, 30):
        fast = choose_chunks(valid, top_k=top_k, summary_query=query, summaries=summaries)
        with monkeypatch.context() as patch:
            patch.setattr(step, "choose", lambda *_: None)
            general = choose_chunks(valid, top_k=top_k, summary_query=query, summaries=summaries)
        torch.testing.assert_close(fast.chunks.sort(dim=-1)[0], general.chunks.sort(dim=-1)[0])
        torch.testing.assert_close(fast.scores, general.scores, equal_nan=True)
        assert fast.chunks.dtype == general.chunks.dtype
        limit = float(summaries.nan_to_num(0).abs().max())
        again = choose_chunks(
            valid, top_k=top_k, summary_query=query, summaries=summaries, largest_entry=limit
        )
        torch.testing.assert_close(again.chunks, fast.chunks)


@pytest.mark.parametrize("rows", [1, 70])
@pytest.mark.parametrize("heads", [1, 4])
def test_a_step_selects_by_scores_as_the_general_path(rows, heads, monkeypatch):
    generator = torch.Generator().manual_seed(rows)
    scores = torch.randint(-3, 4, (rows, 1, heads, 20), generator=generator).float()
    scores[..., 3], scores[..., 5], scores[..., 8] = math.nan, math.inf, -math.inf
    for valid in (
        torch.ones(rows, 1, 20, dtype=torch.bool),
        torch.rand(rows, 1, 20, generator=generator) < 0.3,
    ):
        for top_k in (1, 6, 20, 30):
            fast = choose_chunks(valid, top_k=top_k, scores=scores)
            with monkeypatch.context() as patch:
                patch.setattr(step, "choose", lambda *_: None)
                general = choose_chunks(valid, top_k=top_k, scores=scores)
            assert torch.equal(fast.chunks, general.chunks)
            assert torch.equal(fast.scores, general.scores)


def test_a_wrong_argument_of_a_step_has_the_general_error():
    query, summaries, valid = (
        torch.ones(2, 1, 1, 4),
        torch.ones(2, 3, 1, 4),
        torch.ones(2, 1, 3, dtype=torch.bool),
    )
    for options, message in (
        ({"top_k": 0}, "top_k=0"),
        ({"valid": valid[:1]}, "valid has shape"),
        ({"summaries": summaries[..., :2]}, "summaries have shape"),
        ({"summary_query": query[:, 0]}, "summary_query has shape"),
        ({"scores": torch.ones(2, 1, 1, 3)}, "needs either scores, or both"),
    ):
        arguments: dict[str, Any] = {"valid": valid, "top_k": 1, "summary_query": query}
        arguments |= {"summaries": summaries} | options
        with pytest.raises(ValueError, match=message):
            choose_chunks(**arguments)
