"""Mirror maps from duals to weights: norms, distributions and scaling."""

import pytest
import torch

from scrubjay.kernels.neural.mirror_map import Identity, QNorm, Simplex, forgets_all


def duals(scale=1.0, dtype=torch.float64):
    return torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0), dtype=dtype) * scale


def norms(x, q):
    return torch.linalg.vector_norm(x, ord=q, dim=(-1, -2))


@pytest.mark.parametrize("q", [2.0, 2.5, 3.0, 4.0])
def test_the_norm_of_weights_is_a_power_of_the_duals(q):
    dual = duals()
    weights = QNorm(q).weights(dual)
    torch.testing.assert_close(norms(weights, q), norms(dual, q).pow(3 - q))
    # Scaling the dual by s scales the weights by s^(3 - q).
    torch.testing.assert_close(QNorm(q).weights(7 * dual), 7 ** (3 - q) * weights)
    torch.testing.assert_close(
        torch.nn.functional.normalize(weights.flatten(2), dim=-1),
        torch.nn.functional.normalize(dual.flatten(2), dim=-1),
    )


def test_a_norm_of_two_is_the_identity():
    dual = duals()
    assert torch.equal(QNorm(2.0).weights(dual), dual)
    assert torch.equal(Identity().weights(dual), dual)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_norms_neither_overflow_nor_vanish(scale):
    weights = QNorm(4.0).weights(duals(scale, torch.float32))
    torch.testing.assert_close(weights * scale, QNorm(4.0).weights(duals(1.0, torch.float32)))


def test_a_matrix_of_zeros_stays_one():
    zeros = torch.zeros(3, 3, requires_grad=True)
    weights = QNorm(4.0).weights(zeros)
    assert not weights.any()
    (gradient,) = torch.autograd.grad(weights.sum(), zeros)
    assert gradient.isfinite().all()


def test_weights_are_distributions_that_sum_to_the_total():
    weights = Simplex(3.0).weights(duals())
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum(-2), torch.full((2, 3, 5), 3.0, dtype=torch.float64))
    logs = weights.log() * 3 / 4
    torch.testing.assert_close(logs - logs[..., :1, :], duals() - duals()[..., :1, :])
    # Large duals do not overflow.
    assert Simplex().weights(duals(1e4, torch.float32)).isfinite().all()


def test_near_uniform_weights_change_by_as_much_as_their_dual():
    small_duals = duals(1e-6)
    small_duals = small_duals - small_duals.mean(-2, keepdim=True)
    torch.testing.assert_close(Simplex(3.0).weights(small_duals), 3 / 4 + small_duals, rtol=0, atol=1e-11)


@pytest.mark.parametrize("mirror", [QNorm(4.0), QNorm(2.5), Simplex(2.0)], ids=str)
def test_derivatives_equal_finite_differences_twice(mirror):
    dual = duals()[0, :1].requires_grad_()
    assert torch.autograd.gradcheck(mirror.weights, (dual,))
    assert torch.autograd.gradgradcheck(mirror.weights, (dual,))


def test_only_forgetting_to_uniform_weights_decays_the_whole_dual():
    assert [forgets_all(m) for m in (Identity(), QNorm(), Simplex(), Simplex(1.0, "uniform"))] == [
        False,
        False,
        False,
        True,
    ]


def test_impossible_mirrors_are_named():
    for q in (1.5, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"q={q}: must be at least 2 and finite"):
            QNorm(q)
    for total in (0.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"total={total}: must be positive and finite"):
            Simplex(total)
    with pytest.raises(ValueError, match="forgets_to='zero'; choose from born, uniform"):
        Simplex(1.0, "zero")  # pyright: ignore[reportArgumentType]
