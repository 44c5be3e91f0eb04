"""Tests of the custom backward pass of window attention against plain operations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.memory.titans import window

SEGMENTS = {
    "name": st.sampled_from(["titans_mag", "titans_mal"]),
    "dim": st.sampled_from([8, 12, 24]),
    "window": st.sampled_from([2, 3, 8, 40]),
    "num_persistent": st.sampled_from([0, 1, 4]),
    "attention_heads": st.sampled_from([None, 1, 2]),
    "num_layers": st.sampled_from([1, 2]),
    "time": st.sampled_from([2, 7, 40, 64]),
    "lengths": st.lists(st.sampled_from([1, 3, 50]), max_size=2),
    "rate": st.sampled_from([0, 0.05, 0.3]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(**SEGMENTS)
def test_outputs_and_gradients_are_those_of_plain_operations(trial, plainly, close, **fields):
    case = trial(chunk_size=4, **fields)
    close(case.run()[0], plainly(case.run)[0], 1e-10)
    close(case.gradients(), plainly(case.gradients))


def test_the_custom_pass_runs_only_where_it_is_supported(trial, monkeypatch):
    calls, forward = [], window._forward
    monkeypatch.setattr(window, "_forward", lambda *args: (calls.append(args), forward(*args))[1])
    case = trial([], 9, 0.1, 0, "titans_mag", dim=8, num_layers=2)
    case.run()
    assert len(calls) == 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        case.run()
    # Heads of an odd width have no pairs, and long segments are read in blocks.
    trial([], 9, 0.1, 0, "titans_mag", dim=22, attention_heads=2).run()
    trial([], 65, 0.1, 0, "titans_mag", dim=8).run()
    case.module.bfloat16()(case.x.bfloat16(), case.module.initial_state(3), case.start)
    assert len(calls) == 2


@pytest.mark.parametrize("order", [2, 3])
def test_further_derivatives_go_the_plain_way(trial, plainly, close, order):
    case = trial([3], 6, 0.2, 3, "titans_mal", dim=8, chunk_size=4, window=3, num_persistent=1)
    close(case.gradients(order), plainly(case.gradients, order), 1e-8)


@pytest.mark.parametrize("output", ["y", "keys_0", "values_0"])
def test_gradients_of_one_output_alone(trial, plainly, close, output):
    case = trial([3], 11, 0.1, 5, "titans_mag", dim=8, window=6)
    close(case.gradients(outputs=output), plainly(case.gradients, outputs=output))


def test_gradients_come_again_and_transforms_of_functions_pass(trial):
    case = trial([3], 11, 0.1, 6, "titans_mag", dim=8, chunk_size=4, window=6)

    def loss(x):
        return case.module(x, case.state, case.start)[0].square().sum()

    x = case.x.clone().requires_grad_()
    y = loss(x)
    expected, again = (torch.autograd.grad(y, x, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(expected, again)
    torch.testing.assert_close(torch.func.grad(loss)(case.x), expected)
    direction = torch.ones_like(expected)
    jvp = torch.func.jvp(loss, (case.x,), (direction,))
    torch.testing.assert_close(jvp[1], (expected * direction).sum())
