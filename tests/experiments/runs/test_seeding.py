"""Parts of an experiment, and different experiments, have seeds of their own."""

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.runs.config import derive_seed


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_environments_of_other_experiments_and_of_evaluation_share_no_seeds(seed, apart):
    num_envs = 1024
    firsts = [
        derive_seed(s, purpose)
        for s in (seed, seed + apart)
        for purpose in ("weights", "sampling", "evaluation")
    ]
    assert all(0 <= first < 2**31 for first in firsts)
    # Environments have seeds first, first + 1, ...: two batches share seeds only if their firsts are close.
    close = sum(abs(a - b) < num_envs for a, b in combinations(firsts, 2))
    assert close <= 1


def test_the_same_experiment_gets_the_same_seeds():
    assert derive_seed(3, "sampling") == derive_seed(3, "sampling") != derive_seed(3, "evaluation")
