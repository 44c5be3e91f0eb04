"""Selection of chunks: every path against the definition, and arrays against tensors."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import choose_chunks

SIZES = st.fixed_dictionaries(
    {
        "batch": st.integers(1, 2),
        "time": st.integers(1, 3),
        "heads": st.sampled_from([1, 2, 4]),
        "chunks": st.integers(1, 9),
    }
)


def draw_inputs(seed, batch, time, heads, chunks, masked, integers=False) -> dict[str, Any]:
    """Return inputs for `choose_chunks`; with `integers`, many scores are equal and all are exact."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        numbers = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return numbers.round() if integers else numbers

    valid = torch.randint(0, chunks + 1, (batch, time), generator=generator)
    if masked:
        valid = torch.rand(batch, time, chunks, generator=generator) < 0.6
    return {
        "valid": valid,
        "summary_query": normal(batch, time, heads, 3),
        "summaries": normal(batch, chunks, 1 if heads == 1 else 2, 3),
    }


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    sizes=SIZES,
    masked=st.booleans(),
    integers=st.booleans(),
    top_k=st.integers(1, 10),
    forced_counts=st.sampled_from([(0, 0), (1, 0), (0, 2), (1, 1)]),
)
def test_paths_and_arrays_choose_as_the_definition(seed, sizes, masked, integers, top_k, forced_counts):
    inputs = draw_inputs(seed, **sizes, masked=masked, integers=integers)
    options = {
        "num_sink_chunks": forced_counts[0],
        "num_local_chunks": forced_counts[1],
        "summary_scale": 0.5,
    }
    options["top_k"] = max(top_k, sum(forced_counts))
    options["return_lse"] = True
    expected = choose_chunks(**inputs, **options, implementation="reference")
    selection = choose_chunks(**inputs, **options)
    array_selection = choose_chunks(**{name: tensor.numpy() for name, tensor in inputs.items()}, **options)
    assert torch.equal(selection.chunks, expected.chunks)
    assert (array_selection.chunks == expected.chunks.numpy()).all()
    torch.testing.assert_close(selection.scores, expected.scores)
    torch.testing.assert_close(torch.tensor(array_selection.scores), expected.scores)
    right = torch.logsumexp(expected.scores, dim=-1)
    for lse in (expected.lse, selection.lse, torch.tensor(array_selection.lse)):
        torch.testing.assert_close(lse, right)
    heads = inputs["summary_query"].shape[2]
    per_head = inputs["summaries"].repeat_interleave(heads // inputs["summaries"].shape[2], dim=2)
    scores = torch.einsum("btsd,bmsd->btsm", inputs["summary_query"], per_head) * 0.5
    del options["summary_scale"]
    by_scores = choose_chunks(inputs["valid"], scores=scores, **options)
    if integers:  # otherwise the two products may round differently
        assert torch.equal(by_scores.chunks, expected.chunks)
    torch.testing.assert_close(by_scores.scores, expected.scores)


def test_forced_chunks_come_first_and_count():
    scores = np.array([0.0, 5.0, 1.0, 4.0, 2.0, 3.0], dtype=np.float32)[None, None, None]
    selection = choose_chunks(np.array([[6]]), scores=scores, top_k=4, num_sink_chunks=1, num_local_chunks=2)
    assert selection.chunks.tolist() == [[[[0, 4, 5, 1]]]]
    assert selection.scores.tolist() == [[[[0.0, 2.0, 3.0, 5.0]]]]
    few = choose_chunks(np.array([[2]]), scores=scores, top_k=4, num_sink_chunks=1, num_local_chunks=2)
    assert few.chunks.tolist() == [[[[0, 1, -1, -1]]]]
    assert few.scores.tolist() == [[[[0.0, 5.0, -math.inf, -math.inf]]]]


@pytest.mark.parametrize("convert", [np.asarray, torch.tensor])
def test_a_chunk_without_a_finite_score_is_selected_only_if_forced(convert):
    scores = convert([[[[math.nan, -math.inf, 1.0, math.nan]]]])
    valid = convert([[True, True, True, True]])[None]
    selection = choose_chunks(valid, scores=scores, top_k=4, num_sink_chunks=1)
    assert selection.chunks.tolist() == [[[[0, 2, -1, -1]]]]
    assert selection.scores.tolist() == [[[[-math.inf, 1.0, -math.inf, -math.inf]]]]


def test_gradients_reach_selected_chunks_and_no_unreadable_chunk():
    inputs = draw_inputs(3, 2, 3, 4, 5, masked=False)
    inputs["valid"] = torch.tensor([[2, 3, 0], [1, 2, 2]])
    query, summaries = inputs["summary_query"], inputs["summaries"]
    summaries[:, 3:] = math.nan
    query[0, 2] = math.nan
    query.requires_grad_()
    summaries.requires_grad_()
    selection = choose_chunks(**inputs, top_k=2, return_lse=True)
    assert selection.lse is not None
    (selection.scores.exp().sum() + torch.where(selection.lse.isinf(), 0, selection.lse).sum()).backward()
    assert query.grad is not None
    assert summaries.grad is not None
    assert query.grad.isfinite().all()
    assert summaries.grad.isfinite().all()
    assert (summaries.grad[:, 3:] == 0).all()
    assert summaries.grad[0, 0].abs().sum() > 0


def test_a_compiled_call_is_one_graph():
    inputs = draw_inputs(1, 2, 3, 2, 6, masked=False, integers=True)
    expected = choose_chunks(**inputs, top_k=3)
    compiled_choose = torch.compile(
        lambda **tensors: choose_chunks(**tensors, top_k=3), fullgraph=True, backend="aot_eager"
    )
    selection = compiled_choose(**inputs)
    assert torch.equal(selection.chunks, expected.chunks)
    torch.testing.assert_close(selection.scores, expected.scores)


def test_arrays_need_no_torch(modules_after):
    statement = (
        "import numpy as np; from scrubjay.kernels import choose_chunks; "
        "choose_chunks(np.array([[2]]), scores=np.ones((1, 1, 1, 3)), top_k=2)"
    )
    assert "torch" not in modules_after(statement)


@pytest.mark.parametrize("convert", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"top_k": 0}, ValueError, "top_k=0"),
        ({"num_sink_chunks": -1}, ValueError, "num_sink_chunks=-1"),
        ({"num_sink_chunks": 2, "num_local_chunks": 1}, ValueError, "raise top_k to at least 3"),
        ({"scores": np.zeros((2, 3, 4))}, ValueError, "scores have shape"),
        ({"scores": np.zeros((2, 3, 1, 4), dtype=np.int64)}, TypeError, "scores has dtype"),
        ({"valid": np.zeros((2, 2), dtype=np.int64)}, ValueError, "valid has shape"),
        ({"valid": np.zeros((2, 3, 5), dtype=bool)}, ValueError, "valid has shape"),
        ({"valid": np.zeros((2, 3))}, TypeError, "valid has dtype"),
        ({"summaries": np.zeros((2, 4, 1, 3))}, ValueError, "either scores, or both"),
        ({"scores": None, "summaries": np.zeros((2, 4, 1, 3))}, ValueError, "either scores, or both"),
        (
            {
                "scores": None,
                "summary_query": np.zeros((2, 3, 3, 5)),
                "summaries": np.zeros((2, 4, 2, 5)),
            },
            ValueError,
            "summaries has 2 heads, which do not divide the 3",
        ),
        (
            {
                "scores": None,
                "summary_query": np.zeros((2, 3, 2, 5)),
                "summaries": np.zeros((2, 4, 2, 4)),
            },
            ValueError,
            "summaries have shape",
        ),
    ],
)
def test_mistakes_are_named(convert, change, error, message):
    inputs: dict[str, Any] = {
        "valid": np.full((2, 3), 4),
        "scores": np.zeros((2, 3, 1, 4)),
        "top_k": 2,
    } | change
    inputs = {name: convert(v) if isinstance(v, np.ndarray) else v for name, v in inputs.items()}
    with pytest.raises(error, match=message):
        choose_chunks(**inputs)


def test_arrays_have_one_implementation_and_scores_no_kernel():
    scores = np.zeros((1, 1, 1, 2))
    with pytest.raises(ValueError, match="is for tensors"):
        choose_chunks(np.array([[2]]), scores=scores, top_k=1, implementation="torch")
    with pytest.raises(ValueError, match="computes scores from summaries"):
        choose_chunks(torch.tensor([[2]]), scores=torch.tensor(scores), top_k=1, implementation="triton")
