"""Reads and writes that memories report for a step, compared with the actual step."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.contract.base import Read, Recall

from ..test_conformance import SIZES, format_fields

STEPS = 23
CASES = [
    pytest.param(name, fields, id=f"{name}-{format_fields(fields)}")
    for name in memory.list_memories()
    for fields in [{}, *SIZES.get(name, [])]
] + [
    pytest.param("gtrxl", {"window": 5, **options}, id=f"gtrxl-{format_fields(options)}")
    for options in (
        {"positions": "music"},
        {"activation": "sigmoid"},
        {"convolution": 3},
        {"positions": "only"},
    )
]
REPORTING = {
    *("based", "elmur", "gtrxl", "hcam", "landmark", "moba", "nsa", "routing", "sink", "stack"),
    *("memora", "moneta", "titans", "titans_mac", "titans_mag", "titans_mal", "yaad"),
}
"""Memories that report reads. All others report only the relative change of their state."""
STATE_CHANGE = "change of the state relative to its norm"


def build_memory(name, fields, seed=0) -> Any:
    torch.manual_seed(seed)
    return memory.make(name, **({"dim": 16} | fields)).double()


def run_states(module, x):
    """Return the initial state and the state after every input; episodes start at different steps."""
    state = module.initial_state(len(x))
    states = [state]
    for t in range(x.shape[1]):
        start = torch.tensor([False, t == 9, t == 4])[: len(x)]
        _, state = module(x[:, t : t + 1], state, start[:, None])
        states.append(state)
    return states


def ages():
    return [torch.tensor([t, t - 9 if t > 9 else t, t - 4 if t > 4 else t]) for t in range(STEPS)]


def inputs(module, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, STEPS, module.dim, generator=generator, dtype=torch.float64)


@pytest.mark.one_in(4)
@pytest.mark.parametrize(("name", "fields"), CASES)
def test_reads_are_of_this_episode_and_independent_of_other_rows(name, fields):
    module = build_memory(name, fields)
    x = inputs(module)
    states, other = run_states(module, x), run_states(module, torch.cat([x[:1], -x[1:]]))
    for t, age in enumerate(ages()):
        copies = {key: value.clone() for key, value in states[t].items()}
        record = module.recall(x[:, t], states[t])
        assert all(torch.equal(value, copies[key]) for key, value in states[t].items())
        if record is None:
            assert name in ("none", "positional")  # neither has a state with earlier inputs
            continue
        assert name in REPORTING or [*record.reads, *record.writes] == [STATE_CHANGE]
        for strength in record.writes.values():
            assert strength.shape == (3,)
            assert bool((strength >= 0).all())
        other_record = module.recall(x[:, t], other[t])
        for key, (steps, weights) in record.reads.items():
            assert steps.shape == weights.shape
            assert steps.dtype == torch.int64
            assert not weights.requires_grad
            assert bool(((steps >= -1) & (steps <= age[:, None])).all()), key
            assert bool((torch.isfinite(weights) & (weights >= 0)).all()), key
            assert not weights[steps < 0].any()
            assert bool((weights.sum(1) < 1 + 1e-5).all()), key
            for row in steps:
                there = row[row >= 0]
                assert len(there) == len(there.unique()), key
            assert torch.equal(steps[0], other_record.reads[key].steps[0])
            torch.testing.assert_close(weights[0], other_record.reads[key].weights[0])


SINGLE = {
    "gtrxl": {"num_layers": 1, "window": 6},
    "hcam": {"chunk_size": 3, "num_chunks": 4, "top_k": 2, "window": 4, "stop_memory_gradient": False},
    "landmark": {"chunk_size": 3, "num_chunks": 4, "top_k": 2},
    "moba": {"chunk_size": 3, "num_chunks": 4, "top_k": 1},
    "nsa": {"chunk_size": 3, "num_chunks": 4, "top_k": 3},
    "routing": {"num_centroids": 3, "capacity": 2, "window": 3},
    "sink": {"num_layers": 1, "num_sinks": 2, "window": 5},
}
"""Memories with one layer, where the stored item of a step depends on its own input alone."""


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize(("name", "fields"), SINGLE.items(), ids=SINGLE)
def test_an_output_depends_on_the_steps_that_were_read_and_on_no_other(name, fields):
    module = build_memory(name, fields)
    x = inputs(module)[:1].requires_grad_()
    state = module.initial_state(1)
    for t in range(STEPS):
        reads = module.recall(x[:, t], state).reads.values()
        y, state = module(x[:, t : t + 1], state)
        (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        depends = grad[0].abs().amax(1).nonzero().flatten().tolist()
        read = {
            int(s) for steps, weights in reads for s, w in zip(steps[0], weights[0], strict=True) if w > 0
        }
        assert depends == sorted(read | {t})


@pytest.mark.parametrize("name", sorted({"landmark", "moba", "sink"}))
def test_the_output_is_the_sum_of_values_with_the_reported_weights(name):
    """Compare with the attention output by head, an independent computation of the same numbers."""
    module = build_memory(name, SINGLE[name])
    x = inputs(module)
    state, layer, captures = module.initial_state(3), module.layers[0], {}
    hook: Any = None
    weigh, act = layer.weigh, getattr(layer, "mix", layer.out)
    for t in range(STEPS):
        layer.weigh = lambda *arguments: captures.setdefault("weights", weigh(*arguments))
        module.recall(x[:, t], state)
        layer.weigh = weigh
        if name == "sink":
            hook = layer.out.register_forward_pre_hook(
                lambda _, arguments: captures.update(read=arguments[0])
            )
        else:
            layer.mix = lambda *arguments: captures.setdefault("read", act(*arguments).flatten(2))
        _, after = module(x[:, t : t + 1], state)
        if name == "sink":
            hook.remove()
            values = after["values"][:, 0].unflatten(-1, (layer.heads, -1))
            expected = torch.einsum("bhs,bshe->bhe", captures["weights"], values)
        else:
            layer.mix = act
            near, far = captures["weights"]
            own = torch.cat([state["recent_values_0"], after["recent_values_0"][:, -1:]], dim=1)
            own, stored_values = (part.unflatten(-1, (layer.heads, -1)) for part in (own, state["values_0"]))
            expected = torch.einsum("bhc,bche->bhe", near, own)
            expected = expected + torch.einsum("bhmc,bmche->bhe", far, stored_values)
        torch.testing.assert_close(captures["read"][:, 0], expected.flatten(1))
        state = after
        captures.clear()


@pytest.mark.parametrize("name", ["titans_mag", "titans_mal"])
def test_windows_beside_a_memory_report_their_reads(name):
    module = build_memory(name, {"window": 4, "chunk_size": 3, "num_persistent": 0})
    x, state, captures = inputs(module), module.initial_state(3), {}
    attention = module.layers[0].attention
    attention.out.register_forward_pre_hook(lambda _, arguments: captures.update(read=arguments[0]))
    for t in range(STEPS):
        report = module.recall(x[:, t], state).reads["window, layer 0"]
        weigh = attention.weigh
        attention.weigh = lambda *arguments, weigh=weigh: captures.setdefault("weights", weigh(*arguments))
        module.recall(x[:, t], state)
        attention.weigh = weigh
        _, after = module(x[:, t : t + 1], state)
        values = torch.cat([state["values_0"], after["values_0"][:, -1:]], dim=1)
        values = values.unflatten(-1, (attention.heads, -1))
        expected = torch.einsum("bhs,bshe->bhe", captures["weights"], values).flatten(1)
        torch.testing.assert_close(captures["read"][:, 0], expected)
        assert torch.allclose(report.weights.sum(1), torch.ones(3))
        state = after
        captures.clear()
    persistent = build_memory(name, {"window": 4, "num_persistent": 3})
    report = persistent.recall(x[:, 0], persistent.initial_state(3)).reads["window, layer 0"]
    assert bool((report.weights.sum(1) < 1).all())


def test_the_output_of_routing_is_the_sum_of_values_with_the_reported_weights():
    """Compare with the sum of the values of the reported steps."""
    module = build_memory("routing", {"num_centroids": 3, "capacity": 2, "window": 3, "num_heads": 1})
    x, state, captures = inputs(module), module.initial_state(3), {}
    (layer,) = module.layers
    values = layer.project(x, torch.float64).value
    layer.out.register_forward_pre_hook(lambda _, arguments: captures.update(read=arguments[0]))
    far = 0
    for t in range(STEPS):
        reads = module.recall(x[:, t], state).reads.values()
        _, state = module(x[:, t : t + 1], state)
        expected = torch.zeros(3, 16, dtype=torch.float64)
        for steps, weights in reads:
            expected += torch.einsum("bs,bsd->bd", weights.double(), values[torch.arange(3)[:, None], steps])
            far += int((steps < t - 3).logical_and(weights > 0).sum())
        torch.testing.assert_close(captures["read"][:, 0], expected, atol=1e-6, rtol=1e-5)
    assert far


@pytest.mark.parametrize("segment_chunks", [1, 2])
def test_a_segment_of_titans_mac_is_read_as_reported(segment_chunks):
    """Inputs of the segment and their recalled tokens have all weight that persistent tokens do not have."""
    fields = {"chunk_size": 3, "segment_chunks": segment_chunks, "num_layers": 1}
    module = build_memory("titans_mac", {**fields, "num_persistent": 0, "attention_heads": 1})
    x, state, length = inputs(module), module.initial_state(3), 3 * segment_chunks
    attention, captures = module.layers[0].attention, {}
    attention.out.register_forward_pre_hook(lambda _, arguments: captures.update(read=arguments[0]))
    for t in range(STEPS):
        own, recalls = module.recall(x[:, t], state).reads.values()
        for steps, _ in (own, recalls):
            assert [int(step) for step in steps[0] if step >= 0] == list(range(t - t % length, t + 1))
        torch.testing.assert_close(own.weights.sum(1) + recalls.weights.sum(1), torch.ones(3))
        _, state = module(x[:, t : t + 1], state)
        weights = torch.cat([own.weights, recalls.weights], dim=1).double()
        expected = torch.einsum("bs,bsd->bd", weights, state["values_0"])
        torch.testing.assert_close(captures["read"][:, 0], expected, atol=1e-6, rtol=1e-5)
    persistent = build_memory("titans_mac", {**fields, "num_persistent": 3})
    report = persistent.recall(x[:, 0], persistent.initial_state(3)).reads.values()
    assert bool((torch.stack([read.weights.sum(1) for read in report]).sum(0) < 1).all())


def test_a_sink_that_reads_nothing_takes_its_share():
    module = build_memory("sink", {"num_layers": 1, "window": 4, "sink_logit": True, "num_learned_sinks": 2})
    x = inputs(module)
    with torch.no_grad():
        module.layers[0].sink_logit.fill_(30.0)
    (read,) = module.recall(x[:, 0], module.initial_state(3)).reads.values()
    assert float(read.weights.sum(1).max()) < 1e-6


def test_a_blended_slot_is_reported_by_its_share():
    """Each slot holds one chunk; with blend 0.25 a blended slot has a quarter of its last chunk."""
    whole, part = (
        build_memory("elmur", {"chunk_size": 2, "num_slots": 2, "blend": blend}) for blend in (1.0, 0.25)
    )
    x = inputs(whole)
    for module, share in ((whole, 1.0), (part, 0.25)):
        state = module.initial_state(3)
        for t in range(10):
            read = module.recall(x[:, t], state).reads["slots, layer 0"]
            _, state = module(x[:, t : t + 1], state)
            if t in (2, 3):
                torch.testing.assert_close(read.weights.sum(1), torch.ones(3))
            if t == 8:
                torch.testing.assert_close(read.weights.sum(1), torch.full((3,), share))
                assert sorted(read.steps[0].tolist()) == [4, 5, 6, 7]


@pytest.mark.parametrize("name", ["gru", "lstm", "gated_delta", "shm"])
def test_the_reported_change_of_a_state_is_that_of_a_step(name):
    module = build_memory(name, {})
    x = inputs(module)
    states = run_states(module, x)
    for t in range(10, STEPS):  # no episode starts any more
        both = [
            torch.cat([value.flatten(1) for value in state.values() if value.is_floating_point()], dim=1)
            for state in states[t : t + 2]
        ]
        expected = torch.linalg.vector_norm(both[1] - both[0], dim=1) / both[1].square().sum(1).sqrt()
        torch.testing.assert_close(module.recall(x[:, t], states[t]).writes[STATE_CHANGE], expected)


def test_a_closed_gate_writes_nothing_and_an_initial_state_changes_completely():
    module = build_memory("gru", {})
    x = inputs(module)[:, 0]
    initial = module.initial_state(3)
    _, state = module(x[:, None], initial)
    assert module.recall(x, initial).writes[STATE_CHANGE].tolist() == pytest.approx([1.0] * 3)
    with torch.no_grad():
        module.cell.bias_ih[16:32] = 1e3
    assert module.recall(x, state).writes[STATE_CHANGE].tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert module.recall(x, initial).writes[STATE_CHANGE].tolist() == [0.0] * 3


def test_records_of_parts_are_prefixed_with_their_names():
    read = Read.from_weights(torch.tensor([[0, -1]]), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    assert read.weights.tolist() == [[0.5, 0.0]]
    part = Recall({"window": read}, {"surprise": torch.ones(1)})
    whole: Any = Recall.from_parts({"part 0": None, "part 1": part})
    assert list(whole.reads) == ["part 1, window"]
    assert list(whole.writes) == ["part 1, surprise"]
    assert Recall.from_parts({"part 0": None}) is None


def test_a_stack_reports_the_records_of_its_parts():
    module = build_memory(
        "stack", {"parts": (memory.make_config("gru", dim=16), memory.make_config("sink", dim=16))}
    )
    x = inputs(module)[:, 0]
    record = module.recall(x, module.initial_state(3))
    assert list(record.reads) == ["part 1, window, layer 0", "part 1, window, layer 1"]
    assert list(record.writes) == [f"part 0, {STATE_CHANGE}"]
