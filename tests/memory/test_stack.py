"""A stack against its parts, called one after the other."""

import dataclasses
import json
from typing import Any

import pytest
import torch

from scrubjay.memory import MemoryConfig, SequenceConfig, SequenceModel, check_memory, make, make_config
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.stack import StackConfig

DIM = 8
GRU = make_config("gru", dim=DIM)
HCAM = make_config("hcam", dim=DIM, chunk_size=3, num_chunks=4, top_k=2)
SINK = make_config("sink", dim=DIM, window=3, num_sinks=1)
TITANS = make_config("titans", dim=DIM, chunk_size=4)
NONE = make_config("none", dim=DIM)
INNER = StackConfig(DIM, (HCAM, NONE), residual=False)
STACKS = {
    "gru+hcam": StackConfig(DIM, (GRU, HCAM)),
    "titans+sink": StackConfig(DIM, (TITANS, SINK), residual=False),
    "gru+(hcam+none)+gru": StackConfig(DIM, (GRU, INNER, GRU)),
}


def build_stack(config: StackConfig, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    module = config.build().double()
    for norm in module.norms:  # a freshly initialized norm might be skipped unnoticed
        for parameter in norm.parameters():
            torch.nn.init.normal_(parameter)
    return module


def draw_inputs(batch=3, time=13, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, time, DIM, generator=generator, dtype=torch.float64)
    return x, torch.rand(batch, time, generator=generator) < 0.15


@pytest.mark.parametrize("name", STACKS)
def test_every_part_reads_the_stream_before_it(name):
    module, (x, start) = build_stack(STACKS[name]), draw_inputs()
    y, after = module(x, module.initial_state(3), start)
    stream, size = x, 0
    for index, (norm, part) in enumerate(zip(module.norms, module.parts, strict=True)):
        inputs = norm(stream) if module.residual else stream
        # The expectation is computed step by step, without the path for segments.
        state, outputs = part.initial_state(3), []
        for t in range(x.shape[1]):
            out, state = part(inputs[:, t : t + 1], state, start[:, t : t + 1])
            outputs.append(out)
        stream = torch.cat(outputs, dim=1) + (stream if module.residual else 0)
        for key, value in state.items():
            torch.testing.assert_close(after[f"{index}.{key}"], value, rtol=0, atol=1e-10)
        size += len(state)
    assert len(after) == size
    torch.testing.assert_close(y, stream, rtol=0, atol=1e-10)


@pytest.mark.parametrize("part", [GRU, HCAM, SINK, TITANS, NONE], ids=lambda part: type(part).__name__)
def test_without_residual_a_stack_of_one_is_that_one(part):
    module, (x, start) = build_stack(StackConfig(DIM, (part,), residual=False)), draw_inputs()
    alone = module.parts[0]
    y, after = module(x, module.initial_state(3), start)
    expected, expected_after = alone(x, alone.initial_state(3), start)
    assert torch.equal(y, expected)
    assert list(after) == [f"0.{name}" for name in expected_after]
    assert all(torch.equal(after[f"0.{name}"], value) for name, value in expected_after.items())
    assert len(list(module.parameters())) == len(list(alone.parameters()))


def test_stacks_in_a_stack_are_one_long_stack():
    flat = build_stack(StackConfig(DIM, (GRU, HCAM, SINK)))
    nested = build_stack(
        StackConfig(DIM, (StackConfig(DIM, (GRU, HCAM)), StackConfig(DIM, (SINK,))), residual=False)
    )
    places = ["0.0", "0.1", "1.0"]
    for index, place in enumerate(places):
        outer, inner = map(int, place.split("."))
        for modules, attribute in ((flat.parts, "parts"), (flat.norms, "norms")):
            getattr(nested.parts[outer], attribute)[inner].load_state_dict(modules[index].state_dict())
    x, start = draw_inputs()
    y, after = flat(x, flat.initial_state(3), start)
    actual, actual_after = nested(x, nested.initial_state(3), start)
    assert torch.equal(actual, y)
    assert len(actual_after) == len(after)
    for name, value in after.items():
        index, _, rest = name.partition(".")
        assert torch.equal(actual_after[f"{places[int(index)]}.{rest}"], value)


def test_a_stack_of_what_remembers_nothing_remembers_nothing():
    module, (x, start) = build_stack(StackConfig(DIM, (NONE, NONE))), draw_inputs()
    y, after = module(x, module.initial_state(3), start)
    assert after == {}
    assert module.state_bytes(5) == 0
    torch.testing.assert_close(module(x.flip(1), {}, start)[0].flip(1), y)


@pytest.mark.slow
def test_a_read_is_the_sum_over_parts_that_retrieve():
    module, (x, _) = build_stack(StackConfig(DIM, (HCAM, GRU, INNER))), draw_inputs()
    assert module.retrieves
    assert not build_stack(StackConfig(DIM, (GRU, SINK))).retrieves
    _, state = module(x, module.initial_state(3))
    first, third = module.parts[0], module.parts[2].parts[0]
    own = ({k.removeprefix(p): v for k, v in state.items() if k.startswith(p)} for p in ("0.", "2.0."))
    expected = first.read(module.norms[0](x), next(own)) + third.read(module.norms[2](x), next(own))
    torch.testing.assert_close(module.read(x, state), expected)
    assert (expected != 0).any()
    hidden = "1.hidden"
    assert set(module.stores) == set(state) - {hidden}
    exempt = check_memory(module, laws=(7,), steps=24)
    assert exempt == [f"law 7 (empty store reads zero): entries not in `stores`: {hidden}"]


def test_silent_parameters_are_those_of_the_parts():
    lone = make_config("hcam", dim=DIM, chunk_size=1, top_k=1)
    module = build_stack(StackConfig(DIM, (GRU, StackConfig(DIM, (lone,)))))
    assert module.no_gradient == tuple(f"parts.1.parts.0.{name}" for name in lone.build().no_gradient)
    assert set(module.no_gradient) <= {name for name, _ in module.named_parameters()}


def test_sizes_follow_from_the_parts():
    for config in STACKS.values():
        module = config.build()
        assert module.state_bytes(7) == sum(part.build().state_bytes(7) for part in config.parts)
    assert STACKS["gru+hcam"].chunk_size == 3
    assert StackConfig(DIM, (GRU, StackConfig(DIM, (HCAM, TITANS)))).chunk_size == 4
    assert StackConfig(DIM, (GRU, NONE)).chunk_size == 1
    default: Any = make_config("stack", dim=22)
    assert default.parts == (make_config("sink", dim=22), make_config("gru", dim=22))


def test_another_width_is_named_with_the_stacks_and_mended():
    with pytest.raises(
        ValueError, match=r"parts\[1\], a HCAMConfig, has dim=8, but the stack has dim=16; .*dim=16"
    ):
        StackConfig(16, (make_config("gru", dim=16), HCAM))
    with pytest.raises(ValueError, match="dim=16"):
        dataclasses.replace(STACKS["gru+hcam"], dim=16)
    wide = STACKS["gru+(hcam+none)+gru"].at_width(16)
    assert wide.parts == (make_config("gru", dim=16), INNER.at_width(16), make_config("gru", dim=16))
    none = make_config("none", dim=16)
    assert wide.parts[1] == StackConfig(16, (dataclasses.replace(HCAM, dim=16), none), residual=False)


def test_no_part_is_an_error():
    with pytest.raises(ValueError, match="at least one memory"):
        make("stack", parts=())


def test_parts_that_are_no_configs_are_refused():
    with pytest.raises(TypeError, match=r"parts='gru\+hcam': expected configs"):
        make("stack", parts="gru+hcam")
    with pytest.raises(
        TypeError, match=r"parts=\(GRUConfig.*'hcam'\): expected configs, as returned by make_config"
    ):
        make("stack", dim=16, parts=(make_config("gru", dim=16), "hcam"))


@pytest.mark.parametrize("config", STACKS.values(), ids=STACKS)
def test_a_stack_goes_through_json(config):
    assert decode(MemoryConfig, json.loads(json.dumps(encode(config)))) == config


def test_a_part_that_json_got_wrong_is_named():
    wrong = encode(STACKS["gru+hcam"])
    wrong["parts"][1]["chunk_size"] = "3"
    with pytest.raises(ValueError, match=r"config\.parts\[1\]\.chunk_size='3'"):
        decode(MemoryConfig, wrong)
    with pytest.raises(ValueError, match=r"config\.parts=None: expected"):
        decode(MemoryConfig, wrong | {"parts": None})


def test_a_sequence_model_of_stacks_is_saved_and_goes_on(tmp_path):
    torch.manual_seed(0)
    model = SequenceConfig(11, STACKS["gru+(hcam+none)+gru"], num_blocks=2).build()
    model.save_pretrained(tmp_path)
    again = SequenceModel.from_pretrained(tmp_path)
    assert again.config == model.config
    prompt = torch.randint(0, 11, (2, 9))
    tokens, state = model.generate(prompt, 7, temperature=0)
    expected, expected_state = again.generate(prompt, 7, temperature=0)
    assert torch.equal(tokens, expected)
    assert state.keys() == expected_state.keys() == model.initial_state(1).keys()
    assert "block_1.1.0.contents_0" in state
