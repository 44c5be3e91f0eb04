"""What memories say that they recalled: of the registry, whatever they say is true of the step they take."""

from typing import Any

import pytest
import torch

from scrubjay import memory
from scrubjay.memory.contract.recalled import Read, Recalled

from ..test_conformance import SIZES, told

STEPS = 23
CASES = [
    pytest.param(name, fields, id=f"{name}-{told(fields)}")
    for name in memory.list_memories()
    for fields in [{}, *SIZES.get(name, [])]
] + [
    pytest.param("gtrxl", {"window": 5, **options}, id=f"gtrxl-{told(options)}")
    for options in (
        {"positions": "music"},
        {"activation": "sigmoid"},
        {"convolution": 3},
        {"positions": "only"},
    )
]
TELLING = {
    *("based", "elmur", "gtrxl", "hcam", "landmark", "moba", "nsa", "routing", "sink", "stack"),
    *("memora", "moneta", "titans", "titans_mac", "titans_mag", "titans_mal", "yaad"),
}
"""What else there is keeps vectors or matrices of no step in particular, and tells how far they move."""
MOVED = "state moved, share of its length"


def built(name, fields, seed=0) -> Any:
    torch.manual_seed(seed)
    return memory.make(name, **({"dim": 16} | fields)).double()


def lived(module, x):
    """Return the state after every input, the newborn one first; rows begin at different steps."""
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


@pytest.mark.parametrize(("name", "fields"), CASES)
def test_what_is_told_is_of_this_episode_and_of_no_other_row(name, fields):
    module = built(name, fields)
    x = inputs(module)
    states, other = lived(module, x), lived(module, torch.cat([x[:1], -x[1:]]))
    for t, age in enumerate(ages()):
        kept = {key: value.clone() for key, value in states[t].items()}
        recalled = module.recalled(x[:, t], states[t])
        assert all(torch.equal(value, kept[key]) for key, value in states[t].items())
        if recalled is None:
            assert name in ("none", "positional")  # of what came before neither keeps anything
            continue
        assert name in TELLING or [*recalled.reads, *recalled.written] == [MOVED]
        for told_of in recalled.written.values():
            assert told_of.shape == (3,)
            assert bool((told_of >= 0).all())
        stranger = module.recalled(x[:, t], other[t])
        for key, (steps, weights) in recalled.reads.items():
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
            assert torch.equal(steps[0], stranger.reads[key].steps[0])
            torch.testing.assert_close(weights[0], stranger.reads[key].weights[0])


SINGLE = {
    "gtrxl": {"num_layers": 1, "window": 6},
    "hcam": {"chunk_size": 3, "num_chunks": 4, "top_k": 2, "window": 4, "stop_memory_gradient": False},
    "landmark": {"chunk_size": 3, "num_chunks": 4, "top_k": 2},
    "moba": {"chunk_size": 3, "num_chunks": 4, "top_k": 1},
    "nsa": {"chunk_size": 3, "num_chunks": 4, "top_k": 3},
    "routing": {"num_centroids": 3, "capacity": 2, "window": 3},
    "sink": {"num_layers": 1, "num_sinks": 2, "window": 5},
}
"""Of one layer, where a step that is read is read from nothing else than its own input."""


@pytest.mark.parametrize(("name", "fields"), SINGLE.items(), ids=SINGLE)
def test_an_output_depends_on_the_steps_that_were_read_and_on_no_other(name, fields):
    module = built(name, fields)
    x = inputs(module)[:1].requires_grad_()
    state = module.initial_state(1)
    for t in range(STEPS):
        reads = module.recalled(x[:, t], state).reads.values()
        y, state = module(x[:, t : t + 1], state)
        (grad,) = torch.autograd.grad(y.square().sum(), x, retain_graph=True)
        depends = grad[0].abs().amax(1).nonzero().flatten().tolist()
        read = {
            int(s) for steps, weights in reads for s, w in zip(steps[0], weights[0], strict=True) if w > 0
        }
        assert depends == sorted(read | {t})


