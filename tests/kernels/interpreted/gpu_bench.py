"""Check that precedes the GPU benchmark, on the CPU under the interpreter."""

import pytest
import torch

from scrubjay.experiments.bench import gpu
from scrubjay.kernels import retrieval
from scrubjay.kernels.retrieval import gpu as retrieval_gpu
from scrubjay.kernels.search import gpu as search_gpu


# The tests of each op have tighter bounds for half precision.
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.float16, marks=pytest.mark.slow)])
def test_right_kernels_pass_the_gate(dtype):
    checks = list(gpu.check("cpu", (dtype,)))
    assert len(checks) == 10
    assert all(0 < error < gpu.TOLERANCE[dtype] for _, _, error in checks)


def test_a_wrong_kernel_ends_the_run_before_anything_is_timed(monkeypatch, mutate_module):
    monkeypatch.setattr(
        retrieval, "gpu", mutate_module(retrieval_gpu, "mass = mass * decay + ", "mass = mass + ")
    )
    with pytest.raises(SystemExit, match=r"chunk_retrieval, joint in torch.float32: error .* nothing timed"):
        list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.parametrize("corrupt", [lambda grad: grad * float("nan"), torch.zeros_like])
def test_a_gradient_that_is_missing_or_not_a_number_ends_the_run_too(monkeypatch, corrupt):
    right = retrieval_gpu.backward

    def wrong(*arguments, **options):
        return {name: corrupt(grad) for name, grad in right(*arguments, **options).items()}

    monkeypatch.setattr(retrieval_gpu, "backward", wrong)
    with pytest.raises(SystemExit, match=r"chunk_retrieval, joint in torch\.float32"):
        list(gpu.check("cpu", (torch.float32,)))


@pytest.mark.parametrize("corrupt", [lambda scores: scores.half().float(), lambda scores: -scores])
def test_a_wrong_scan_ends_the_run_too(monkeypatch, corrupt):
    right = search_gpu.scores
    monkeypatch.setattr(search_gpu, "scores", lambda *tensors, **options: corrupt(right(*tensors, **options)))
    with pytest.raises(SystemExit, match=r"nearest in torch\.float16: .* nothing timed"):
        gpu._check_nearest("cpu", torch.float16)
