"""The check that gates the GPU benchmark, on the CPU under the interpreter."""

import pytest
import torch

from scrubjay.experiments.bench import gpu
from scrubjay.kernels.search import gpu as search_gpu
from scrubjay.kernels.summary import gpu as summary_gpu


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
    wrong = mutated(summary_gpu, "tl.maximum(count, 1).to(tl.float32)", "length")
    monkeypatch.setattr(summary_gpu, "forward", wrong.forward)
    with pytest.raises(SystemExit, match=r"chunk_summary in torch.float32: error .* nothing timed"):
        list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.usefixtures("_quick")
def test_a_gradient_that_is_missing_or_not_a_number_ends_the_run_too(monkeypatch):
    right = summary_gpu.backward
    for spoil in (lambda grad: grad * float("nan"), torch.zeros_like):
        monkeypatch.setattr(summary_gpu, "backward", lambda *arguments, spoil=spoil: spoil(right(*arguments)))
        with pytest.raises(SystemExit, match=r"chunk_summary in torch\.float32"):
            list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.parametrize("spoil", [lambda scores: scores.half().float(), lambda scores: -scores])
def test_a_wrong_scan_ends_the_run_too(monkeypatch, spoil):
    right = search_gpu.scores
    monkeypatch.setattr(search_gpu, "scores", lambda *tensors, **more: spoil(right(*tensors, **more)))
    with pytest.raises(SystemExit, match=r"nearest in torch\.float16: .* nothing timed"):
        gpu._check_nearest("cpu", torch.float16)
