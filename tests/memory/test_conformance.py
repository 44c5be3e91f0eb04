"""Every registered memory obeys the nine laws, at several sizes."""

import dataclasses

import numpy as np
import pytest
import torch

from scrubjay import memory
from scrubjay.memory.stack import StackConfig


def some(name, dim, **fields):
    return memory.make_config(name, dim=dim, **fields)


def as_in_paper(name, **fields):
    """Return the fields with which a memory follows its paper, and these sizes."""
    values = type(memory.make_config(name)).paper_values
    assert not isinstance(values, str)
    return {**values, **fields}


SIZES = {
    "agalite": [
        {"dim": 8, "num_heads": 2, "num_features": 1, "num_frequencies": 5, "feed_forward_ratio": 2},
        as_in_paper("agalite", dim=8),
    ],
    "based": [
        {"dim": 8, "num_heads": 2, "feature_width": 4, "window": 3, "num_layers": 2},
        {"feature_width": 1, "window": 5, "num_sinks": 2},
    ],
    "comba": [{"dim": 8, "num_layers": 2, "num_heads": 2, "convolution": 2}, as_in_paper("comba", dim=8)],
    "elmur": [
        {"dim": 8, "chunk_size": 1, "num_slots": 2},
        {"chunk_size": 4, "num_slots": 3, "blend": 0.8, "num_layers": 2},
        {"chunk_size": 3, "num_slots": 1},
        as_in_paper("elmur", dim=8, chunk_size=3, num_slots=2, max_distance=9, num_layers=2),
        as_in_paper("elmur", chunk_size=1, num_slots=1, max_distance=3),
    ],
    "ffm": [{"dim": 8, "trace_size": 1, "context_size": 1}, {"trace_size": 7, "context_size": 3}],
    "flow": [{"num_layers": 2, "num_heads": 2}],
    "gated_delta": [
        {"decay": "channel", "num_layers": 2, "num_heads": 2},
        {"dim": 8, "decay": "none", "convolution": 1, "read_before_write": False},
        {"num_heads": 4, "negative_eigenvalues": True, "convolution": 2},
        {"num_heads": 2, "householders": 2},
        {"dim": 8, "decay": "channel", "householders": 3, "read_before_write": False},
        as_in_paper("gated_delta", dim=8, num_layers=2),
    ],
    "gtrxl": [{"dim": 8, "window": 5, "num_layers": 1}],
    "hcam": [
        {"chunk_size": 1, "num_chunks": 3, "top_k": 1},
        {"chunk_size": 4, "num_chunks": 3, "top_k": 9, "num_layers": 2},
        {"chunk_size": 7, "num_chunks": 2, "top_k": 2, "window": 11, "stop_memory_gradient": False},
        {"dim": 8, "chunk_size": 5, "num_chunks": 4, "top_k": 2, "num_layers": 2},
        # All chunks are read: rounding under autocast could change the selection, the bottleneck's only
        # output.
        {"dim": 8, "chunk_size": 2, "num_chunks": 3, "top_k": 3, "num_layers": 2, "bottleneck": True},
    ],
    "landmark": [
        {"dim": 8, "chunk_size": 1, "num_chunks": 3, "top_k": 1},
        {"chunk_size": 4, "num_chunks": 3, "top_k": 2, "num_layers": 2},
    ],
    "lightning": [
        {"dim": 8, "num_heads": 2, "slopes": "geometric", "num_layers": 3},
        as_in_paper("lightning", dim=8, num_heads=2),
    ],
    "moba": [{"chunk_size": 3, "num_chunks": 4, "top_k": 2}],
    "nsa": [
        {"chunk_size": 4, "num_chunks": 4, "top_k": 3, "num_layers": 2},
        {"dim": 8, "chunk_size": 1, "num_chunks": 1, "top_k": 1},
    ],
    "lru": [as_in_paper("lru", dim=8, num_channels=3)],
    "mamba2": [
        {"dim": 8, "num_layers": 2, "num_heads": 4, "state_size": 5},
        {"expand": 1, "convolution": 1},
        as_in_paper("mamba2", dim=8, state_size=3),
    ],
    "mamba3": [
        {"dim": 8, "num_heads": 4, "state_size": 4},
        {"num_layers": 1, "expand": 3, "state_size": 12, "output_norm": False},
    ],
    "routing": [
        {"dim": 8, "num_centroids": 1, "capacity": 5, "window": 1},
        {"num_centroids": 3, "capacity": 2, "window": 4, "num_layers": 2},
        {"num_centroids": 5, "capacity": 1, "window": 3},
    ],
    "rwkv7": [{"dim": 8, "num_layers": 2, "num_heads": 2, "rank": 3, "feed_forward_ratio": 1}],
    "shm": [{"dim": 8, "memory_size": 3, "table_size": 5}],
    "memora": [
        {"dim": 8, "chunk_size": 3, "forgets_to": "uniform", "convolution": 1, "num_heads": 1},
        {"chunk_size": 4, "depth": 2, "residual": True, "norm": True, "read_before_write": False},
        as_in_paper("memora", dim=8, num_layers=2),
    ],
    "moneta": [
        {"chunk_size": 4, "depth": 2, "residual": True, "norm": True, "bptt_chunks": 2},
        as_in_paper("moneta", dim=8, bptt_chunks=5),
    ],
    "sink": [
        {"dim": 8, "window": 2, "num_sinks": 0},
        {"window": 5, "num_sinks": 1, "num_layers": 1, "sink_logit": True},
        {"window": 3, "num_sinks": 70, "num_layers": 3},
        {"window": 4, "num_sinks": 1, "num_learned_sinks": 2, "sink_logit": True},
    ],
    "stack": [
        {"parts": (some("gru", 16), some("hcam", 16, chunk_size=4, num_chunks=3, top_k=2))},
        {"parts": (some("titans", 16, chunk_size=3, depth=2), some("sink", 16, window=4)), "residual": False},
        {
            "dim": 8,
            "parts": (
                some("hcam", 8, chunk_size=5, num_chunks=2),
                StackConfig(8, (some("lstm", 8), some("gtrxl", 8, window=3, num_layers=1))),
                some("none", 8),
            ),
        },
    ],
    "titans": [
        {"dim": 8, "chunk_size": 1, "convolution": 1, "output_gate": False},
        {"depth": 3, "chunk_size": 5, "num_layers": 2, "bptt_chunks": 2},
        {"depth": 2, "chunk_size": 4, "norm": True, "residual": True, "read_before_write": False},
        as_in_paper("titans", dim=8, num_layers=2),
        as_in_paper("titans", depth=1, convolution=1, bptt_chunks=7, output_gate=False),
    ],
    "titans_mac": [
        {"depth": 2, "chunk_size": 3, "bptt_chunks": 2, "num_persistent": 0},
        {"chunk_size": 2, "bound_steps": False, "gate": "product"},
        {"chunk_size": 2, "segment_chunks": 3, "num_persistent": 1, "bptt_chunks": 2},
    ],
    "titans_mag": [
        {"depth": 2, "chunk_size": 5, "window": 3, "num_persistent": 0},
        {"depth": 2, "chunk_size": 2, "window": 4, "bound_steps": False, "max_step": 0.02, "gate": "product"},
    ],
    "titans_mal": [{"depth": 2, "chunk_size": 2, "window": 2, "bptt_chunks": 3}],
    "xlstm": [
        {"dim": 8, "blocks": "sm", "num_heads": 2, "convolution": 2},
        {"blocks": "s", "convolution": 1},
        as_in_paper("xlstm", dim=8, num_heads=2),
    ],
    "yaad": [
        {"dim": 8, "chunk_size": 3, "num_layers": 2, "measure": "coordinate"},
        {"chunk_size": 4, "depth": 2, "residual": True, "norm": True},
        as_in_paper("yaad", dim=8, max_gate_rank=2),
    ],
}


