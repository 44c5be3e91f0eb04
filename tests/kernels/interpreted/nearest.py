"""The Triton kernel of the nearest-row search under the interpreter, compared with the reference."""

import pytest
import torch

from scrubjay.kernels import nearest, row_scores
from scrubjay.kernels.search import gpu, tensors

# queries, rows, width; sizes that are no power of two, more rows than a tile, wider than a tile.
SHAPES = [(1, 70, 200), (3, 33, 20), (2, 5, 128), (1, 0, 7)]


def draw(shape, dtype, whole=False):
    queries, rows, width = shape
    generator = torch.Generator().manual_seed(0)

    def numbers(count):
        if whole:
            return torch.randint(-1, 2, (count, width), generator=generator).to(dtype)
        return torch.randn(count, width, generator=generator).to(dtype)

    norms = 2.0 ** torch.randint(0, 3, (rows,), generator=generator)
    return numbers(queries), numbers(rows), norms, torch.rand(rows, generator=generator) < 0.6


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_the_kernel_finds_what_the_definition_does(shape, masked):
    # Whole numbers: their products are exact, and many are equal.
    query, keys, norms, allowed_rows = draw(shape, torch.float32, whole=True)
    options = {"norms": norms, "row_mask": allowed_rows} if masked else {}
    if masked:
        keys[~allowed_rows] = float("nan")
    for count in (1, 9, 80):
        actual = nearest(query, keys, count, **options, implementation="triton")
        right = nearest(query, keys, count, **options, implementation="reference")
        assert torch.equal(actual.rows, right.rows)
        assert torch.equal(actual.scores, right.scores)


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_half_precision_and_strided_rows_are_summed_in_full(dtype):
    query, keys, *_ = draw((2, 40, 300), dtype)
    exact = query.double() @ keys.double().T
    wide = torch.full((40, 2, 300), float("nan"), dtype=dtype)
    wide[:, 1] = keys
    rows = torch.tensor([39, 0, 0, 7])
    for layout in (keys, wide[:, 1], keys.T.contiguous().T):
        result = nearest(query, layout, 5, implementation="triton")
        assert torch.equal(result.rows, exact.topk(5).indices)
        assert torch.allclose(result.scores.double(), exact.topk(5).values, atol=1e-4)
        listed_scores = row_scores(query, layout, rows, implementation="triton")
        assert torch.allclose(listed_scores.double(), exact[:, rows], atol=1e-4)


def test_scores_of_every_sign_and_none_keep_their_order():
    query = torch.ones(1, 1)
    numbers = [0.0, -0.0, 1e-40, -1e-40, float("inf"), -float("inf"), float("nan"), 3e38, -3e38, 1.0, -1.0]
    keys = torch.tensor(numbers)[:, None]
    assert nearest(query, keys, 11, implementation="triton").rows.tolist() == [
        [4, 7, 9, 2, 0, 1, 3, 10, 8, -1, -1]
    ]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("total += b_keys", "total = b_keys"),
        ("scores = scores / norms", "scores = scores"),
        ("p_scores += R", "p_scores += 0"),
        ('tl.where(readable, scores, float("-inf"))', "scores"),
    ],
)
def test_broken_kernels_are_caught(mutate_module, monkeypatch, old, new):
    query, keys, norms, allowed_rows = draw((2, 40, 200), torch.float32)
    right = nearest(query, keys, 40, norms=norms, row_mask=allowed_rows, implementation="reference")
    wrong = mutate_module(gpu, old, new)
    monkeypatch.setattr(gpu, "scores", wrong.scores)
    actual = tensors.nearest(query, keys, 40, norms, allowed_rows, "triton")
    assert not torch.allclose(actual.scores, right.scores, atol=1e-3)
