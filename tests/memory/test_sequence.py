"""Sequence models: the contract with tokens as inputs, generation, parameter counts, saving and loading."""

from __future__ import annotations

import json
import os

import pytest
import torch

from scrubjay.memory import SequenceConfig, SequenceModel, list_memories, make_config, match_parameters
from scrubjay.memory.parts.layers import ShortConvolution
from scrubjay.memory.sketch import MisfitError

VOCAB = 11


def make(memory: str = "gru", sinks: int = 0, **fields) -> SequenceModel:
    torch.manual_seed(0)
    config = SequenceConfig(VOCAB, make_config(memory, dim=8, **fields), num_learned_sinks=sinks)
    return config.build().double()


def draw(*shape: int) -> torch.Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.one_in(3)
@pytest.mark.parametrize(
    ("memory", "sinks"), [*((name, 0) for name in list_memories()), ("gru", 2), ("sink", 1), ("hcam", 5)]
)
def test_any_cut_gives_the_same_and_start_resets(memory, sinks):
    model, tokens = make(memory, sinks), draw(3, 30)
    start = torch.zeros(3, 30, dtype=torch.bool)
    start[1, 13] = True
    logits, state = model(tokens, model.initial_state(3), start)
    pieces, current_state = [], model.initial_state(3)
    for begin, end in ((0, 1), (1, 2), (2, 17), (17, 30)):
        piece, current_state = model(tokens[:, begin:end], current_state, start[:, begin:end])
        pieces.append(piece)
    torch.testing.assert_close(torch.cat(pieces, dim=1), logits, rtol=1e-9, atol=1e-9)
    assert current_state.keys() == state.keys() == model.initial_state(3).keys()
    for name, value in state.items():
        torch.testing.assert_close(current_state[name], value, rtol=1e-9, atol=1e-9)
    fresh, _ = model(tokens[1:2, 13:], model.initial_state(1))
    torch.testing.assert_close(logits[1:2, 13:], fresh, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("memory", ["gru", "titans", "sink"])
def test_learned_sinks_are_tokens_that_come_before_all_others(memory):
    model, plain, tokens = make(memory, 3), make(memory), draw(2, 7)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "sinks"})
    # A model without sinks, whose vocabulary contains them after its tokens.
    plain.embedding = torch.nn.Embedding.from_pretrained(
        torch.cat([model.embedding.weight, model.get_parameter("sinks")])
    )
    sinks = torch.arange(VOCAB, VOCAB + 3).expand(2, -1)
    expected, after = plain(torch.cat([sinks, tokens], dim=1), plain.initial_state(2))
    logits, state = model(tokens, model.initial_state(2))
    torch.testing.assert_close(logits, expected[:, 3:, :VOCAB], rtol=1e-9, atol=1e-9)
    for name, value in after.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("starts", [False, True])
def test_learned_sinks_learn_from_sequences_that_begin(starts):
    model, tokens = make("gru", 2), draw(2, 6)
    start = torch.zeros(2, 6, dtype=torch.bool)
    start[1, 4] = starts
    state = {name: value.detach() for name, value in model.initial_state(2).items()}
    sinks = model.get_parameter("sinks")
    (gradient,) = torch.autograd.grad(model(tokens, state, start)[0].logsumexp(-1).sum(), sinks)
    assert bool(gradient.abs().max() > 0) == starts
    (gradient,) = torch.autograd.grad(model(tokens, model.initial_state(2))[0].logsumexp(-1).sum(), sinks)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("width", [1, 2, 4])