def format_fields(fields):
    parts = fields.get("parts", ())
    plain = {k: v for k, v in fields.items() if k != "parts"}
    return "-".join([*map(memory.name_of, parts), *(f"{k}{v}" for k, v in plain.items())]) or "default"


FAMILIES = {
    type(memory.make_config(name)).__module__.split(".")[2]: name for name in reversed(memory.list_memories())
}
"""One memory of each package of `scrubjay.memory`. `make test-all` runs the long tests of all memories."""

MILLION = ("hcam", "gru")
"""Memories whose million steps run in CI: one that stores, and a recurrence."""
MACHINE_CODE = ("hcam", "lru", "titans")
"""Memories compiled to machine code in CI: one that stores, a scan, and one whose weights learn."""

CASES = [
    pytest.param(name, fields, id=f"{name}-{format_fields(fields)}")
    for name in memory.list_memories()
    for fields in [{}, {"dim": 22}, *SIZES.get(name, [])]
]


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", [name for name in memory.list_memories() if name != "none"])
def test_gradients_may_be_computed_under_autocast(name):
    module = memory.make(name, dim=16)
    x, gradients = torch.randn(2, 40, 16), {}
    for inside in (False, True):
        inputs = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y, _ = module(inputs, module.initial_state(2))
            loss = y.square().sum()
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        gradients[inside] = inputs.grad
    # torch's own layers compute in bfloat16 there.
    assert (gradients[True] - gradients[False]).norm() < 5e-2 * gradients[False].norm()


