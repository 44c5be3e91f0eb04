"""The scan over arrays of numpy."""

import subprocess
import sys

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels.select import best


@settings(max_examples=50, deadline=None)
@given(
    scores=st.lists(st.sampled_from([-1.0, -0.0, 0.0, 0.5, 2.0, float("-inf")]), max_size=30),
    count=st.integers(1, 32),
)
def test_the_largest_are_those_of_a_stable_sort(scores, count):
    right = sorted(range(len(scores)), key=lambda row: -scores[row])[:count]
    assert best(np.array(scores), count).tolist() == right


def test_arrays_are_searched_without_torch():
    code = (
        "import sys, numpy as np; from scrubjay.kernels import nearest, row_scores; x = np.eye(3, "
        "dtype='f'); "
        "assert nearest(x, x, 1).rows.tolist() == [[0], [1], [2]]; row_scores(x, x, np.arange(2)); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False, timeout=600).returncode == 0
