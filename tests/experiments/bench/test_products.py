"""Benchmarks whose peer is attention run on the fast path of torch's products, or say that they do not."""

import os
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

from scrubjay.experiments import bench

ROOT = Path(__file__).parents[3]
WITH_ATTENTION = ["kernels", "recurrences", "segments", "titans"]
WARNING = "torch's are too slow"


def run_benchmark(*arguments, **environment):
    command = [sys.executable, "-P", "-m", "scrubjay.experiments.bench.recurrences", *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)


def test_every_benchmark_with_attention_as_a_peer_takes_the_fast_path():
    sources = {
        path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "experiments/bench").glob("*.py")
    }
    with_peer = {name for name, source in sources.items() if "scaled_dot_product_attention" in source}
    assert with_peer - {"gpu"} == set(WITH_ATTENTION)
    for name in WITH_ATTENTION:
        module = import_module(f"scrubjay.experiments.bench.{name}")
        assert module.use_fast_products is bench.use_fast_products
        assert re.search(
            r'^if __name__ == "__main__":\n(.*\n)?    use_fast_products\(\)', sources[name], re.MULTILINE
        )


@pytest.mark.slow
def test_the_table_names_the_speeds_of_products():
    result = run_benchmark("--lengths", "8", "--rows", "1", "--rounds", "1")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| relative to attention |") == 1
    assert re.search(r"products: torch [1-9]\d*", result.stdout)


@pytest.mark.skipif(
    not (shutil.which("cc") and torch.backends.mkl.is_available()), reason="needs MKL and a C compiler"
)
def test_slow_products_start_the_benchmark_again_with_a_processor_that_mkl_takes_for_one_of_intel():
    code = """if True:
        import ctypes, sys
        from scrubjay.experiments import bench
        bench.measure_products = lambda: {"torch": 1.0, "oneDNN": 2.0}
        bench.use_fast_products()
        print(sys.argv[1:], ctypes.CDLL(None).mkl_serv_intel_cpu_true())
        sys.exit(3)"""
    command = [sys.executable, "-P", "-c", code, "--rows", "7"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (3, "['--rows', '7'] 1\n"), result.stderr


@pytest.mark.slow
def test_a_failure_of_the_benchmark_is_a_failure_of_the_command():
    result = run_benchmark("--lengths", "8", "--rows", "-1", "--rounds", "1")
    assert result.returncode == 1
    assert "-1" in result.stderr


@pytest.mark.parametrize(("mine", "slow"), [(100.0, True), (149.0, True), (151.0, False), (260.0, False)])
def test_products_far_below_the_other_library_are_slow(mine, slow, monkeypatch):
    monkeypatch.setattr(bench, "measure_products", lambda: {"torch": mine, "oneDNN": 200.0})
    assert (WARNING in bench.describe_products()) == slow


def test_without_a_second_library_there_is_nothing_to_compare_with(monkeypatch):
    monkeypatch.setattr(bench, "measure_products", lambda: {"torch": 100.0})
    assert bench.describe_products() == "GFLOP/s of float32 products: torch 100"
