"""The memory limit of untrusted runs, and the setting that its error names."""

from __future__ import annotations

import itertools
import logging
import resource
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

from scrubjay.experiments import RECIPES
from scrubjay.experiments.resources import (
    MEMORY_LIMIT,
    CPULimitError,
    available_bytes,
    check_memory_limit,
    check_processes,
    hide_warnings,
    limit_cpu,
    limit_memory,
)
from scrubjay.experiments.runs.ballet_probe import BalletProbeConfig
from scrubjay.experiments.runs.sequence import SequenceTaskConfig
from scrubjay.memory import make_config

from .extras import recipe_parameters


def test_the_setting_that_needs_most_memory_is_named():
    check_memory_limit({"a": MEMORY_LIMIT - 1, "b": 1})
    with pytest.raises(ValueError, match=r"^b=3: .* needs about 5\.0 GiB .* 2\.0 GiB; add --trust"):
        check_memory_limit({"a": MEMORY_LIMIT, "b=3": MEMORY_LIMIT + 2**30})


@pytest.mark.parametrize("name", recipe_parameters("ppo", "team"))
def test_every_recipe_fits_into_the_memory_limit(name):
    check_memory_limit(RECIPES[name]().rough_bytes())


@pytest.mark.parametrize(
    ("kind", "chunks", "sizes"),
    [(SequenceTaskConfig, 2**16, {"batch_rows": 1}), (BalletProbeConfig, 2**14, {})],
)
def test_evaluation_batches_count_like_training_batches(kind, chunks, sizes):
    memory = make_config("hcam", dim=8, num_chunks=chunks)
    with pytest.raises(ValueError, match=r"^memory=hcam of batch_.* tested: .* needs about .* GiB"):
        check_memory_limit(kind(memory=memory, **sizes).rough_bytes())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is no memory limit on a machine with a GPU")
def test_allocations_beyond_the_limit_fail_inside_the_context_alone():
    with limit_memory(2**27):
        assert np.ones(2**20).sum() == 2**20
        with pytest.raises(MemoryError):
            np.ones(2**26)
        with pytest.raises(RuntimeError, match="allocate memory"):
            torch.ones(2**26, dtype=torch.float64)
    assert np.ones(2**25).sum() == 2**25
    assert available_bytes() >= MEMORY_LIMIT


def loop():
    while True:
        pass


def test_cpu_time_is_limited_inside_the_context_alone():
    before = signal.getsignal(signal.SIGXCPU)
    with pytest.raises(CPULimitError, match="took more than 0 s of CPU time"), limit_cpu(0.1):
        loop()
    with limit_cpu(10**6):
        assert signal.getsignal(signal.SIGXCPU) != before
    with limit_cpu(float("inf")):
        assert signal.getsignal(signal.SIGXCPU) == before
    assert signal.getsignal(signal.SIGXCPU) == before
    assert not [thread for thread in threading.enumerate() if thread.name == "scrubjay-cpu-limit"]


def test_the_clock_of_cpu_time_stays_fine_under_a_limit():
    """RLIMIT_CPU would leave it with steps of 4 ms on Linux, also after the limit is lifted."""
    with limit_cpu(10**6):
        pass
    times = [time.process_time_ns() for _ in range(1000)]
    steps = [later - earlier for earlier, later in itertools.pairwise(times) if later > earlier]
    assert min(steps) < 1_000_000


def test_more_processes_than_the_machine_can_start_are_refused():
    check_processes(0)
    check_processes(8)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1000, hard))
    try:
        with pytest.raises(ValueError, match=r"env.num_envs=251: the open files, ulimit -n .* for 250 proc"):
            check_processes(251)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with pytest.raises(ValueError, match=r"env.num_envs=1,000,000,000: .* use fewer environments"):
        check_processes(10**9)


def test_warnings_of_one_logger_are_hidden_inside_the_block(caplog):
    logger, other = logging.getLogger("scrubjay.hidden"), logging.getLogger("scrubjay.shown")
    with hide_warnings(logger.name):
        logger.warning("first")
        other.warning("second")
    logger.warning("third")
    assert caplog.messages == ["second", "third"]


def test_the_peak_memory_of_a_process_does_not_include_that_of_its_parent():
    parent = bytearray(b"1") * 2**30
    lines = (
        "import scrubjay.experiments.resources as r",
        "block = bytearray(b'1') * 2**27",
        "print(r.peak_bytes())",
    )
    process = subprocess.run(
        [sys.executable, "-P", "-c", "; ".join(lines)], check=True, capture_output=True, text=True
    )
    assert 2**27 < int(process.stdout) < len(parent)
