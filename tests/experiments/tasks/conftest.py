"""Fixture that takes a public environment through the commands of a run."""

import pytest

SIZES = ["--env.num-envs", 2, "--segment-length", 8, "--policy.memory.dim", 16]
SIZES += ["--learner.num-minibatches", 1]


@pytest.fixture
def train_resume_and_evaluate(here):
    """Return a function that trains an environment in the folder `run`, with further words of `train`."""

    def walk(name, *words):
        words = ["train", "ppo", "--env", name, *words, "--run-dir", "run", *SIZES]
        code, _, err = here(*words, "--total-steps", 64, "--eval-episodes", 0, "--quiet")
        assert code == 0, err
        code, _, err = here("resume", "run", "--total-steps", 96, "--quiet")
        assert code == 0, err
        code, out, err = here("eval", "run", "--episodes", 2)
        assert code == 0, err
        assert name in out

    return walk
