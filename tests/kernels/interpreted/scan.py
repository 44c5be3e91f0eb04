"""The Triton kernels of the scan under the interpreter, compared with the reference."""

import functools
import math
from typing import Any

import pytest
import torch

from scrubjay.kernels import elementwise, scan
from scrubjay.kernels.elementwise import gpu

TENSORS = ("decay", "value", "state")


def draw(time=9, batch=2, width=3, starts=0.2, seed=0, pairs=False) -> dict[str, Any]:
    """Return arguments of a scan."""
    generator = torch.Generator().manual_seed(seed)
    ends = (width, 2) if pairs else (width,)
    return {
        "decay": torch.rand(batch, time, *ends, generator=generator) - 0.3,
        "value": torch.randn(batch, time, *ends, generator=generator),
        "state": torch.randn(batch, *ends, generator=generator),
        "start": torch.rand(batch, time, generator=generator) < starts,
        "pairs": pairs,
    }


def outcome(arguments: dict[str, Any], implementation: Any) -> list[torch.Tensor]:
    """Return all states, the last one, and the gradients of a weighted sum of both."""
    fresh = arguments | {name: arguments[name].detach().requires_grad_() for name in TENSORS}
    result = scan(**fresh, implementation=implementation)
    output_grads = [torch.linspace(-1, 1, x.numel()).view_as(x) for x in result]
    grads = torch.autograd.grad(result, [fresh[name] for name in TENSORS], output_grads)
    return [*(x.detach() for x in result), *grads]


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(
    "sizes", [{}, {"starts": 0.0}, {"time": 1}, {"time": 4, "width": 130, "batch": 1}, {"starts": 0.7}]
)
def test_values_and_gradients_equal_the_definition(sizes, pairs):
    arguments = draw(**sizes, pairs=pairs)
    torch.testing.assert_close(outcome(arguments, "triton"), outcome(arguments, "reference"))
    arguments["start"] = None
    torch.testing.assert_close(outcome(arguments, "triton"), outcome(arguments, "reference"))


@pytest.mark.usefixtures("poison_memory")
@pytest.mark.parametrize("pairs", [False, True])
def test_a_decay_of_all_steps_is_that_of_each(pairs):
    arguments = draw(pairs=pairs)
    arguments["decay"] = arguments["decay"][0, 0]
    torch.testing.assert_close(outcome(arguments, "triton"), outcome(arguments, "reference"))


@pytest.mark.parametrize("pairs", [False, True])
def test_poison_ends_with_its_episode(pairs):
    arguments = draw(12, starts=0.0, pairs=pairs)
    arguments["start"][:, 7] = True
    right = outcome(arguments, "triton")
    arguments["value"][0, 3] = math.nan
    result = outcome(arguments, "triton")
    torch.testing.assert_close(result[0][:, 7:], right[0][:, 7:])
    torch.testing.assert_close(result[1], right[1])
    torch.testing.assert_close(result[2][:, 7:], right[2][:, 7:])
    assert result[0][0, 3:7].isnan().all()


def test_only_one_derivative_in_reverse_mode_is_supported():
    arguments = draw()
    value = arguments.pop("value").requires_grad_()

    def run(value):
        return scan(value=value, **arguments, implementation="triton")[0]

    with pytest.raises(NotImplementedError, match="differentiable once"):
        torch.autograd.grad(run(value).sum(), value, create_graph=True)
    with pytest.raises(ValueError, match=r"torch\.func"):
        torch.func.vmap(run)(value[None].detach())


def test_strided_and_half_precision_inputs_are_supported():
    arguments = draw()
    right = outcome(arguments, "triton")
    strided_tensors = {
        n: arguments[n].transpose(0, 1).contiguous().transpose(0, 1) for n in ("decay", "value")
    }
    torch.testing.assert_close(outcome(arguments | strided_tensors, "triton"), right)
    half = {name: arguments[name].bfloat16() for name in TENSORS}
    states, _ = scan(**arguments | half, implementation="triton")
    assert states.dtype == torch.float32


@functools.cache
def reference_calls() -> list[tuple[dict[str, Any], list[torch.Tensor]]]:
    """Return calls on which every mutation gives a wrong result, and their expected results."""
    calls = [draw(7, seed=7, pairs=pairs) for pairs in (False, True)]
    return [(call, outcome(call, "reference")) for call in calls]


def errors() -> list[float]:
    """Return the largest error of every tensor of these calls."""
    return [
        float((x - y).abs().max())
        for call, right in reference_calls()
        for x, y in zip(outcome(call, "triton"), right, strict=True)
    ]


MUTATIONS = [
    ("tl.where(is_start, value, decay * real + value)", "decay * real + value"),
    (
        "decay * real - decay_imaginary * imaginary + value",
        "decay * real + decay_imaginary * imaginary + value",
    ),
    ("value_imaginary, decay_imaginary * real", "value_imaginary, -decay_imaginary * real"),
    ("tl.where(is_start, 0.0, real * previous)", "real * previous"),
    ("real = tl.where(is_start, 0.0, real * decay)", "real = real * decay"),
    ("before = states_ptr + offset - D * STEP", "before = states_ptr + offset"),
    ("real * previous + imaginary * previous_imaginary", "real * previous - imaginary * previous_imaginary"),
    ("imaginary * previous - real * previous_imaginary", "imaginary * previous + real * previous_imaginary"),
    ("real * decay + imaginary * decay_imaginary", "real * decay - imaginary * decay_imaginary"),
    ("imaginary * decay - real * decay_imaginary)", "imaginary * decay + real * decay_imaginary)"),
]


def test_the_right_kernel_passes_where_wrong_ones_are_caught():
    assert max(errors()) < 1e-5


@pytest.mark.parametrize(("right", "wrong"), MUTATIONS)
def test_a_wrong_kernel_is_caught(right, wrong, mutate_module, monkeypatch):
    monkeypatch.setattr(elementwise, "gpu", mutate_module(gpu, right, wrong))
    assert any(math.isnan(error) or error > 1e-3 for error in errors())
