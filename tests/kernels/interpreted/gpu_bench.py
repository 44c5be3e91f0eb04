"""The check that gates the GPU benchmark, on the CPU under the interpreter."""

import pytest
import torch

from scrubjay.experiments.bench import gpu
from scrubjay.kernels import chunk_summary_triton, nearest_triton


def test_right_kernels_pass_the_gate():
    passed = list(gpu.check("cpu", (torch.float32, torch.float16)))
    assert len(passed) == 16
    assert all(0 < error < gpu.TOLERANCE[dtype] for _, dtype, error in passed)


@pytest.fixture
def _quick(monkeypatch):
    """Put the quick case of write_steps in the place of those that come before the summary's."""
    monkeypatch.setattr(gpu, "_retrieval_case", lambda device, combine: gpu._write_case(device))
    monkeypatch.setattr(gpu, "_sink_case", gpu._write_case)


@pytest.mark.usefixtures("_quick")
def test_a_wrong_kernel_ends_the_run_before_anything_is_timed(monkeypatch, mutated):
    wrong = mutated(chunk_summary_triton, "tl.maximum(count, 1).to(tl.float32)", "length")
    monkeypatch.setattr(chunk_summary_triton, "forward", wrong.forward)
    with pytest.raises(SystemExit, match=r"chunk_summary in torch.float32: error .* nothing timed"):
        list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.usefixtures("_quick")
def test_a_gradient_that_is_missing_or_not_a_number_ends_the_run_too(monkeypatch):
    right = chunk_summary_triton.backward
    for spoil in (lambda grad: grad * float("nan"), torch.zeros_like):
        monkeypatch.setattr(
            chunk_summary_triton, "backward", lambda *arguments, spoil=spoil: spoil(right(*arguments))
        )
        with pytest.raises(SystemExit, match=r"chunk_summary in torch\.float32"):
            list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.parametrize("spoil", [lambda scores: scores.half().float(), lambda scores: -scores])
def test_a_wrong_scan_ends_the_run_too(monkeypatch, spoil):
    right = nearest_triton.scores
    monkeypatch.setattr(nearest_triton, "scores", lambda *tensors, **more: spoil(right(*tensors, **more)))
    with pytest.raises(SystemExit, match=r"nearest in torch\.float16: .* nothing timed"):
        gpu._check_nearest("cpu", torch.float16)
