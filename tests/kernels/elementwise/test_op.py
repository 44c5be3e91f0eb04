"""Scan compared with its reference: values, gradients of any order, episodes, and non-finite numbers."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import scan

NAMES = ("decay", "value", "state")


def draw(
    time=13, batch=2, width=(3,), starts=0.2, seed=0, pairs=False, dtype=torch.float64, largest=1.0
) -> dict[str, Any]:
    """Return random arguments of a scan, with decays of at most `largest` in size."""
    generator = torch.Generator().manual_seed(seed)
    ends = (*width, 2) if pairs else width

    def normal(*shape):
        return torch.randn(*shape, *ends, generator=generator, dtype=torch.float64).to(dtype)

    decay = normal(batch, time)
    size = decay.norm(dim=-1, keepdim=True) if pairs else decay.abs()
    return {
        "decay": largest * decay * size.tanh() / size,
        "value": normal(batch, time),
        "state": normal(batch),
        "start": torch.rand(batch, time, generator=generator) < starts,
        "pairs": pairs,
    }


def outcome(arguments, implementation):
    """Return all states, the last one, and the gradients of a weighted sum of both."""
    fresh = arguments | {name: arguments[name].detach().requires_grad_() for name in NAMES}
    result = dict(zip(("states", "after"), scan(**fresh, implementation=implementation), strict=True))
    output_grads = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in result.values()]
    grads = torch.autograd.grad(list(result.values()), [fresh[name] for name in NAMES], output_grads)
    return {name: x.detach() for name, x in result.items()} | dict(zip(NAMES, grads, strict=True))


def assert_near(arguments, **tolerance):
    torch.testing.assert_close(outcome(arguments, "torch"), outcome(arguments, "reference"), **tolerance)


@given(
    time=st.integers(2, 40),
    batch=st.integers(1, 3),
    width=st.sampled_from([(), (1,), (3,), (2, 2)]),
    starts=st.sampled_from([0.0, 0.1, 0.9]),
    pairs=st.booleans(),
    largest=st.sampled_from([0.5, 1.0, 1.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_blocks_equal_the_definition(**sizes):
    assert_near(draw(**sizes))


@pytest.mark.parametrize("pairs", [False, True])
def test_a_long_scan_in_float32_is_near_one_in_float64(pairs):
    arguments = draw(2000, pairs=pairs, width=(5,), starts=0.001)
    single = {n: x.float() if n in NAMES else x for n, x in arguments.items()}
    result, right = outcome(single, "torch"), outcome(arguments, "reference")
    for name, x in right.items():
        assert float((result[name] - x).norm() / x.norm()) < 1e-6, name


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("cut", [0, 1, 5, 12, 13])
def test_a_cut_anywhere_changes_nothing(cut, pairs):
    arguments = draw(pairs=pairs)
    whole, last = scan(**arguments)
    parts = [
        {name: arguments[name][:, where] for name in ("decay", "value", "start")}
        for where in (slice(cut), slice(cut, None))
    ]
    first, state = scan(**parts[0], state=arguments["state"], pairs=pairs)
    second, after = scan(**parts[1], state=state, pairs=pairs)
    torch.testing.assert_close(torch.cat([first, second], dim=1), whole)
    torch.testing.assert_close(after, last)


@pytest.mark.parametrize("pairs", [False, True])
def test_constant_input_has_a_closed_form(pairs):
    decay = torch.tensor([0.6, 0.7] if pairs else 0.9, dtype=torch.float64)
    states, _ = scan(
        decay.expand(1, 50, *decay.shape),
        torch.ones_like(decay).expand(1, 50, *decay.shape),
        torch.zeros_like(decay)[None],
        pairs=pairs,
    )
    a, b = (complex(*decay.tolist()), 1 + 1j) if pairs else (decay.item(), 1)
    for t in range(50):
        right = b * (1 - a ** (t + 1)) / (1 - a)
        result = complex(*states[0, t].tolist()) if pairs else states[0, t].item()
        assert result == pytest.approx(right)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", NAMES)
def test_poison_ends_with_its_episode_in_both_directions(where, poison, pairs):
    arguments = draw(16, starts=0.0, pairs=pairs)
    arguments["start"][:, 9] = True
    right = outcome(arguments, "torch")
    arguments[where][(0,) if where == "state" else (0, 4)] = poison
    result = outcome(arguments, "torch")
    torch.testing.assert_close(result["states"][:, 9:], right["states"][:, 9:])
    torch.testing.assert_close(result["after"], right["after"])
    for name in ("decay", "value"):
        torch.testing.assert_close(result[name][:, 9:], right[name][:, 9:])
    torch.testing.assert_close(result["states"][1], right["states"][1])
    assert not result["states"][0, 4:9].isfinite().all()
    # No gradient flows back across a start.
    arguments = draw(16, starts=0.0, pairs=pairs)
    arguments["start"][:, 9] = True
    leaves = {name: arguments[name].requires_grad_() for name in NAMES}
    states, _ = scan(**arguments)
    output_grads = torch.zeros_like(states)
    output_grads[:, 12] = math.nan
    grads = torch.autograd.grad(states, list(leaves.values()), output_grads)
    assert not grads[2].any()
    assert all(not x[:, :9].any() for x in grads[:2])


def test_decays_above_one_do_not_overflow_where_no_state_does():
    arguments = draw(60, batch=1, starts=0.0, largest=1.0, dtype=torch.float32)
    arguments["decay"] = torch.full_like(arguments["decay"], 1e20)
    arguments["value"], arguments["state"] = (torch.zeros_like(arguments[n]) for n in ("value", "state"))
    states, after = scan(**arguments)
    assert not states.any()
    assert not after.any()


@pytest.mark.one_in(2, rest="slow")
@pytest.mark.parametrize("pairs", [False, True])
def test_gradients_of_any_order_are_those_of_finite_differences(pairs):
    arguments = draw(6, pairs=pairs, width=(2,), starts=0.3)
    leaves = [arguments[name].requires_grad_() for name in NAMES]

    def run(*leaves):
        return scan(*leaves, start=arguments["start"], pairs=pairs)

    assert torch.autograd.gradcheck(run, leaves, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


def test_vmap_works():
    arguments = draw(dtype=torch.float32)
    start, leaves = arguments["start"], tuple(arguments[name] for name in NAMES)

    def run(*leaves):
        return scan(*leaves, start=start)[0]

    many = tuple(torch.stack([x, 2 * x]) for x in leaves)
    result = torch.func.vmap(run)(*many)
    torch.testing.assert_close(result, torch.stack([run(*(x[i] for x in many)) for i in range(2)]))


def test_it_compiles_as_one_graph():
    arguments = draw(dtype=torch.float32)
    leaves = [arguments[name] for name in NAMES]

    def run(*leaves):
        return scan(*leaves, start=arguments["start"])[0]

    compiled_run = torch.compile(run, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled_run(*leaves), run(*leaves))


def test_states_are_kept_in_float32_at_least_and_autocast_changes_nothing():
    arguments = draw(dtype=torch.bfloat16)
    states, after = scan(**arguments)
    assert states.dtype == after.dtype == torch.float32
    arguments["state"] = arguments["state"].double()
    assert scan(**arguments)[1].dtype == torch.float64
    arguments = draw(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = scan(**arguments)
    torch.testing.assert_close(result, scan(**arguments), rtol=0, atol=0)


def test_no_steps_and_no_rows():
    for arguments in (draw(time=0), draw(batch=0), draw(width=(0,))):
        states, after = scan(**arguments)
        assert states.shape == arguments["value"].shape
        assert after.shape == arguments["state"].shape
    assert torch.equal(scan(**draw(time=0))[1], draw(time=0)["state"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": torch.zeros(2, 12, 3)}, r"decay has shape \(2, 12, 3\); expected \(2, 13, 3\)"),
        ({"state": torch.zeros(3)}, r"state has shape \(3,\); expected \(2, 3\)"),
        ({"start": torch.zeros(2, 13)}, "start has dtype torch.float32; expected torch.bool"),
        ({"pairs": True}, "expected a last dim of 2 with pairs=True"),
        ({"implementation": "best"}, "implementation='best'; choose from"),
    ],
)
def test_invalid_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        scan(**draw() | change)


@given(
    time=st.integers(1, 20),
    width=st.sampled_from([(), (3,), (2, 70)]),
    starts=st.sampled_from([0.0, 0.1, 0.9]),
    pairs=st.booleans(),
    largest=st.sampled_from([0.5, 1.5]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_decay_of_all_steps_is_that_of_each(time, width, starts, pairs, largest, seed):
    """Cover narrow inputs (run by blocks) and wide ones (run step by step)."""
    arguments = draw(time, 2, width, starts, seed, pairs, largest=largest)
    one = arguments["decay"][0, 0]
    result = outcome(arguments | {"decay": one}, "torch")
    right = outcome(arguments | {"decay": one.expand_as(arguments["value"])}, "reference")
    torch.testing.assert_close(result.pop("decay"), right.pop("decay").sum((0, 1)))
    torch.testing.assert_close(result, right)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("width", [2, 80])
def test_gradients_of_a_decay_of_all_steps_are_those_of_finite_differences(width, pairs):
    arguments = draw(4, batch=4, pairs=pairs, width=(width,), starts=0.3)
    leaves = [arguments[name].requires_grad_() for name in NAMES[1:]]
    decay = arguments["decay"][0, 0].detach().requires_grad_()

    def run(decay, *leaves):
        return scan(decay, *leaves, start=arguments["start"], pairs=pairs)

    assert torch.autograd.gradcheck(run, (decay, *leaves), check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (decay, *leaves), fast_mode=True)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["value", "state"])
def test_poison_ends_with_its_episode_where_decays_are_those_of_all_steps(where, poison):
    arguments = draw(16, starts=0.0, width=(200,))
    arguments["start"][:, 9] = True
    arguments["decay"] = arguments["decay"][0, 0]
    right = outcome(arguments, "torch")
    arguments[where][(0,) if where == "state" else (0, 4)] = poison
    result = outcome(arguments, "torch")
    torch.testing.assert_close(result["states"][:, 9:], right["states"][:, 9:])
    torch.testing.assert_close(result["states"][1], right["states"][1])
    torch.testing.assert_close(result["value"][:, 9:], right["value"][:, 9:])
    assert not result["states"][0, 4:9].isfinite().all()
