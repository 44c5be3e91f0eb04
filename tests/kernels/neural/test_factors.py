"""Factors of matrices' chunks: those of the rule, and their gradients by hand those of autograd."""

import pytest
import torch

from scrubjay.kernels.neural.chunk import coefficients_of
from scrubjay.kernels.neural.factors import Factors, Given, Segment


def draw(read_before_write):
    torch.manual_seed(0)
    shape = (3, 2, 5)
    learned = torch.rand(shape) < 0.8
    learned[0, 0, 1] = learned[1, 1, 2] = True
    logs = [(-torch.rand(shape, dtype=torch.float64) * 2).masked_fill(~learned, 0) for _ in range(2)]
    # One gate of each kind is shut, beyond the least that counts.
    logs[0][0, 0, 1] = logs[1][1, 1, 2] = -90
    nothing = torch.zeros(0)
    step = torch.zeros(*shape, 1)
    given = Given(nothing, nothing, nothing, step, logs[0], logs[1], nothing, nothing, nothing, nothing)
    return Segment(None, None, None, learned, read_before_write), given


@pytest.mark.parametrize("read_before_write", [True, False])
def test_factors_and_their_gradients_are_those_of_the_rule(read_before_write):
    segment, given = draw(read_before_write)
    gates = given.log_retention, given.log_momentum
    factors = Factors.of(*gates, segment.learned, read_before_write)
    logs = [x.clone().requires_grad_() for x in (given.log_retention, given.log_momentum)]
    rule = coefficients_of(logs[0], logs[1], segment.learned, read_before_write)
    ends = torch.stack([rule.end_retained, rule.end_kept], dim=-1)[..., 0, 0, :]
    expected = (rule.read_retained, rule.read_built, rule.end_mixed, rule.end_trace)
    found = (factors.read_retained, factors.read_built, factors.end_mixed, factors.end_trace)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other[..., 0])
    torch.testing.assert_close(factors.read_mixed, rule.read_mixed)
    torch.testing.assert_close(factors.ends, ends)
    torch.testing.assert_close(factors.end_built, rule.end_built[..., 0, 0])

    along = [torch.randn_like(x) for x in (*found[:2], factors.read_mixed, *found[2:], factors.ends)]
    along_built = torch.randn_like(factors.end_built)
    outputs = (*(x[..., 0] for x in expected[:2]), rule.read_mixed, *(x[..., 0] for x in expected[2:]), ends)
    of_ends = torch.zeros(*factors.ends.shape[:2], 2, 2, dtype=torch.float64)
    of_ends[..., 0, 0], of_ends[..., 1, 1], of_ends[..., 0, 1] = *along[5].unbind(-1), along_built
    wanted = torch.autograd.grad(
        [*outputs, rule.end_built[..., 0, 0]], [logs[1], logs[0]], [*along, along_built]
    )
    retained, built, mixed, end_mixed, trace = along[:5]
    by_hand = factors.backward(*gates, read_before_write, retained, built, mixed, end_mixed, trace, of_ends)
    torch.testing.assert_close(by_hand, list(wanted), rtol=1e-12, atol=1e-12)