def test_the_short_convolution_is_torchs_within_every_sequence(width):
    torch.manual_seed(0)
    convolution = ShortConvolution(6, width).double()
    x = torch.randn(2, 9, 6, dtype=torch.float64)
    start = torch.zeros(2, 9, dtype=torch.bool)
    start[1, 5] = True
    y, before = convolution(x, convolution.initial_state(2), start)
    assert torch.equal(before, x[:, 10 - width :])
    nothing, same_before = convolution(x[:, :0], before)
    assert nothing.shape == (2, 0, 6)
    assert torch.equal(same_before, before)
    kernel = convolution.weight.flip(0).T[:, None]  # the last input's weight comes last there
    for row, begin, end in ((0, 0, 9), (1, 0, 5), (1, 5, 9)):
        padded = torch.nn.functional.pad(x[row, begin:end].T, (width - 1, 0))
        expected = torch.nn.functional.conv1d(padded, kernel, groups=6).T
        torch.testing.assert_close(y[row, begin:end], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("memory", ["gru", "hcam"])
def test_causal_and_rows_are_independent(memory):
    model, tokens = make(memory), draw(3, 20)
    logits, _ = model(tokens, model.initial_state(3))
    other_tokens = tokens.clone()
    other_tokens[0, 12:] = (other_tokens[0, 12:] + 1) % VOCAB
    other, _ = model(other_tokens, model.initial_state(3))
    torch.testing.assert_close(other[0, :12], logits[0, :12], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(other[1:], logits[1:], rtol=1e-9, atol=1e-9)
    assert not torch.equal(other[0, 12:], logits[0, 12:])


@pytest.mark.one_in(4)
@pytest.mark.parametrize("memory", list_memories())
def test_generation_is_the_argmax_of_the_forward_pass_on_what_was_generated(memory):
    model, prompt = make(memory), draw(2, 5)
    new, state = model.generate(prompt, 9, temperature=0)
    whole = torch.cat([prompt, new], dim=1)
    logits, after = model(whole[:, :-1], model.initial_state(2))
    assert torch.equal(logits[:, 4:].argmax(dim=-1), new)
    for name, value in after.items():
        torch.testing.assert_close(state[name], value, rtol=1e-9, atol=1e-9)
    early, state = model.generate(prompt, 4, temperature=0)
    late, _ = model.generate(early[:, -1:], 5, state, temperature=0)
    assert torch.equal(torch.cat([early, late], dim=1), new)


def test_a_temperature_near_zero_takes_the_likeliest():
    model, prompt = make(), draw(2, 5)
    likeliest, _ = model.generate(prompt, 4, temperature=0)
    assert torch.equal(model.generate(prompt, 4, temperature=1e-310)[0], likeliest)


def test_draws_are_of_the_generator_and_among_the_likeliest():
    model, prompt = make(), draw(1, 4).expand(400, -1)

    def generate(**options):
        return model.generate(prompt, 3, generator=torch.Generator().manual_seed(5), **options)[0]

    assert torch.equal(generate(), generate())
    assert torch.equal(generate(top_k=1), generate(temperature=0))
    logits, _ = model(prompt[:1], model.initial_state(1))
    first = generate(temperature=2.0, top_k=3)[:, 0]
    assert set(first.tolist()) == set(logits[0, -1].topk(3).indices.tolist())
    expected = (logits[0, -1].topk(3).values / 2).softmax(dim=-1)
    frequencies = torch.stack([(first == token).double().mean() for token in logits[0, -1].topk(3).indices])
    assert ((frequencies - expected).abs() < 5 * (expected * (1 - expected) / 400).sqrt()).all()
    assert generate(top_k=99).shape == (400, 3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(2, 0, dtype=torch.long), 3), {}, r"prompt has shape \(2, 0\)"),
        ((torch.zeros(2, 1, dtype=torch.long), 0), {}, "max_new_tokens=0"),
        ((torch.zeros(2, 1, dtype=torch.long), 1), {"temperature": -1.0}, "temperature=-1.0"),
        ((torch.zeros(2, 1, dtype=torch.long), 1), {"temperature": float("nan")}, "temperature=nan"),
        ((torch.zeros(2, 1, dtype=torch.long), 1), {"top_k": 0}, "top_k=0"),
    ],
)
def test_impossible_generation_is_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        make().generate(*arguments, **options)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("memory", list_memories())
def test_state_is_counted_and_gradients_reach_all(memory):
    model = make(memory)
    state = model.initial_state(3)
    assert model.state_bytes(3) == sum(value.numel() * value.element_size() for value in state.values())
    # Long enough for memories that look back by whole chunks.
    logits, _ = model(draw(3, 80), state)
    logits.square().mean().backward()
    silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    exempt = {f"blocks.{i}.memory.{name}" for i in (0, 1) for name in model.blocks[i].memory.no_gradient}  # pyright: ignore
    assert silent <= exempt


