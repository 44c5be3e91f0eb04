"""Sinks and windows against texts cut by hand, and on very long texts."""

import pytest
import torch
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context.layers.rotation import find_rotation

pytestmark = pytest.mark.requires("transformers")


@pytest.mark.parametrize(("num_sinks", "budget"), [(0, 1), (0, 6), (1, 2), (3, 9)])
def test_a_query_reads_the_text_that_is_left_at_its_slots(num_sinks, budget, tiny_llama):
    # With one layer a key depends on its token alone, so the model can read the retained tokens directly.
    model = tiny_llama(dtype=torch.float64, num_hidden_layers=1)
    ids = torch.randint(2, 64, (1, 30))
    policy = context.make("sinks", budget=budget, num_sinks=num_sinks)
    with torch.no_grad():
        expected = []
        for t in range(30):
            first = max(num_sinks, t + 1 - (budget - num_sinks))
            left = torch.cat([ids[:, : min(num_sinks, t + 1)], ids[:, first : t + 1]], dim=1)
            expected.append(model(left, cache=DynamicCache(config=model.config)).logits[:, -1])
        logits = model(ids, cache=context.PolicyCache(policy, model)).logits
    torch.testing.assert_close(logits, torch.stack(expected, dim=1), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_texts_cut_by_hand(tiny_llama):
    model = tiny_llama(dtype=torch.float64, num_hidden_layers=1)
    ids = torch.randint(2, 64, (1, 20))
    logits = model(ids, cache=context.PolicyCache(context.make("sinks", budget=7, num_sinks=2), model)).logits
    weight = torch.randn(20, 64, dtype=torch.float64)
    (logits[0] * weight).sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for t in range(20):
        left = torch.cat([ids[:, : min(2, t + 1)], ids[:, max(2, t - 4) : t + 1]], dim=1)
        (model(left, cache=DynamicCache(config=model.config)).logits[0, -1] * weight[t]).sum().backward()
    for gradient, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("begin", [1_000_000, 16_000_000])
def test_a_window_is_the_same_after_millions_of_tokens(begin, tiny_llama):
    # The model's float32 angles are off by up to 0.06 there; moving to exact positions corrects this.
    model = tiny_llama()
    ids = torch.randint(2, 64, (1, 60))
    policy = context.make("window", budget=8)
    with torch.no_grad():
        expected = model(ids, cache=context.PolicyCache(policy, model)).logits
        cache = context.PolicyCache(policy, model)
        cache.count = begin
        positions = begin + torch.arange(60)[None]
        first = model(ids[:, :20], position_ids=positions[:, :20], cache=cache).logits
        rest = [
            model(ids[:, i : i + 1], position_ids=positions[:, i : i + 1], cache=cache).logits
            for i in range(20, 60)
        ]
    far = torch.cat([first, *rest], dim=1)
    torch.testing.assert_close(far[:, 20:], expected[:, 20:], atol=1e-4, rtol=1e-4)


def test_sinks_are_at_slots_after_any_number_of_tokens(tiny_llama):
    model = tiny_llama()
    sinks, ids = torch.randint(2, 64, (1, 4)), torch.randint(2, 64, (1, 40))
    policy = context.make("sinks", budget=12)
    with torch.no_grad():
        near = context.PolicyCache(policy, model)
        model(sinks, cache=near)
        expected = model(ids, cache=near).logits[:, 20:]
        far = context.PolicyCache(policy, model)
        model(sinks, cache=far)
        far.count = 3_000_000
        for layer in far.attention_layers:
            layer.past_length = 3_000_000
            layer.memory.state = {
                name: torch.nn.functional.pad(x, (0, 0, 0, 8)) for name, x in layer.memory.state.items()
            }
        logits = model(ids, cache=far).logits[:, 20:]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


def test_rotary_positions_that_cannot_be_moved_are_refused(tiny_llama):
    policy = context.make("sinks")
    with pytest.raises(ValueError, match="dynamic"):
        context.PolicyCache(
            policy, tiny_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
        )
    from transformers import GPT2Config, GPT2LMHeadModel

    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2))
    with pytest.raises(ValueError, match="no rotary positions"):
        context.PolicyCache(policy, gpt)


def test_positions_are_exact(tiny_llama):
    model = tiny_llama()
    rotary = find_rotation(model).by_layer[0]
    assert rotary is not None
    rotation = rotary.make_rotation(torch.tensor([[5_000_003]]), torch.tensor([[5_000_003]]))
    cos, sin = model.model.rotary_emb(torch.zeros(1, 1, dtype=torch.float64), torch.tensor([[5_000_003]]))
    angle = 5_000_003 * model.model.rotary_emb.inv_freq.double()
    x = torch.ones(1, 1, 1, 8, dtype=torch.float64)
    left, right = x.chunk(2, dim=-1)
    cos, sin = cos[..., :4].double(), sin[..., :4].double()
    theirs = torch.cat([left * cos - right * sin, right * cos + left * sin], dim=-1)
    exact = torch.cat([angle.cos() - angle.sin(), angle.cos() + angle.sin()])
    assert (theirs[0, 0, 0] - exact).abs().max() > 1e-3
    torch.testing.assert_close(rotation(theirs)[0, 0, 0], exact, atol=1e-6, rtol=0)