BUT_COMPILATION = (1, 2, 3, 4, 5, 6, 7, 9)


def is_small(name, fields):
    """Check that chunks and windows are small, so that a sequence has many boundaries."""
    return fields in SIZES.get(name, [])


def is_first(name, fields):
    """Check that these are the first small sizes, or the default ones of a memory without small sizes."""
    return fields in SIZES.get(name, [{}])[:1]


def mark_laws(name, fields):
    """Return the marks: first sizes run in CI, those of FAMILIES always; other sizes are the matrix."""
    if is_first(name, fields):
        return [] if name in FAMILIES.values() else pytest.mark.slow
    return pytest.mark.matrix


def count_steps(name, fields):
    """Return the length of the test sequences, None for the default one."""
    # Small chunks and windows are filled three times and more by half the steps; 70 sinks take all of them.
    return 24 if is_small(name, fields) and fields.get("num_sinks") != 70 else None


def check_laws(name, fields, seed, dtypes, autocast=False):
    module = memory.make(name, **({"dim": 16} | fields))
    exempt = memory.check_memory(
        module,
        laws=BUT_COMPILATION,
        dtypes=dtypes,
        steps=count_steps(name, fields),
        autocast=autocast,
        seed=seed,
    )
    assert any("does not retrieve" in line for line in exempt) is not module.retrieves
    assert any("law 9" in line for line in exempt) is bool(module.no_gradient)


@pytest.mark.parametrize(
    ("name", "fields"),
    [pytest.param(*case.values, id=case.id, marks=mark_laws(*case.values)) for case in CASES],
)
def test_laws_without_compilation(name, fields):
    wide = "dim" in fields and not is_small(name, fields)
    # Of other sizes than the default ones float64 alone, whose bounds are the tighter ones.
    dtypes = (torch.float64,) if fields else (torch.float32, torch.float64)
    check_laws(name, fields, int(wide), dtypes)


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.parametrize(("name", "fields"), [case for case in CASES if case.values[1]])
def test_laws_hold_for_other_random_data(name, fields):
    """Test small sizes with other starts, and all sizes but the default ones also in the other dtype."""
    small = is_small(name, fields)
    dtypes = (torch.float32, torch.float64) if small else (torch.float32,)
    check_laws(name, fields, 1, dtypes, not small and name not in SIZES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        pytest.param(
            *case.values,
            id=case.id,
            marks=[]
            if is_first(*case.values) and case.values[0] in FAMILIES.values()
            else pytest.mark.matrix,
        )
        for case in CASES
        if is_small(*case.values) or not case.values[1]
    ],
)
def test_laws_hold_under_autocast(name, fields):
    module = memory.make(name, **({"dim": 16} | fields))
    laws = (1, 2, 4, 5, 6, 9)
    memory.check_memory(module, laws=laws, dtypes=(), steps=count_steps(name, fields), autocast=True)