@pytest.mark.parametrize(
    ("memory", "fields"), [("gru", {}), ("gru", {"sinks": 2}), ("hcam", {"chunk_size": 3, "window": 5})]
)
def test_a_saved_model_comes_back_whole(memory, fields, tmp_path):
    model = make(memory, **fields).float()
    model.save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["memory"]["name"] == memory
    assert config["num_learned_sinks"] == fields.get("sinks", 0)
    loaded_model = SequenceModel.from_pretrained(tmp_path / "model", local_files_only=True)
    assert loaded_model.config == model.config
    tokens = draw(2, 20)
    expected, _ = model(tokens, model.initial_state(2))
    assert torch.equal(loaded_model(tokens, loaded_model.initial_state(2))[0], expected)
    loaded_model.save_pretrained(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / "model" / file).read_bytes()


@pytest.mark.parametrize(("name", "size"), [("dim", 2**27), ("vocab_size", 2**40), ("num_blocks", 10**9)])
def test_a_config_larger_than_the_weights_takes_no_memory(tmp_path, name, size):
    """A folder may be untrusted: no model is built that is far larger than its weights."""
    make().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    (config["memory"] if name == "dim" else config)[name] = size
    file.write_text(json.dumps(config))
    with pytest.raises(MisfitError, match=r"config does not match|but the config has"):
        SequenceModel.from_pretrained(tmp_path)


def test_a_model_comes_from_a_cache_of_the_hub_too(tmp_path):
    model = make()
    cache_folder = tmp_path / "models--me--model"
    model.save_pretrained(cache_folder / "snapshots" / ("1" * 40))
    (cache_folder / "refs").mkdir()
    (cache_folder / "refs" / "main").write_text("1" * 40)
    loaded_model = SequenceModel.from_pretrained("me/model", cache_dir=tmp_path, local_files_only=True)
    assert loaded_model.config == model.config
    assert torch.equal(loaded_model.embedding.weight, model.embedding.weight)


@pytest.mark.parametrize("number", [None, 1, 3, "2"])
def test_a_model_of_another_format_is_refused(tmp_path, number):
    make().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format": number}))
    with pytest.raises(ValueError, match=r"format.*reads format 2; load it with the version that wrote"):
        SequenceModel.from_pretrained(tmp_path)


def test_a_folder_without_config_is_named(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=f"{tmp_path.name} has no config.json; write the model with save_pretrained"
    ):
        SequenceModel.from_pretrained(tmp_path)


def test_mismatched_weights_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(file.read_text().replace('"num_blocks": 2', '"num_blocks": 3'))
    with pytest.raises(ValueError, match=r"do not match its config.json: .*blocks\.2"):
        SequenceModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["7", "[" * 100_000, "{", b"\xff{}", '"x"', "huge"], ids=range(6))
def test_a_config_that_is_no_object_is_refused(text, tmp_path):
    make().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    if text == "huge":
        with file.open("r+b") as stream:
            stream.truncate(2**40)
    with pytest.raises(ValueError, match=r"is no JSON object|is not a regular file of at most|format"):
        SequenceModel.from_pretrained(tmp_path)


def test_weights_in_a_pipe_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="is not a regular file"):
        SequenceModel.from_pretrained(tmp_path)


def test_damaged_weights_are_refused(tmp_path):
    make().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\x00" * 7)
    with pytest.raises(ValueError, match=r"model\.safetensors: .*; write the model again"):
        SequenceModel.from_pretrained(tmp_path)