@pytest.mark.parametrize("name", sorted({"landmark", "moba", "sink"}))
def test_what_was_read_is_the_sum_of_values_by_these_weights(name):
    """By head, of what attention returned: an independent way to the same numbers."""
    module = built(name, SINGLE[name])
    x = inputs(module)
    state, layer, seen = module.initial_state(3), module.layers[0], {}
    hook: Any = None
    weigh, act = layer.weigh, getattr(layer, "mix", layer.out)
    for t in range(STEPS):
        layer.weigh = lambda *given: seen.setdefault("weights", weigh(*given))
        module.recalled(x[:, t], state)
        layer.weigh = weigh
        if name == "sink":
            hook = layer.out.register_forward_pre_hook(lambda _, given: seen.update(read=given[0]))
        else:
            layer.mix = lambda *given: seen.setdefault("read", act(*given).flatten(2))
        _, after = module(x[:, t : t + 1], state)
        if name == "sink":
            hook.remove()
            values = after["values"][:, 0].unflatten(-1, (layer.heads, -1))
            expected = torch.einsum("bhs,bshe->bhe", seen["weights"], values)
        else:
            layer.mix = act
            near, far = seen["weights"]
            own = torch.cat([state["recent_values_0"], after["recent_values_0"][:, -1:]], dim=1)
            own, stored = (part.unflatten(-1, (layer.heads, -1)) for part in (own, state["values_0"]))
            expected = torch.einsum("bhc,bche->bhe", near, own)
            expected = expected + torch.einsum("bhmc,bmche->bhe", far, stored)
        torch.testing.assert_close(seen["read"][:, 0], expected.flatten(1))
        state = after
        seen.clear()


@pytest.mark.parametrize("name", ["titans_mag", "titans_mal"])
def test_windows_beside_a_memory_tell_what_they_read(name):
    module = built(name, {"window": 4, "chunk_size": 3, "num_persistent": 0})
    x, state, seen = inputs(module), module.initial_state(3), {}
    attention = module.layers[0].attention
    attention.out.register_forward_pre_hook(lambda _, given: seen.update(read=given[0]))
    for t in range(STEPS):
        told = module.recalled(x[:, t], state).reads["window, layer 0"]
        weigh = attention.weigh
        attention.weigh = lambda *given, weigh=weigh: seen.setdefault("weights", weigh(*given))
        module.recalled(x[:, t], state)
        attention.weigh = weigh
        _, after = module(x[:, t : t + 1], state)
        values = torch.cat([state["values_0"], after["values_0"][:, -1:]], dim=1)
        values = values.unflatten(-1, (attention.heads, -1))
        expected = torch.einsum("bhs,bshe->bhe", seen["weights"], values).flatten(1)
        torch.testing.assert_close(seen["read"][:, 0], expected)
        assert torch.allclose(told.weights.sum(1), torch.ones(3))
        state = after
        seen.clear()
    persistent = built(name, {"window": 4, "num_persistent": 3})
    told = persistent.recalled(x[:, 0], persistent.initial_state(3)).reads["window, layer 0"]
    assert bool((told.weights.sum(1) < 1).all())


def test_what_routing_read_is_the_sum_of_values_by_these_weights():
    """By the steps that it names: values of any of them, as the layer made them when they came."""
    module = built("routing", {"num_centroids": 3, "capacity": 2, "window": 3, "num_heads": 1})
    x, state, seen = inputs(module), module.initial_state(3), {}
    (layer,) = module.layers
    values = layer.tokens(x, torch.float64).value
    layer.out.register_forward_pre_hook(lambda _, given: seen.update(read=given[0]))
    far = 0
    for t in range(STEPS):
        reads = module.recalled(x[:, t], state).reads.values()
        _, state = module(x[:, t : t + 1], state)
        expected = torch.zeros(3, 16, dtype=torch.float64)
        for steps, weights in reads:
            expected += torch.einsum("bs,bsd->bd", weights.double(), values[torch.arange(3)[:, None], steps])
            far += int((steps < t - 3).logical_and(weights > 0).sum())
        torch.testing.assert_close(seen["read"][:, 0], expected, atol=1e-6, rtol=1e-5)
    assert far


