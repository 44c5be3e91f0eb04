"""What goes into chunks of `TitansMAC` and comes out: which numbers are taken, and how they may lie."""

import pytest
import torch

from scrubjay.memory.titans import context


@pytest.mark.parametrize(("fields", "count"), [({}, 1), ({"depth": 2}, 0), ({"norm": True}, 0)])
def test_the_hand_is_asked_only_where_it_has_an_answer(trial, monkeypatch, fields, count):
    drawn = trial([5], 9, 0.1, 0, dim=8, chunk_size=4, **fields)
    calls, forward = [], context.Forward
    monkeypatch.setattr(context, "Forward", lambda *args: (calls.append(args), forward(*args))[1])
    drawn.run()
    assert len(calls) == count
    with torch.autocast("cpu", dtype=torch.bfloat16):
        drawn.run()
    drawn.module.bfloat16()
    drawn.module(drawn.x.bfloat16(), drawn.module.initial_state(3), drawn.start)
    assert len(calls) == count


def test_a_segment_of_single_precision_is_that_of_double(trial):
    drawn = trial([5], 20, 0.1, 1, dim=16, chunk_size=4)
    expected, _ = drawn.module(drawn.x, drawn.state, drawn.start)
    state = {n: v.float() if v.is_floating_point() else v for n, v in drawn.state.items()}
    found, _ = drawn.module.float()(drawn.x.float(), state, drawn.start)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_a_state_of_strided_views_is_taken(trial):
    drawn = trial([5], 9, 0.1, 2, dim=8, chunk_size=4)
    expected, _ = drawn.module(drawn.x, drawn.state, drawn.start)
    strided = {
        n: torch.stack([v, v], dim=-1)[..., 0] if v.is_floating_point() else v for n, v in drawn.state.items()
    }
    x = drawn.x.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(drawn.module(x, strided, drawn.start)[0], expected)
