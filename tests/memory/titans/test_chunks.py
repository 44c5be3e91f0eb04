"""Tests of the inputs of `TitansMAC` segments: supported dtypes, precision and strides."""

import pytest
import torch

from scrubjay.memory.titans import backward


@pytest.mark.parametrize(("fields", "count"), [({}, 1), ({"depth": 2}, 0), ({"norm": True}, 0)])
def test_the_custom_pass_runs_only_where_it_is_supported(trial, monkeypatch, fields, count):
    case = trial([5], 9, 0.1, 0, dim=8, chunk_size=4, **fields)
    calls, forward = [], backward.Forward
    monkeypatch.setattr(backward, "Forward", lambda *args: (calls.append(args), forward(*args))[1])
    case.run()
    assert len(calls) == count
    with torch.autocast("cpu", dtype=torch.bfloat16):
        case.run()
    case.module.bfloat16()
    case.module(case.x.bfloat16(), case.module.initial_state(3), case.start)
    assert len(calls) == count


def test_a_segment_of_single_precision_is_that_of_double(trial):
    case = trial([5], 20, 0.1, 1, dim=16, chunk_size=4)
    expected, _ = case.module(case.x, case.state, case.start)
    state = {n: v.float() if v.is_floating_point() else v for n, v in case.state.items()}
    result, _ = case.module.float()(case.x.float(), state, case.start)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_state_of_strided_views_is_taken(trial):
    case = trial([5], 9, 0.1, 2, dim=8, chunk_size=4)
    expected, _ = case.module(case.x, case.state, case.start)
    strided_state = {
        n: torch.stack([v, v], dim=-1)[..., 0] if v.is_floating_point() else v for n, v in case.state.items()
    }
    x = case.x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(case.module(x, strided_state, case.start)[0], expected)
