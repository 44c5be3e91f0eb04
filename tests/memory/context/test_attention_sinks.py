"""Sink rate and sink bias against closed forms."""

import math
import threading

import pytest
import torch
from by_layer import make_for

from scrubjay.agents import LocalChatModel
from scrubjay.memory.context import PolicyCache, list_policies, make
from scrubjay.memory.context.attention_sinks import sink_bias, sink_rate, sink_weights
from scrubjay.memory.context.capture import attention_weights, capture_attention

pytestmark = pytest.mark.requires("transformers")


def tokens(batch=2, time=9):
    return torch.randint(2, 64, (batch, time), generator=torch.Generator().manual_seed(1))


def test_bias_multiplies_token_0_and_renormalises(tiny_llama):
    model, ids = tiny_llama(torch.float64), tokens()
    plain = attention_weights(model, ids, {0: None})[0]
    gammas = torch.tensor([0.25, 1, 3, 10], dtype=torch.float64)
    expected = plain.clone()
    expected[..., 0] *= gammas[:, None]
    expected /= expected.sum(dim=-1, keepdim=True)
    with sink_bias(model, {0: gammas.tolist()}):
        weights = attention_weights(model, ids, {0: None})[0]
    torch.testing.assert_close(weights, expected)


def test_bias_reaches_the_output_and_ends(tiny_llama):
    """With all attention on the sink, a one-layer model reads only token 0.

    Equal later tokens then have equal outputs.
    """
    model = tiny_llama(torch.float64, num_hidden_layers=1)
    ids = torch.tensor([[5, 9, 4, 9, 7, 9]])
    with torch.no_grad():
        plain = model(ids).logits
        with sink_bias(model, {0: 1e30}):
            logits = model(ids).logits
        with sink_bias(model, {0: 1.0}):
            torch.testing.assert_close(model(ids).logits, plain)
        assert torch.equal(model(ids).logits, plain)
    torch.testing.assert_close(logits[0, 1], logits[0, 3])
    torch.testing.assert_close(logits[0, 1], logits[0, 5])
    assert not torch.allclose(plain[0, 1], plain[0, 5])


@torch.no_grad()
def test_bias_finds_token_0_behind_padding_and_while_decoding(tiny_llama):
    model, ids = tiny_llama(torch.float64), tokens(1)
    left = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (torch.arange(12) >= 3).long()[None]
    with sink_bias(model, {0: 4.0, 1: [0.5, 1, 1, 2]}):
        alone = model(ids).logits
        padded = model(left, attention_mask=mask).logits
        cache = model(ids[:, :-1], use_cache=True).cache
        last = model(ids[:, -1:], cache=cache).logits
    # Rotation angles are float32, and padding shifts them.
    torch.testing.assert_close(padded[:, 3:], alone, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(last, alone[:, -1:])


def test_bias_has_gradients(tiny_llama):
    model = tiny_llama(torch.float64)
    with sink_bias(model, {0: 2.0}):
        model(tokens(), labels=tokens()).loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("gammas", [{0: 0.0}, {0: [1.0, -1, 1, 1]}, {0: math.inf}])
def test_impossible_gammas_are_named(tiny_llama, gammas):
    with pytest.raises(ValueError, match="must be positive"), sink_bias(tiny_llama(), gammas):
        pass


def test_one_gamma_per_head_or_one_for_all(tiny_llama):
    model = tiny_llama()
    with pytest.raises(ValueError, match="4 heads"), sink_bias(model, {0: [1.0, 2.0]}):
        model(tokens())
    with pytest.raises(ValueError, match=r"layers \[5\]"), sink_bias(model, {5: 1.0}):
        pass


@torch.no_grad()
def test_rate_of_no_sink_and_of_a_forced_one(tiny_llama):
    """With equal logits, token 0 has the weight 1/n in row n; the mean is the harmonic number over n.

    A strong bias gives all attention to the sink.
    """
    model = tiny_llama(torch.float64)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.zero_()
    ids = tokens(time=20)
    harmonic = sum(1 / n for n in range(1, 21)) / 20
    torch.testing.assert_close(sink_weights(model, ids), torch.full((2, 2, 4), harmonic, dtype=torch.float64))
    assert sink_rate(model, ids) == 0
    with sink_bias(model, {1: [1e12, 1, 1, 1e12]}), capture_attention(model, {}):
        assert sink_rate(model, ids) == pytest.approx(2 / 8)


BLOCKS = {
    "sink_bias": lambda model: sink_bias(model, {0: 0.02, 1: 0.02}),
    "capture_attention": lambda model: capture_attention(model, {0: None}),
}


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("policy", list_policies())
@torch.no_grad()
def test_a_policy_cache_is_refused_inside_a_block(tiny_llama, policy, block):
    model, ids = tiny_llama(torch.float64), tokens()
    before = PolicyCache(make_for(model, policy), model)
    expected = model(ids, cache=PolicyCache(make_for(model, policy), model)).logits
    with BLOCKS[block](model):
        with pytest.raises(ValueError, match="would have no effect; call the model outside"):
            PolicyCache(make_for(model, policy), model)
        with pytest.raises(ValueError, match="would have no effect; call the model outside"):
            model(ids, cache=before)
        model(ids)
    assert torch.equal(model(ids, cache=before).logits, expected)


@torch.no_grad()
def test_a_block_cannot_start_while_another_thread_uses_a_policy_cache(tiny_llama):
    """At its end the block would restore the policy's attention function permanently."""
    model, errors = tiny_llama(torch.float64), []

    def enter(*_):
        try:
            with sink_bias(model, {0: 0.02}):
                pass
        except RuntimeError as error:
            errors.append(str(error))

    def enter_in_thread(*_):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()

    cache = PolicyCache(make("full"), model)
    hook = model.model.layers[0].register_forward_hook(enter_in_thread)
    before = model.config._attn_implementation
    model(tokens(), cache=cache)
    hook.remove()
    assert [error[:41] for error in errors] == ["another thread runs this model with a Pol"]
    assert model.config._attn_implementation == before


def test_a_chat_model_is_refused_inside_a_block(tiny_chat):
    chat = LocalChatModel(model=tiny_chat, max_tokens=3)
    chat.invoke("hi", {"configurable": {"thread_id": "t"}})
    with sink_bias(tiny_chat[0], {0: 0.02}), pytest.raises(ValueError, match="would have no effect"):
        chat.invoke("and now?", {"configurable": {"thread_id": "t"}})
    assert isinstance(chat.invoke("and now?", {"configurable": {"thread_id": "t"}}).content, str)
