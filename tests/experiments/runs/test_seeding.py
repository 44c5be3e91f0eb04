"""No two parts of an experiment, and no two experiments, share their episodes."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.runs.seeding import derive_seed


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_rows_of_neighbouring_experiments_and_of_evaluation_do_not_meet(seed, apart):
    rows = 1024
    firsts = [
        derive_seed(s, purpose)
        for s in (seed, seed + apart)
        for purpose in ("weights", "sampling", "evaluation")
    ]
    assert all(0 <= first < 2**31 for first in firsts)
    # Rows are seeded first, first + 1, ...: two batches meet only if their firsts are closer than that.
    close = sum(abs(a - b) < rows for a, b in combinations(firsts, 2))
    assert close <= 1


def test_the_same_experiment_gets_the_same_seeds():
    assert derive_seed(3, "sampling") == derive_seed(3, "sampling") != derive_seed(3, "evaluation")
