"""Tests of the neural memories with `bound_steps=False`: stable at their defaults, and they train."""

import itertools
from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.titans.lmm import Titans

NAMES = sorted(name for name in memory.list_memories() if issubclass(type(memory.make(name, dim=8)), Titans))
STEPS = 640
MATRIX = pytest.mark.matrix


def streams(dim: int) -> torch.Tensor:
    """Return a row of noise, a row of four inputs in random order, and a row with one constant input."""
    noise, four, one = torch.randn(STEPS, dim), torch.randn(4, dim), torch.randn(1, dim)
    return torch.stack([noise, four[torch.randint(4, (STEPS,))], one.expand(STEPS, dim)])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("autocast", [False, pytest.param(True, marks=MATRIX)], ids=["float32", "autocast"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_memory_without_bounds_stays_bounded_at_its_defaults(name, depth, autocast):
    for seed, (dim, heads) in itertools.product(range(2), [(8, 1), (16, None), (64, 1)]):
        torch.manual_seed(seed)
        module = memory.make(name, dim=dim, num_heads=heads, depth=depth, bound_steps=False)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            y, state = module(streams(dim), module.initial_state(3))
        assert y.isfinite().all()
        assert y.abs().max() < 20
        assert state["delta_0"].any()
        assert state["delta_0"].abs().max() < 2


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "titans" else MATRIX) for name in NAMES]
)
def test_training_a_memory_without_bounds_reduces_its_loss(name, depth, autocast):
    for seed, dim in enumerate([8, 16]):
        torch.manual_seed(seed)
        module = memory.make(name, dim=dim, depth=depth, bound_steps=False)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        x = torch.randn(1, 528, dim)
        losses = []
        for _ in range(6):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                y, _ = module(x, module.initial_state(1))
            loss = (y[:, 1:] - x[:, :-1]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            assert all(p.grad is None or p.grad.isfinite().all() for p in module.parameters())
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("fields", "largest"), [({}, 0.5), ({"depth": 2}, 0.2), ({"norm": True}, 0.2), ({"chunk_size": 1}, 0.5)]
)
def test_a_step_with_which_a_memory_cannot_train_is_refused(fields, largest):
    with pytest.raises(
        ValueError, match=f"max_step=1.0: must be above 0 and at most {largest} with bound_steps"
    ):
        memory.make("titans", dim=64, bound_steps=False, max_step=1.0, **fields)
    torch.manual_seed(0)
    module: Any = memory.make("titans", dim=64, num_heads=1, bound_steps=False, max_step=largest, **fields)
    x = torch.randn(1, 1, 64).expand(2, STEPS, 64)
    with torch.no_grad():
        assert module(x, module.initial_state(2))[1]["delta_0"].abs().max() < 100
        if fields == {"depth": 2}:
            object.__setattr__(module.layers[0].memory.config, "max_step", 1.0)
            assert not module(x, module.initial_state(2))[1]["delta_0"].isfinite().all()


def test_defaults_of_the_step_sizes_depend_on_the_bounds_and_not_on_the_chunk():
    for chunk_size in (1, 4, 64):
        for bound_steps, largest in ((True, 1.0), (False, 0.1)):
            config: Any = memory.make_config("titans", dim=8, chunk_size=chunk_size, bound_steps=bound_steps)
            assert config.max_token_step * chunk_size == pytest.approx(largest)
