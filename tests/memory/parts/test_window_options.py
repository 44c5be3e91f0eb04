"""Options of the window attention against explicit loops, and in the memories that have them."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from scrubjay import memory
from scrubjay.memory.contract.base import MemoryConfig
from scrubjay.memory.contract.clock import Clock
from scrubjay.memory.contract.stepper import PlainStepper
from scrubjay.memory.parts.window import WindowAttention, WindowOptions
from scrubjay.memory.serialization import decode, encode

DIM, HEADS, WIDTH = 12, 3, 4
FOLDED = [
    {"positions": "music"},
    {"activation": "sigmoid"},
    {"positions": "music", "activation": "sigmoid"},
    {"positions": "only"},
    {"positions": "only", "activation": "sigmoid"},
]
"""Options with a stepper that works in place."""
CHOICES = [
    *FOLDED,
    {"convolution": 3},
    {"convolution": 2, "positions": "music", "activation": "sigmoid"},
]


def attention(window: int, **options) -> WindowAttention:
    torch.manual_seed(0)
    module = WindowAttention(DIM, HEADS, window, WindowOptions(**options)).double()
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module


def draw(module: WindowAttention, time: int, rate: float, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return inputs, recent inputs of rows with three ages, the ages, and starts."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(3, time, DIM, dtype=torch.float64, generator=generator)
    age = torch.tensor([0, module.window // 2, module.window + 9])
    recent = torch.randn(3, module.before, DIM, dtype=torch.float64, generator=generator)
    recent = torch.where((torch.arange(module.before) >= module.before - age[:, None])[..., None], recent, 0)
    return x, recent, age, torch.rand(3, time, generator=generator) < rate


def by_head(module: nn.Linear, inputs: Tensor) -> Tensor:
    return (inputs @ module.weight.T).unflatten(-1, (HEADS, WIDTH))


def apply_filter(module: WindowAttention, part: int, projection: Tensor) -> Tensor:
    """Apply the causal filter step by step."""
    if module.filters is None:
        return projection
    weight = module.filters.weight[:, part * DIM : (part + 1) * DIM].unflatten(1, (HEADS, WIDTH))
    sums = torch.zeros_like(projection)
    for lag, each in enumerate(weight[: len(projection)]):
        sums[lag:] += each * projection[: len(projection) - lag]
    return sums


def compute_scores(module: WindowAttention, options: WindowOptions, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Return the scores of the last input for the visible inputs, and their values."""
    query, key, value = (
        apply_filter(module, part, by_head(layer, inputs))[-module.window - 1 :]
        for part, layer in enumerate((module.query, module.key, module.value))
    )
    query = query[-1]
    if options.positions == "music":
        content, position, far = query, query, module.embedding[:, -len(key) :].transpose(0, 1)
    else:
        content, position = query + module.content_bias, query + module.position_bias
        far = by_head(module.position, module.distances[-len(key) :])
    scores = torch.einsum("hw,khw->hk", content, key) + torch.einsum("hw,khw->hk", position, far)
    return scores / math.sqrt(WIDTH), value


def compute_by_loop(
    module: WindowAttention, options: WindowOptions, x: Tensor, recent: Tensor, age: Tensor, start: Tensor
) -> Tensor:
    """Return the output one query at a time, from a list of its episode's inputs so far."""
    rows = []
    for b in range(len(x)):
        history = list(recent[b, module.before - min(int(age[b]), module.before) :])
        outputs = []
        for t in range(x.shape[1]):
            history = [] if start[b, t] else history
            history.append(x[b, t])
            inputs = torch.stack(history[-module.before - 1 :])
            if options.positions == "only":
                value = by_head(module.value, inputs)
                scores = module.distance_scores[:, -len(inputs) :]
            else:
                scores, value = compute_scores(module, options, inputs)
            sigmoid = options.activation == "sigmoid"
            weights = 1 / (1 + module.window * (-scores).exp()) if sigmoid else scores.softmax(-1)
            outputs.append(module.output.weight @ torch.einsum("hk,khw->hw", weights, value).flatten())
        rows.append(torch.stack(outputs))
    return torch.stack(rows)


