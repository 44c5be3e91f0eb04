"""Tests of the custom forward pass of a segment against plain operations."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

SEGMENTS = {
    "dim": st.sampled_from([8, 12, 24]),
    "chunk_size": st.sampled_from([1, 2, 5, 8]),
    "num_persistent": st.sampled_from([0, 3]),
    "num_heads": st.sampled_from([1, 2]),
    "attention_heads": st.sampled_from([None, 1]),
    "read_before_write": st.booleans(),
    "time": st.sampled_from([1, 2, 7, 20]),
    "lengths": st.lists(st.sampled_from([1, 3, 8]), max_size=2),
    "rate": st.sampled_from([0, 0.05, 0.3]),
    "seed": st.integers(0, 1000),
}


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(**SEGMENTS)
def test_outputs_surprises_and_states_are_those_of_plain_operations(trial, plainly, close, **fields):
    case = trial(**fields)
    close(case.run()[0], plainly(case.run)[0], 1e-10)
