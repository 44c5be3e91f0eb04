"""Fixtures that run segments of Titans in float64, with custom and with plain backward passes."""

from collections.abc import Callable
from typing import Any, cast

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.titans.lmm import Titans


class Trial:
    """Module with the state of earlier segments, and a segment to run."""

    def __init__(
        self, lengths: list[int], time: int, rate: float, seed: int, name: str = "titans_mac", **fields: Any
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        self.module = cast(Titans, memory.make(name, **fields)).double()
        for parameter in self.module.parameters():
            torch.nn.init.normal_(parameter, std=0.4)
        self.state = self.module.initial_state(3)
        for length in lengths:
            x, start = self._draw(length, rate, generator)
            with torch.no_grad():
                _, self.state = self.module(x, self.state, start)
        self.x, self.start = self._draw(time, rate, generator)

    def _draw(self, time: int, rate: float, generator) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(3, time, self.module.dim, generator=generator, dtype=torch.float64)
        return x, torch.rand(3, time, generator=generator) < rate

    def run(self) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return outputs, surprises and the next state, and the leaves of the gradients."""
        x = self.x.clone().requires_grad_()
        state = {n: v.clone().requires_grad_(v.is_floating_point()) for n, v in self.state.items()}
        y, surprise, after = self.module.segment_with_surprise(x, state, self.start)
        state_leaves = {name: value for name, value in state.items() if value.requires_grad}
        return {"y": y, "surprise": surprise} | after, {"x": x} | state_leaves | dict(
            self.module.named_parameters()
        )

    def gradients(self, order: int = 1, outputs: str = "") -> dict[str, torch.Tensor]:
        """Return gradients of this order of a sum of all outputs whose names start with `outputs`."""
        results, leaves = self.run()
        results = {n: v for n, v in results.items() if n != "surprise" and v.is_floating_point()}
        values = [value for name, value in results.items() if name.startswith(outputs)]
        loss = torch.stack([(v * torch.linspace(-1, 1, v.numel()).view_as(v)).sum() for v in values]).sum()
        grads = torch.autograd.grad(
            loss, list(leaves.values()), create_graph=order > 1, materialize_grads=True
        )
        for _ in range(order - 1):
            loss = torch.stack([grad.square().sum() for grad in grads]).sum()
            grads = torch.autograd.grad(
                loss, list(leaves.values()), create_graph=True, materialize_grads=True
            )
        return dict(zip(leaves, grads, strict=True))


@pytest.fixture(scope="session")
def trial() -> type[Trial]:
    """Return the class `Trial`."""
    return Trial


@pytest.fixture(scope="session")
def plainly() -> Callable[..., Any]:
    """Return a function that calls another with all custom backward passes disabled."""

    def call(function, *args, **options):
        with pytest.MonkeyPatch.context() as patch:
            for module in ("mac", "attention"):
                patch.setattr(f"scrubjay.memory.titans.{module}.supports_custom_backward", lambda *_: False)
            return function(*args, **options)

    return call


@pytest.fixture(scope="session")
def close() -> Callable[..., None]:
    """Return a function that compares results by name."""

    def compare(results, expected, tolerance=1e-9):
        assert results.keys() == expected.keys()
        for name, expected_value in expected.items():
            torch.testing.assert_close(
                results[name],
                expected_value,
                rtol=tolerance,
                atol=tolerance,
                msg=lambda message, n=name: f"{n}: {message}",
            )

    return compare