def run_steps(module: WindowAttention, x: Tensor, recent: Tensor, age: Tensor, start: Tensor) -> Tensor:
    outputs = []
    for t in range(x.shape[1]):
        recent = torch.where(start[:, t, None, None], 0, recent)
        age = torch.where(start[:, t], 0, age)
        outputs.append(module.step(x[:, t], recent, age))
        recent, age = torch.cat([recent[:, 1:], x[:, t, None]], dim=1), age + 1
    return torch.stack(outputs, dim=1)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("options", CHOICES, ids=str)
@given(
    window=st.integers(1, 9),
    time=st.integers(2, 30),
    rate=st.sampled_from([0.0, 0.1, 1.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=8, deadline=None)
def test_segments_and_steps_agree_with_one_query_at_a_time(options, window, time, rate, seed):
    module = attention(window, **options)
    x, recent, age, start = draw(module, time, rate, seed)
    x.requires_grad_()
    leaves = [x, *module.parameters()]
    expected = compute_by_loop(module, WindowOptions(**options), x, recent, age, start)
    weights = torch.randn(expected.shape, dtype=torch.float64)
    gradients = torch.autograd.grad((expected * weights).sum(), leaves)
    clock = Clock.from_starts(age, start)
    ways = (
        module(x, recent, clock),
        module._run_torch(clock, x, recent, *module._weights()),
        run_steps(module, x, recent, age, start),
    )
    for actual in ways:
        torch.testing.assert_close(actual, expected, atol=1e-10, rtol=0)
        torch.testing.assert_close(torch.autograd.grad((actual * weights).sum(), leaves), gradients)


def test_music_with_embeddings_of_sinusoids_and_without_biases_is_transformer_xl():
    usual, music = attention(6), attention(6, positions="music")
    with torch.no_grad():
        usual.content_bias.zero_()
        usual.position_bias.zero_()
        for name in ("query", "key", "value", "output"):
            getattr(music, name).weight.copy_(getattr(usual, name).weight)
        music.embedding.copy_(by_head(usual.position, usual.distances).transpose(0, 1))
    x, recent, age, start = draw(usual, 20, 0.1, 0)
    torch.testing.assert_close(
        music(x, recent, Clock.from_starts(age, start)),
        usual(x, recent, Clock.from_starts(age, start)),
        atol=1e-12,
        rtol=0,
    )


def test_sigmoids_of_small_scores_read_nothing_and_of_zeros_the_mean():
    module = attention(8, activation="sigmoid")
    x, recent, age, start = draw(module, 20, 0.0, 0)
    with torch.no_grad():
        module.position_bias.zero_()
        module.content_bias.zero_()
        module.query.weight.zero_()
        recent, age = torch.ones_like(recent), torch.full_like(age, 8)
        mean = module(torch.ones_like(x), recent, Clock.from_starts(age, start))
        expected = module.output.weight @ module.value.weight.sum(dim=1)
        # Nine weights of 1 / (1 + 8).
        torch.testing.assert_close(mean[0, -1], expected, atol=1e-12, rtol=0)
        module.offset = -1e4
        assert not module(x, recent, Clock.from_starts(age, start)).any()
        assert not module.step(x[:, 0], recent, age).any()


def test_a_filter_that_lets_the_present_through_filters_nothing():
    plain, module = attention(6), attention(6, convolution=4)
    missing = module.load_state_dict(plain.state_dict(), strict=False).missing_keys
    assert missing == ["filters.weight"]
    assert module.filters is not None
    with torch.no_grad():
        module.filters.weight.zero_()[0] = 1
    x, recent, age, start = draw(module, 20, 0.1, 0)
    clock = Clock.from_starts(age, start)
    torch.testing.assert_close(module(x, recent, clock), plain(x, recent[:, 3:], clock), atol=1e-12, rtol=0)


def test_with_positions_only_contents_change_no_weight():
    module = attention(6, positions="only")
    x, recent, age, start = draw(module, 20, 0.1, 0)
    clock = Clock.from_starts(age, start)
    weights = module.segment_weights(x, recent, clock)
    assert torch.equal(
        module.segment_weights(torch.randn_like(x) * 1e6, torch.randn_like(recent), clock), weights
    )
    # Twice the values are read twice.
    assert torch.equal(module(2 * x, 2 * recent, clock), 2 * module(x, recent, clock))
    with torch.no_grad():
        module.distance_scores.fill_(-math.inf)[:, -3] = 0
        torch.testing.assert_close(
            module(x, recent, Clock.from_starts(age + 9, torch.zeros_like(start)))[:, 2:],
            x[:, :-2] @ (module.output.weight @ module.value.weight).T,
            atol=1e-12,
            rtol=0,
        )


@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_segment_weights_give_the_output(options):
    module = attention(5, **options)
    x, recent, age, start = draw(module, 30, 0.1, 0)
    weights = module.segment_weights(x, recent, Clock.from_starts(age, start))
    if module.filters is not None:
        return
    inputs = torch.cat([recent, x], dim=1).unfold(1, 6, 1)
    value = by_head(module.value, inputs.mT)
    read = torch.einsum("bhtk,btkhw->bthw", weights, value).flatten(2)
    torch.testing.assert_close(
        read @ module.output.weight.T, module(x, recent, Clock.from_starts(age, start)), atol=1e-12, rtol=0
    )
    behind = torch.arange(5, -1, -1) > Clock.from_starts(age, start).step[..., None]
    assert not weights.masked_select(behind[:, None]).any()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_a_memory_of_each_option_obeys_the_laws(options):
    torch.manual_seed(0)
    module = memory.make("gtrxl", dim=8, window=5, num_layers=1, **options)
    memory.check_memory(module, laws=(1, 2, 3, 4, 5, 6, 7, 9), dtypes=(torch.float64,), steps=24)


@pytest.mark.one_in(4)
@pytest.mark.slow
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_its_step_compiles_and_autocast_changes_no_dtypes(options):
    module = memory.make("gtrxl", dim=8, window=5, num_layers=1, **options)
    memory.check_memory(module, dtypes=(torch.float32,), steps=24, compile_backend="eager", autocast=True)


@pytest.mark.one_in(4)
@pytest.mark.slow
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_hcam_has_them_too(options):
    torch.manual_seed(0)
    module = memory.make("hcam", dim=8, chunk_size=4, num_chunks=3, top_k=2, window=5, **options)
    memory.check_memory(module, laws=(1, 2, 6, 7, 9), dtypes=(torch.float64,), steps=24)


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["gtrxl", "hcam"])
@pytest.mark.parametrize("options", CHOICES, ids=str)
def test_steps_in_place_are_the_steps(name, options, check_stepper):
    module = memory.make(name, dim=12, window=17, **options).double()
    assert (type(module.stepper(module.initial_state(1))) is PlainStepper) is (options not in FOLDED)
    check_stepper(module, torch.randn(3, 40, 12, dtype=torch.float64))


def test_a_config_is_written_with_its_options_and_read_unchanged():
    for name in ("gtrxl", "hcam"):
        config = memory.make_config(name, dim=12)
        encoded_config = encode(config)
        assert encoded_config.keys() >= {field.name for field in dataclasses.fields(WindowOptions)}
        assert decode(MemoryConfig, encoded_config) == config
        for options in CHOICES:
            other = memory.make_config(name, dim=12, **options)
            assert options.items() <= encode(other).items()
            assert decode(MemoryConfig, encode(other)) == other


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": "rotary"}, "positions='rotary'; choose from xl, music, only"),
        ({"convolution": 0}, "convolution=0: must be at least 1"),
        (
            {"positions": "only", "convolution": 2},
            "convolution=2: positions='only' has no queries",
        ),
        ({"activation": "relu"}, "activation='relu'; choose from softmax, sigmoid"),
    ],
)
def test_unknown_options_are_refused_by_name(options, message):
    for name in ("gtrxl", "hcam"):
        with pytest.raises(ValueError, match=message):
            memory.make_config(name, dim=12, **options)