@pytest.mark.parametrize("memory", list_memories())
def test_models_of_any_memory_are_made_equally_large(memory):
    config = SequenceConfig(VOCAB, make_config(memory, dim=16))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    new_config = match_parameters(config, 60_000)
    assert torch.equal(torch.rand(1), expected)  # counting does not change the random state
    assert abs(new_config.build().num_parameters - 60_000) <= 600
    assert new_config.memory == config.memory


def test_a_budget_that_cannot_be_is_named():
    config = SequenceConfig(VOCAB, make_config("gru", dim=16))
    least = SequenceConfig(VOCAB, config.memory, feed_forward_width=1).build().num_parameters
    assert match_parameters(config, least).feed_forward_width == 1
    with pytest.raises(ValueError, match=rf"budget=1,000 param.*GRUConfig with width 16.*least {least:,}"):
        match_parameters(config, 1_000)


@pytest.mark.parametrize("field", ["vocab_size", "num_blocks", "feed_forward_width", "convolution_width"])
def test_impossible_sizes_are_named(field):
    with pytest.raises(ValueError, match=f"{field}=0"):
        SequenceConfig(**{"vocab_size": 4, "memory": make_config("gru", dim=8), field: 0})


def test_learned_sinks_are_counted_from_none():
    with pytest.raises(ValueError, match="num_learned_sinks=-1: must not be negative"):
        SequenceConfig(4, make_config("gru", dim=8), num_learned_sinks=-1)


def test_tokens_without_time_are_refused():
    model = make()
    with pytest.raises(ValueError, match=r"tokens have shape \(3,\); expected \[batch, time\]"):
        model(draw(3), model.initial_state(3))


@pytest.mark.parametrize(
    ("tokens", "error", "message"),
    [
        ([[1, 2]], TypeError, r"tokens=\[\[1, 2\]\]: expected a tensor"),
        (torch.rand(1, 2), ValueError, r"tokens have dtype torch.float32; .* pass tokens.long\(\)"),
        (torch.tensor([[3, VOCAB]]), ValueError, "tokens range from 3 to 11; the vocabulary .* from 0 to 10"),
        (torch.tensor([[-1, 3]]), ValueError, "tokens range from -1 to 3"),
    ],
)
def test_invalid_tokens_are_named(tokens, error, message):
    model = make()
    with pytest.raises(error, match=message):
        model(tokens, model.initial_state(1))
    with pytest.raises(error, match=message):
        model.generate(tokens, 1)


@pytest.mark.parametrize("time", [1, 3])
def test_a_state_of_another_model_is_refused(time):
    model, memory = make(), make_config("gru", dim=8)
    for other, message in (
        (make("lstm"), r"state has 'block_0\.cell', which belongs to another model"),
        (
            SequenceConfig(VOCAB, memory, num_blocks=3).build(),
            r"has 'block_2\.convolution', which belongs to another model",
        ),
        (SequenceConfig(VOCAB, memory, num_blocks=1).build(), r"but no 'block_1\.convolution': start from"),
        (
            SequenceConfig(VOCAB, memory, convolution_width=1).build(),
            r"has shape \(2, 0, 8\); expected \(2, 2, 8\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            model(draw(2, time), other.initial_state(2))


def test_wrong_types_of_state_and_memory_are_named():
    model = make()
    with pytest.raises(TypeError, match=r"state=None; expected a dict such as initial_state\(2\)"):
        model(draw(2, 3), None)
    with pytest.raises(ValueError, match="has batch size 1; expected 2"):
        model(draw(2, 3), model.initial_state(1))
    with pytest.raises(
        TypeError, match=r"memory='gru': expected a config, as returned by make_config\(NAME\)"
    ):
        SequenceConfig(4, "gru")  # pyright: ignore[reportArgumentType]


def test_a_pipe_is_no_name_of_a_model_on_the_hub(tmp_path):
    os.mkfifo(tmp_path / "model")
    with pytest.raises(ValueError, match="model is not a folder; give a folder that save_pretrained wrote"):
        SequenceModel.from_pretrained(tmp_path / "model")