# Layers are alike, and a stack's step is that of its parts.
TRACED_SMALL = {"gtrxl": {"num_layers": 1}, "sink": {"num_layers": 1}, "stack": SIZES["stack"][-1]}

TRACED_IN_CI = ("gated_delta", "hcam", "sink")
"""Memories whose step is traced in CI beside `lru`. CI also exports policies with one of each package."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=[] if name == "lru" else pytest.mark.slow if name in TRACED_IN_CI else pytest.mark.matrix,
        )
        for name in memory.list_memories()
    ],
)
def test_one_step_compiles_and_exports(name):
    # Only traced, which takes half of the time; another slow test generates machine code.
    module = memory.make(name, **({"dim": 16} | TRACED_SMALL.get(name, {})))
    memory.check_memory(module, laws=(8,), compile_backend="eager")


# Of the default sizes and of more stacks: tracing them is part of it.
TRACED = [
    pytest.param(
        name,
        fields,
        id=f"{name}-{format_fields(fields)}",
        marks=[] if name in MACHINE_CODE and not fields else pytest.mark.matrix,
    )
    for name in memory.list_memories()
    for fields in [{}, *(SIZES["stack"] if name == "stack" else [])]
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "fields"), TRACED)
def test_one_step_compiles_to_machine_code(name, fields):
    memory.check_memory(memory.make(name, **({"dim": 16} | fields)), laws=(8,), compile_backend="inductor")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in MILLION else pytest.mark.matrix)
        for name in memory.list_memories()
    ],
)
def test_a_million_steps(name):
    memory.check_memory(memory.make(name, dim=8), laws=(5,), long=True)


@pytest.mark.parametrize("name", memory.list_memories())
@pytest.mark.parametrize("dim", [7, 6, 0, -8])
def test_impossible_widths_are_named(name, dim):
    with pytest.raises(ValueError, match=f"dim={dim}"):
        memory.make(name, dim=dim)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", memory.list_memories())
def test_state_dict_round_trip_and_double(name):
    first, second = memory.make(name, dim=8), memory.make(name, dim=8)
    second.load_state_dict(first.state_dict())
    x = torch.randn(2, 5, 8)
    expected, _ = first(x, first.initial_state(2))
    assert torch.equal(second(x, second.initial_state(2))[0], expected)
    double = second.double()
    y, state = double(x.double(), double.initial_state(2))
    torch.testing.assert_close(y, expected.double(), rtol=1e-4, atol=1e-4)
    assert all(v.dtype in (torch.float64, torch.int64) for v in state.values())


@pytest.mark.parametrize("name", memory.list_memories())
def test_wrong_shapes_are_named(name):
    module = memory.make(name, dim=8)
    with pytest.raises(ValueError, match=r"expected \[batch, time, 8\]"):
        module(torch.zeros(2, 3, 10), module.initial_state(2))
    with pytest.raises(ValueError, match=r"expected \[batch, time, 8\]"):
        module(torch.zeros(8), module.initial_state(2))
    for time in (1, 3):
        state = module.initial_state(1)
        if state:
            with pytest.raises(ValueError, match="has batch size 1; expected 2"):
                module(torch.zeros(2, time, 8), state)
    with pytest.raises(ValueError, match=r"start has shape \(2, 4\)"):
        module(torch.zeros(2, 3, 8), module.initial_state(2), torch.zeros(2, 4, dtype=torch.bool))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", memory.list_memories())
def test_huge_values_have_the_effect_that_they_have_in_single_steps(name):
    torch.manual_seed(0)
    module = memory.make(name, dim=16)
    x = torch.randn(3, 40, 16)
    calm = x.clone()
    x[0, 5:7], x[1, 9] = 1e20, float("nan")
    start = torch.zeros(3, 40, dtype=torch.bool)
    start[:2, 20] = True
    with torch.no_grad():
        y, after = module(x, module.initial_state(3), start)
        state, steps = module.initial_state(1), []
        for t in range(40):
            one, state = module(x[:1, t : t + 1], state, start[:1, t : t + 1])
            steps.append(one)
        torch.testing.assert_close(y[:1], torch.cat(steps, dim=1), equal_nan=True, atol=1e-5, rtol=1e-5)
        for key, value in state.items():
            torch.testing.assert_close(after[key][:1], value, atol=1e-5, rtol=1e-5)
        expected, _ = module(calm, module.initial_state(3), start)
    torch.testing.assert_close(y[:2, 20:], expected[:2, 20:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(y[2], expected[2], atol=1e-5, rtol=1e-5)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("name", "fields"), CASES)
def test_gradients_may_come_in_batches(name, fields):
    torch.manual_seed(0)
    module = memory.make(name, **({"dim": 16} | fields)).double()
    x = torch.randn(2, 13, module.dim, dtype=torch.double, requires_grad=True)
    start = torch.zeros(2, 13, dtype=torch.bool)
    start[0, 7] = True
    y, _ = module(x, module.initial_state(2), start)
    ways = torch.randn(3, *y.shape, dtype=torch.double)
    (together,) = torch.autograd.grad(y, x, ways, is_grads_batched=True, retain_graph=True)
    apart = [torch.autograd.grad(y, x, way, retain_graph=True)[0] for way in ways]
    torch.testing.assert_close(together, torch.stack(apart))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("name", memory.list_memories())
def test_a_start_that_is_not_bool_is_refused(name, dtype):
    module = memory.make(name, dim=8)
    for time in (0, 1, 3):
        with pytest.raises(ValueError, match=rf"start has dtype {dtype}; .*pass start\.bool\(\)"):
            module(torch.zeros(2, time, 8), module.initial_state(2), torch.ones(2, time, dtype=dtype))


@pytest.mark.parametrize("name", memory.list_memories())
def test_wrong_types_of_state_input_and_start_are_named(name):
    module = memory.make(name, dim=8)
    x, state = torch.zeros(2, 3, 8), module.initial_state(2)
    with pytest.raises(TypeError, match=r"state=None; expected a dict such as initial_state\(2\)"):
        module(x, None)
    with pytest.raises(ValueError, match=r"x has dtype torch\.int64; .*pass x\.float\(\)"):
        module(x.long(), state)
    with pytest.raises(TypeError, match=r"start is a ndarray; .*torch\.as_tensor\(start\)"):
        module(x, state, np.zeros((2, 3), dtype=np.bool_))


@pytest.mark.parametrize("name", memory.list_memories())
def test_a_segment_of_no_steps_changes_nothing(name):
    module = memory.make(name, dim=8)
    state = module.initial_state(2)
    y, after = module(torch.zeros(2, 0, 8), state)
    assert y.shape == (2, 0, 8)
    assert after.keys() == state.keys()


@pytest.mark.parametrize("time", [1, 5])
@pytest.mark.parametrize("name", memory.list_memories())
def test_no_rows_give_no_rows(name, time):
    module = memory.make(name, dim=8)
    start = torch.zeros(0, time, dtype=torch.bool)
    y, _ = module(torch.zeros(0, time, 8), module.initial_state(0), start)
    assert y.shape == (0, time, 8)


@dataclasses.dataclass(frozen=True)
class RunningMaxConfig(memory.MemoryConfig):
    def build(self):
        return RunningMax(self)


class RunningMax(memory.Memory):
    """Minimal user-defined memory with `initial_state` and `step` alone; its state starts at -inf."""

    def __init__(self, config):
        super().__init__(config)
        self.inward = torch.nn.Linear(self.dim, self.dim)

    def initial_state(self, batch_size):
        shape = (batch_size, self.dim)
        return {"largest": torch.full(shape, -torch.inf, dtype=self.state_dtype, device=self.device)}

    def step(self, x, state):
        largest = torch.maximum(state["largest"], self.inward(x).to(self.state_dtype))
        return largest.to(x.dtype), {"largest": largest}


@pytest.mark.slow
def test_a_memory_with_only_a_step_obeys_the_laws_even_if_its_state_starts_infinite():
    torch.manual_seed(0)  # some weights leave every maximum as it was after the one step that law 9 takes
    memory.check_memory(RunningMaxConfig(dim=8).build())
