"""Linear memory compared with its reference and with flash-linear-attention, and its properties."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.kernels import linear_memory, linear_memory_step

FLA = json.loads((Path(__file__).parent / "fla.json").read_text())
RULES = ["hebbian", "delta", "erase"]
TOKENS = ("query", "key", "value", "log_decay", "step", "erase_key")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    time=st.sampled_from([0, 1, 2, 3, 8, 17, 33, 65]),
    sizes=st.tuples(
        st.integers(1, 3), st.integers(1, 3), st.sampled_from([1, 4, 5]), st.sampled_from([1, 3])
    ),
    channel=st.booleans(),
    strength=st.sampled_from([0.0, 0.1, 3.0, 60.0]),
    starts=st.sampled_from([0, 0.1, 0.6]),
    rule=st.sampled_from(RULES),
    read_before_write=st.booleans(),
    chunk_size=st.sampled_from([1, 3, 16, 64]),
)
def test_values_and_gradients_equal_the_definition(
    draw,
    outcome,
    assert_same,
    seed,
    time,
    sizes,
    channel,
    strength,
    starts,
    rule,
    read_before_write,
    chunk_size,
):
    batch, heads, width, values = sizes
    options = {"rule": rule, "read_before_write": read_before_write, "chunk_size": chunk_size}
    arguments = draw(seed, batch, time, heads, width, values, channel, strength, starts, **options)
    expected = outcome(arguments, implementation="reference")
    assert_same(outcome(arguments, implementation="torch"), expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channel", [False, True])
def test_long_segments_of_large_batches_run_in_parts(draw, outcome, assert_same, rule, channel):
    for batch, time in ((1, 2100), (33, 64)):
        arguments = draw(1, batch, time, 2, 16, 16, channel, 0.1, 0.02, rule=rule)
        expected = outcome(arguments, implementation="reference")
        assert_same(outcome(arguments), expected, 1e-9)


@pytest.mark.parametrize("name", FLA["cases"])
@pytest.mark.parametrize("implementation", ["reference", "torch"])
def test_it_agrees_with_flash_linear_attention(name, implementation):
    case, sizes, tensors = FLA["cases"][name], FLA["sizes"], FLA["given"]
    batch, time, heads, width, values = (sizes[letter] for letter in "BTHKV")
    rows = (batch, time, heads)
    gates = {"head": rows, "channel": (*rows, width)}

    def tensor(numbers, *shape):
        return torch.tensor(numbers).view(shape)

    log_decay = torch.zeros(rows)
    if case["decay"] in gates:
        log_decay = tensor(tensors[case["decay"]], *gates[case["decay"]])
    start = torch.zeros(batch, time, dtype=torch.bool)
    start[:, FLA["starts"]] = True
    y, after = linear_memory(
        tensor(tensors["query"], *rows, width),
        tensor(tensors["key"], *rows, width),
        tensor(tensors["value"], *rows, values),
        log_decay,
        tensor(tensors["step"], *rows),
        tensor(tensors["state"], batch, heads, width, values),
        rule=case["rule"],
        start=start,
        implementation=implementation,
    )
    torch.testing.assert_close(y, tensor(case["y"], *rows, values), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        after, tensor(case["state"], batch, heads, width, values), rtol=1e-5, atol=1e-5
    )


def take_token(arguments, t):
    """Return the tensors of token `t`, by name."""
    return {name: arguments[name][:, t] for name in TOKENS if name in arguments}


def part(arguments, begin, end):
    """Return the arguments of the steps from `begin` to `end`."""
    return arguments | {
        name: value[:, begin:end]
        for name, value in arguments.items()
        if name in (*TOKENS, "start") and value is not None
    }


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    cut=st.integers(0, 21),
    channel=st.booleans(),
    rule=st.sampled_from(RULES),
    read_before_write=st.booleans(),
)
def test_a_sequence_may_be_cut_anywhere(draw, seed, cut, channel, rule, read_before_write):
    options = {"rule": rule, "read_before_write": read_before_write, "chunk_size": 8}
    arguments = draw(seed, time=21, channel=channel, starts=0.1, **options)
    y, after = linear_memory(**arguments)
    first, state = linear_memory(**part(arguments, 0, cut))
    second, last = linear_memory(**part(arguments, cut, 21) | {"state": state})
    torch.testing.assert_close(torch.cat([first, second], dim=1), y, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(last, after, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("read_before_write", [False, True])
def test_steps_equal_the_sequence(draw, rule, channel, read_before_write):
    options = {"rule": rule, "read_before_write": read_before_write}
    arguments = draw(2, time=9, channel=channel, **options)
    y, after = linear_memory(**arguments)
    new = out_state = arguments["state"]
    for t in range(9):
        token = take_token(arguments, t) | options | {"rule": arguments["rule"]}
        read, new = linear_memory_step(**token, state=new)
        again, out_state = linear_memory_step(**token, state=out_state, out=torch.empty_like(out_state))
        in_place = out_state.clone()
        assert torch.equal(read, again)
        torch.testing.assert_close(read, y[:, t], rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(new, after, rtol=1e-11, atol=1e-11)
    _, same = linear_memory_step(**token, state=in_place, out=in_place)
    assert same is in_place
    torch.testing.assert_close(same, linear_memory_step(**token, state=out_state)[1], rtol=0, atol=0)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10_000), begin=st.integers(1, 19), channel=st.booleans(), rule=st.sampled_from(RULES)
)
def test_an_episode_is_a_sequence_of_its_own(draw, outcome, seed, begin, channel, rule):
    arguments = draw(seed, 1, time=20, channel=channel, rule=rule)
    arguments["start"] = torch.arange(20)[None] == begin
    result = outcome(arguments)
    rest = part(arguments, begin, 20) | {"state": torch.zeros_like(arguments["state"]), "start": None}
    y, after = linear_memory(**rest)
    torch.testing.assert_close(result["y"][:, begin:], y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(result["after"], after, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channel", [False, True])
@pytest.mark.parametrize("read_before_write", [False, True])
def test_nothing_before_a_start_has_an_effect_behind_it(draw, rule, channel, read_before_write):
    """Outputs after the start are bit-identical, and no gradient flows across it."""
    options = {"rule": rule, "read_before_write": read_before_write}
    arguments = draw(3, time=20, channel=channel, strength=20.0, **options)
    arguments["start"] = (torch.arange(20) == 9).expand(2, -1)
    tokens = [name for name in TOKENS if name in arguments]
    names = [*tokens, "state"]
    result = []
    for factor in (1.0, 3.0):
        inputs = arguments | {name: arguments[name].clone() for name in names}
        inputs["state"] *= factor
        for name in names[:-1]:
            inputs[name][:, :9] *= factor
        inputs |= {name: inputs[name].requires_grad_() for name in names}
        y, after = linear_memory(**inputs)
        grads = torch.autograd.grad((y[:, 9:].sum() + after.square().sum()), [inputs[name] for name in names])
        assert not grads[-1].any()
        assert not any(grad[:, :9].any() for grad in grads[:-1])
        # The decay of the first step of an episode has no effect.
        assert not grads[3][:, 9].any()
        result.append([y[:, 9:], after, *(grad[:, 9:] for grad in grads[:-1])])
    assert all(torch.equal(*pair) for pair in zip(*result, strict=True))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 1e300])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("channel", [False, True])
def test_poison_ends_with_its_episode(draw, poison, rule, channel):
    for read_before_write in (False, True):
        options = {"rule": rule, "read_before_write": read_before_write}
        arguments = draw(4, 3, time=20, channel=channel, **options)
        arguments["start"] = (torch.arange(20) == 9).expand(3, -1)
        clean_y, clean_after = linear_memory(**arguments)
        for name in (*take_token(arguments, 0), "state"):
            inputs = arguments | {name: arguments[name].clone()}
            inputs[name][1, 7 if name != "state" else 0 : 9] = poison
            leaf = inputs["value"] = inputs["value"].clone().requires_grad_()
            y, after = linear_memory(**inputs)
            torch.testing.assert_close(y[:, 9:], clean_y[:, 9:], rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(after, clean_after, rtol=1e-12, atol=1e-12)
            torch.testing.assert_close(y[[0, 2]], clean_y[[0, 2]], rtol=1e-12, atol=1e-12)
            (grad,) = torch.autograd.grad(y[:, 9:].sum() + after.sum(), leaf)
            assert grad[:, 9:].isfinite().all()
            if name != "value":
                assert not grad[:, :9].nan_to_num().any()


@pytest.mark.parametrize("batch", [1, 2])
def test_non_finite_values_stay_in_their_episode(draw, batch):
    arguments = draw(5, batch, time=12)
    arguments["value"][0, 6, 1, 2] = math.nan
    y, after = linear_memory(**arguments)
    right_y, right_after = linear_memory(**arguments, implementation="reference")
    torch.testing.assert_close(y, right_y, equal_nan=True)
    torch.testing.assert_close(after, right_after, equal_nan=True)
    assert y[0, 6:, 1, 2].isnan().all()
    assert y.isnan().sum() == 6


@pytest.mark.parametrize("channel", [False, True])
def test_decays_of_any_strength_are_exact(draw, outcome, assert_same, channel):
    """Cover decays of zero and one, and weak decays after strong ones at full precision."""
    arguments = draw(6, time=64, channel=channel)
    noise = torch.rand(arguments["log_decay"].shape, generator=torch.Generator().manual_seed(1))
    strong = torch.where(noise < 0.1, -70.0, arguments["log_decay"] * 1e-3)
    arguments["log_decay"] = torch.where(noise > 0.95, -math.inf, torch.where(noise > 0.8, 0, strong))
    expected = outcome(arguments, implementation="reference")
    result = outcome(arguments)
    assert all(x.isfinite().all() for x in result.values())
    assert_same(result, expected)
    single = {name: x.float() if torch.is_tensor(x) else x for name, x in arguments.items()}
    for name, x in outcome(single).items():
        torch.testing.assert_close(x.double(), expected[name], rtol=1e-4, atol=1e-4)


def test_orthonormal_keys_are_recalled_after_one_write(draw):
    arguments = draw(7, time=8, width=8, channel=False)
    arguments["key"] = torch.linalg.qr(torch.randn(2, 2, 8, 8, dtype=torch.float64))[0].transpose(1, 2)
    arguments |= {"log_decay": torch.zeros(2, 8, 2).double(), "step": torch.ones(2, 8, 2).double()}
    _, after = linear_memory(**arguments)
    answers = torch.einsum("bhkv,bthk->bthv", after, arguments["key"])
    torch.testing.assert_close(answers, arguments["value"], rtol=1e-12, atol=1e-12)


def test_a_constant_input_has_a_closed_form(draw):
    """For the hebbian rule and decay l it is q.k v (1 - l^t) / (1 - l)."""
    arguments = draw(8, 1, time=50, heads=1, rule="hebbian")
    for name in ("query", "key", "value"):
        arguments[name] = arguments[name][:, :1].expand_as(arguments[name])
    arguments |= {"state": torch.zeros_like(arguments["state"]), "step": torch.ones_like(arguments["step"])}
    arguments["log_decay"] = torch.full_like(arguments["log_decay"], math.log(0.9))
    y, _ = linear_memory(**arguments)
    alike = (arguments["query"] * arguments["key"]).sum(-1, keepdim=True)
    sums = (1 - 0.9 ** torch.arange(1, 51).double()) / (1 - 0.9)
    torch.testing.assert_close(y, alike * arguments["value"] * sums[None, :, None, None])


def test_a_step_of_two_negates_the_stored_value_of_a_key(draw):
    """The eigenvalue is -1, so two such steps that write zeros restore the state."""
    arguments = draw(9, time=2)
    arguments["key"] = arguments["key"][:, :1].expand_as(arguments["key"])
    arguments |= {name: torch.zeros_like(arguments[name]) for name in ("log_decay", "value")}
    arguments["step"] = torch.full_like(arguments["step"], 2)
    _, after = linear_memory(**arguments)
    torch.testing.assert_close(after, arguments["state"], rtol=1e-12, atol=1e-12)
    stored_value = torch.einsum("bhkv,bhk->bhv", arguments["state"], arguments["key"][:, 0])
    first, _ = linear_memory(**part(arguments, 0, 1) | {"query": arguments["key"][:, :1]})
    torch.testing.assert_close(first[:, 0], -stored_value, rtol=1e-12, atol=1e-12)


def test_the_state_is_at_least_float32_and_of_the_widest_input_dtype(draw):
    arguments = draw(10, time=4)

    def run(dtype, state):
        tokens = {name: arguments[name].to(dtype) for name in TOKENS if name in arguments}
        return linear_memory(**tokens, state=arguments["state"].to(state), rule="delta")

    for dtype, state, expected in (
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.float16, torch.float16, torch.float32),
        (torch.float64, torch.float32, torch.float64),
    ):
        y, after = run(dtype, state)
        assert y.dtype == dtype
        assert after.dtype == expected
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y, _ = run(torch.float32, torch.float32)
    torch.testing.assert_close(y, run(torch.float32, torch.float32)[0], rtol=0, atol=0)


def test_a_decayed_state_is_exactly_zero(draw):
    arguments = draw(11, time=64, strength=0.0)
    arguments["step"] = torch.zeros_like(arguments["step"])
    arguments["log_decay"] -= 2
    _, after = linear_memory(**arguments)
    assert not after.any()


def test_a_step_compiles_and_exports_with_any_batch_size(draw):
    class Reader(torch.nn.Module):
        def forward(self, query, key, value, log_decay, step, state, start):
            return linear_memory(query, key, value, log_decay, step, state, rule="delta", start=start)

    names = ("query", "key", "value", "log_decay", "step", "state", "start")
    sample, other = (draw(12, batch, time=1, starts=0.5) for batch in (2, 5))
    dims = {name: {0: torch.export.Dim("batch")} for name in names}
    program = torch.export.export(Reader(), tuple(sample[n] for n in names), dynamic_shapes=dims).module()
    compiled_reader = torch.compile(Reader(), fullgraph=True, backend="aot_eager")
    for run in (program, compiled_reader):
        for result, right in zip(run(*(other[n] for n in names)), linear_memory(**other), strict=True):
            torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_a_segment_compiles(draw):
    arguments = draw(13, time=20, starts=0.2)
    run = torch.compile(lambda inputs: linear_memory(**inputs), fullgraph=True, backend="aot_eager")
    for result, right in zip(run(arguments), linear_memory(**arguments), strict=True):
        torch.testing.assert_close(result, right, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rule": "oja"}, "rule='oja'; choose from hebbian, delta"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"key": torch.zeros(2, 7, 2, 5)}, r"key has shape \(2, 7, 2, 5\); expected \(2, 7, 2, 4\)"),
        ({"log_decay": torch.zeros(2, 7, 2, 3)}, "log_decay has shape"),
        ({"step": torch.zeros(2, 7)}, "step has shape"),
        ({"state": torch.zeros(2, 2, 3, 4)}, "state has shape"),
        ({"start": torch.zeros(2, 7)}, r"pass start\.bool\(\)"),
        ({"value": torch.zeros(2, 7, 6)}, "value has shape"),
    ],
)
def test_invalid_arguments_are_named(draw, change, message):
    with pytest.raises(ValueError, match=message):
        linear_memory(**draw() | change)
    if change.keys() <= {"rule", "state"}:
        arguments = draw() | change
        token = take_token(arguments, 0)
        with pytest.raises(ValueError, match=message):
            linear_memory_step(**token, state=arguments["state"], rule=arguments["rule"])


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_integer_tensors_raise(draw, name):
    arguments = draw()
    arguments |= {name: arguments[name].long()}
    with pytest.raises(TypeError, match=f"{name} has dtype torch.int64"):
        linear_memory(**arguments)