@pytest.mark.parametrize("segment_chunks", [1, 2])
def test_a_segment_of_titans_mac_is_read_as_it_is_told(segment_chunks):
    """Inputs of the segment and what was recalled for each take all that persistent tokens leave."""
    fields = {"chunk_size": 3, "segment_chunks": segment_chunks, "num_layers": 1}
    module = built("titans_mac", {**fields, "num_persistent": 0, "attention_heads": 1})
    x, state, length = inputs(module), module.initial_state(3), 3 * segment_chunks
    attention, seen = module.layers[0].attention, {}
    attention.out.register_forward_pre_hook(lambda _, given: seen.update(read=given[0]))
    for t in range(STEPS):
        own, recalls = module.recalled(x[:, t], state).reads.values()
        for steps, _ in (own, recalls):
            assert [int(step) for step in steps[0] if step >= 0] == list(range(t - t % length, t + 1))
        torch.testing.assert_close(own.weights.sum(1) + recalls.weights.sum(1), torch.ones(3))
        _, state = module(x[:, t : t + 1], state)
        weights = torch.cat([own.weights, recalls.weights], dim=1).double()
        expected = torch.einsum("bs,bsd->bd", weights, state["values_0"])
        torch.testing.assert_close(seen["read"][:, 0], expected, atol=1e-6, rtol=1e-5)
    persistent = built("titans_mac", {**fields, "num_persistent": 3})
    told = persistent.recalled(x[:, 0], persistent.initial_state(3)).reads.values()
    assert bool((torch.stack([read.weights.sum(1) for read in told]).sum(0) < 1).all())


def test_a_sink_that_reads_nothing_takes_its_share():
    module = built("sink", {"num_layers": 1, "window": 4, "sink_logit": True, "num_learned_sinks": 2})
    x = inputs(module)
    with torch.no_grad():
        module.layers[0].sink_logit.fill_(30.0)
    (read,) = module.recalled(x[:, 0], module.initial_state(3)).reads.values()
    assert float(read.weights.sum(1).max()) < 1e-6


def test_a_slot_that_was_blended_is_told_by_its_share():
    """Slots of one chunk each: the first blended one, with blend 0.25, is a quarter its last chunk."""
    whole, part = (built("elmur", {"chunk_size": 2, "num_slots": 2, "blend": blend}) for blend in (1.0, 0.25))
    x = inputs(whole)
    for module, share in ((whole, 1.0), (part, 0.25)):
        state = module.initial_state(3)
        for t in range(10):
            read = module.recalled(x[:, t], state).reads["slots, layer 0"]
            _, state = module(x[:, t : t + 1], state)
            if t in (2, 3):
                torch.testing.assert_close(read.weights.sum(1), torch.ones(3))
            if t == 8:
                torch.testing.assert_close(read.weights.sum(1), torch.full((3,), share))
                assert sorted(read.steps[0].tolist()) == [4, 5, 6, 7]


@pytest.mark.parametrize("name", ["gru", "lstm", "gated_delta", "shm"])
def test_a_state_is_told_to_move_as_far_as_a_step_moves_it(name):
    module = built(name, {})
    x = inputs(module)
    states = lived(module, x)
    for t in range(10, STEPS):  # no row begins any more
        both = [
            torch.cat([value.flatten(1) for value in state.values() if value.is_floating_point()], dim=1)
            for state in states[t : t + 2]
        ]
        expected = torch.linalg.vector_norm(both[1] - both[0], dim=1) / both[1].square().sum(1).sqrt()
        torch.testing.assert_close(module.recalled(x[:, t], states[t]).written[MOVED], expected)


def test_a_gate_that_is_shut_writes_nothing_and_a_newborn_state_is_new_all_over():
    module = built("gru", {})
    x = inputs(module)[:, 0]
    born = module.initial_state(3)
    _, state = module(x[:, None], born)
    assert module.recalled(x, born).written[MOVED].tolist() == pytest.approx([1.0] * 3)
    with torch.no_grad():
        module.cell.bias_ih[16:32] = 1e3
    assert module.recalled(x, state).written[MOVED].tolist() == pytest.approx([0.0] * 3, abs=1e-12)
    assert module.recalled(x, born).written[MOVED].tolist() == [0.0] * 3


def test_parts_are_told_by_their_places():
    read = Read.of(torch.tensor([[0, -1]]), torch.tensor([[0.5, 0.5]], dtype=torch.float64))
    assert read.weights.tolist() == [[0.5, 0.0]]
    part = Recalled({"window": read}, {"surprise": torch.ones(1)})
    whole: Any = Recalled.of_parts({"part 0": None, "part 1": part})
    assert list(whole.reads) == ["part 1, window"]
    assert list(whole.written) == ["part 1, surprise"]
    assert Recalled.of_parts({"part 0": None}) is None


def test_a_stack_says_what_its_parts_say():
    module = built(
        "stack", {"parts": (memory.make_config("gru", dim=16), memory.make_config("sink", dim=16))}
    )
    x = inputs(module)[:, 0]
    recalled = module.recalled(x, module.initial_state(3))
    assert list(recalled.reads) == ["part 1, window, layer 0", "part 1, window, layer 1"]
    assert list(recalled.written) == [f"part 0, {MOVED}"]
