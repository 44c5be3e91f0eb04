"""Every family under every policy at three times the budget, against a naive run of the model's layers."""

import copy
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from by_layer import pad
from families import FAMILIES, REFUSED, config_of, make
from transformers import AutoModelForCausalLM, DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache
from scrubjay.memory.context.capture import attention_modules, capture_attention
from scrubjay.memory.context.layers.policy import PolicyLayer
from scrubjay.memory.context.layers.state import StateLayer

pytestmark = pytest.mark.requires("transformers")

BUDGET, SINKS, PROMPT, LENGTH = 12, 2, 30, 40
POLICIES = {
    "window": {"budget": BUDGET},
    "sinks": {"budget": BUDGET, "num_sinks": SINKS},
    "h2o": {"budget": BUDGET, "recent": 5, "num_sinks": SINKS, "interval": 3},
    "snapkv": {"budget": BUDGET, "window": 4, "num_sinks": SINKS},
    "expected_attention": {"budget": BUDGET, "window": 4, "num_sinks": SINKS, "future": 16},
    "recycled": {"budget": BUDGET, "stride": 4, "num_sinks": SINKS},
    "chunks": {"budget": BUDGET, "chunk_size": 2, "local_chunks": 2, "store": "model"},
}
QUICK = ("gpt_oss", "smollm3", "cohere", "falcon_h1", "gemma2")
"""Families in the default suite: learned sinks, no positions, interleaved pairs, states, a soft cap."""
WITHOUT_POSITIONS = {
    "cohere2": 1,
    "llama4": 1,
    "smollm3": 1,
    "afmoe": 1,
    "granitemoehybrid-still": 1,
    "nemotron_h": 2,
}
"""Index of the layer without positions, by family."""


@pytest.fixture(scope="module")
def models():
    """Return a cached builder of models with one key head."""
    models_by_family = {}

    def get_model(family):
        if family not in models_by_family:
            one = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
            alone = {"num_attention_heads": 1, "num_key_value_heads": 1}
            options = alone if family in ("gpt_neox", "falcon", "falcon-new", "modernbert-decoder") else one
            if family == "falcon-new":
                options = alone | {"num_kv_heads": 1}
            models_by_family[family] = make(family, **options)
        return models_by_family[family]

    return get_model


@pytest.fixture(scope="module")
def ids():
    generator = torch.Generator().manual_seed(0)
    return 2 + torch.randperm(126, generator=generator)[None, :LENGTH]


def read(model, cache, ids, cuts, mask=None):
    out, begin = [], 0
    with torch.no_grad():
        for end in [*cuts, ids.shape[1]]:
            options = {} if mask is None else {"attention_mask": mask[:, :end]}
            if isinstance(cache, DynamicCache):  # as `generate` does; Bamba would count from 0 again
                options |= {"position_ids": torch.arange(begin, end)[None]}
            out.append(model(ids[:, begin:end], cache=cache, **options).logits)
            begin = end
    return torch.cat(out, dim=1)


def close(left, right):
    torch.testing.assert_close(left.double(), right.double(), atol=2e-4, rtol=1e-4)


def decode(length, first=0):
    return list(range(first + 1, length))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_full_policy_is_the_models_own_cache(family):
    model = make(family)
    generator = torch.Generator().manual_seed(1)
    # Llama 4 scales queries by the number of columns seen, padding included.
    padding = 0 if family == "llama4" else 5
    ids, mask = pad(torch.randint(2, 128, (2, LENGTH), generator=generator), padding)
    cuts = [20, 27, *decode(LENGTH, 27)]
    config = model.config.get_text_config(decoder=True)
    cache = PolicyCache(context.make("full"), model)
    left = read(model, cache, ids, cuts, mask)
    for row, first in enumerate((padding, 0)):
        own, alone = DynamicCache(config=config), [cut - first for cut in cuts]
        close(left[row : row + 1, first:], read(model, own, ids[row : row + 1, first:], alone))
    assert cache.get_seq_length() == LENGTH


def decoder_of(model):
    return next(child for child in model.children() if hasattr(child, "layers") or hasattr(child, "h"))


def layers_of(model):
    decoder = decoder_of(model)
    return decoder.h if hasattr(decoder, "h") else decoder.layers


class Naive:
    """Reference model without a cache whose layers read, token by token, given sets of tokens."""

    def __init__(self, model, ids):
        self.model, self.ids = model, ids

    def logits(self, select_tokens: Callable[[int, int], list[int] | None], slots: bool, without: int | None):
        """Return the logits if token `t` in layer `l` reads the tokens `select_tokens(l, t)`, None for all.

        With `slots` the tokens have consecutive positions, otherwise their own. Layer `without` has no
        positions, so a mask is enough there.
        """
        hidden = self._run(0, None, torch.arange(LENGTH)[None])[0]
        for layer in range(len(layers_of(self.model))):
            whole = self._run(layer, hidden, torch.arange(LENGTH)[None])
            reads = [select_tokens(layer, t) for t in range(LENGTH)]
            if all(tokens is None for tokens in reads):
                hidden = whole[1]
            elif layer == without:
                hidden = self._masked(layer, hidden, reads)
            else:
                hidden = self._read(layer, hidden, reads, slots, whole[2])
        last = layers_of(self.model)[-1]
        with torch.no_grad(), ExitStack() as stack:
            stack.callback(last.register_forward_hook(lambda *_: _replace_hidden(_[-1], hidden)).remove)
            return self.model(self.ids, use_cache=False).logits

    def _read(self, layer, hidden, reads, slots, state):
        rows = []
        for t, tokens in enumerate(reads):
            tokens = tokens or list(range(t + 1))
            positions = torch.arange(len(tokens)) if slots else torch.tensor(tokens)
            rows.append(self._run(layer, hidden[:, tokens], positions[None], tokens, state)[1][:, -1:])
        return torch.cat(rows, dim=1)

    def _masked(self, layer, hidden, reads):
        mask = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
        for t, tokens in enumerate(reads):
            if tokens is not None:
                mask[t] = torch.isin(torch.arange(LENGTH), torch.tensor(tokens))
        additive = torch.zeros(1, 1, *mask.shape).masked_fill(~mask, torch.finfo(torch.float32).min)
        return self._run(layer, hidden, torch.arange(LENGTH)[None], mask=additive.to(hidden.dtype))[1]

    def _run(self, layer, hidden, positions, tokens=None, mamba=None, mask=None):
        """Return the input and output of a layer, and the output of its state module, if it has one."""
        module, records = layers_of(self.model)[layer], {}

        def before(_, args, options):
            if hidden is not None:
                if args:
                    args = (hidden, *args[1:])
                else:
                    options = options | {"hidden_states": hidden}
            records["in"] = args[0] if args else options["hidden_states"]
            return args, options

        def state(_, __, out):
            records["state"] = out
            return out if mamba is None else mamba[:, tokens]

        with torch.no_grad(), ExitStack() as stack:
            stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
            after = module.register_forward_hook(lambda *_: records.update(out=_[-1]))
            stack.callback(after.remove)
            if getattr(module, "mamba", None) is not None and hasattr(module, "self_attn"):
                stack.callback(module.mamba.register_forward_hook(state).remove)
            # Without a mask, the model treats positions with gaps as several texts.
            mask = torch.ones_like(positions) if mask is None else mask
            decoder_of(self.model)(
                self.ids[:, : positions.shape[1]],
                position_ids=positions,
                use_cache=False,
                attention_mask=mask,
            )
        out = records["out"]
        return records["in"], out[0] if isinstance(out, tuple) else out, records.get("state")


def _replace_hidden(like, hidden):
    return (hidden, *like[1:]) if isinstance(like, tuple) else hidden


def read_and_record(model, cache, ids, cuts, monkeypatch):
    """Return logits, and for each layer under the policy the tokens read by each single-token call."""
    values = {layer.index: [] for layer in cache.attention_layers}
    for layer in cache.attention_layers:
        layer.memory.tracks_reads = True
    tokens_read, attend = {}, PolicyLayer.attend

    def record_attend(self, query, keys, new, mask, scoring):
        memory, length = self.memory, new.shape[2]
        # Copies, since preallocated tensors are written in place.
        before = {part: tensor.clone() for part, tensor in memory.state_dict().items()}
        whole = name == "recycled" and self.sees_everything
        whole = whole and (length > 1 or memory._since in (0, memory.policy.stride))
        out = attend(self, query, keys, new, mask, scoring)
        values[self.index].append(new[0, 0])
        if not self.sees_everything or length > 1 or whole:
            return out
        if name in ("sinks", "window"):
            read = memory.state["values"][0, 0]
        elif name == "recycled":
            # The copy as it was read, before the next full step refreshes it.
            read = memory.state["copied_values"][0, 0]
        elif name == "chunks":
            report = memory.get_retained_values(torch.tensor([len(torch.cat(values[self.index]))]))
            read = (report.values if report.read_values is None else report.read_values)[0, 0]
            read = read[read.any(dim=-1)]
        else:
            read = new[0, 0]
            if before:
                past = before["flat_values"] if "flat_values" in before else before["values"][0, 0]
                read = torch.cat([past, read])
        all_values = torch.cat(values[self.index])
        equal = (read[:, None] == all_values[None]).all(dim=-1)
        assert equal.sum(dim=1).eq(1).all()
        tokens_read[self.index, len(all_values) - 1] = sorted(equal.int().argmax(dim=1).tolist())
        return out

    name = context.name_of(cache.policy)
    monkeypatch.setattr(PolicyLayer, "attend", record_attend)
    return read(model, cache, ids, cuts), tokens_read


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize(
    "family",
    [family if family in QUICK else pytest.param(family, marks=pytest.mark.slow) for family in FAMILIES],
)
def test_policies_equal_the_models_layers_on_the_retained_tokens(family, name, models, ids, monkeypatch):
    model, policy = models(family), context.make(name, **POLICIES[name])
    first = 0 if policy.split_invariant else PROMPT
    cuts = decode(LENGTH, first) if first == 0 else [first, *decode(LENGTH, first)]
    logits, tokens_read = read_and_record(model, PolicyCache(policy, model), ids, cuts, monkeypatch)
    policy_layers = {layer for layer, _ in tokens_read}
    assert all(len(tokens) < LENGTH // 2 for (_, t), tokens in tokens_read.items() if t > 3 * BUDGET - 1)
    if name in ("sinks", "window"):
        sinks = SINKS if name == "sinks" else 0
        for (_, t), tokens in tokens_read.items():
            window = range(max(sinks, t + 1 - BUDGET + sinks), t + 1)
            assert tokens == [*range(min(sinks, t + 1)), *(j for j in window if j >= sinks)]
    if policy.split_invariant:
        monkeypatch.undo()
        close(read(model, PolicyCache(policy, model), ids, [20, 27, 28]), logits)
    if not policy_layers:
        assert family == "mistral-window"
        close(logits, read(model, DynamicCache(config=model.config), ids, cuts))
        return
    naive = Naive(model, ids).logits(
        lambda layer, t: tokens_read.get((layer, t)), policy.moves_positions, WITHOUT_POSITIONS.get(family)
    )
    close(logits, naive)


@pytest.mark.parametrize("family", REFUSED)
def test_unsupported_families_are_refused_with_the_reason(family):
    name, options, reason = REFUSED[family]
    model = AutoModelForCausalLM.from_config(config_of(name, options))
    with pytest.raises(ValueError, match=reason) as refusal:
        PolicyCache(context.make("full"), model)
    assert "\n" not in str(refusal.value)


MIXED = ["gemma3", "gpt_oss", "llama4", "qwen3_next", "lfm2", "falcon_h1", "falcon", "gpt_neox"]
"""At least one family for every layer type."""


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", ["full", "sinks"])
@pytest.mark.parametrize("family", MIXED)
def test_saved_copied_and_reordered_caches_continue_alike(family, name, tmp_path):
    model, policy = make(family), context.make(name, **POLICIES.get(name, {}))
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, 128, (2, LENGTH), generator=generator)
    cache = PolicyCache(policy, model)
    read(model, cache, ids[:, :30], [20, 29])
    cache.save(tmp_path / "cache")
    clone = copy.deepcopy(cache)
    reordered_cache = copy.deepcopy(cache)
    reordered_cache.reorder_cache(torch.tensor([1, 0]))
    expected = read(model, cache, ids[:, 30:], decode(10))
    close(read(model, clone, ids[:, 30:], decode(10)), expected)
    close(read(model, reordered_cache, ids[:, 30:].flip(0), decode(10)).flip(0), expected)
    loaded_cache = PolicyCache.load(tmp_path / "cache", policy, model)
    close(read(model, loaded_cache, ids[:, 30:], decode(10)), expected)
    cache.reset()
    read(model, cache, ids[:, :30], [20, 29])
    close(read(model, cache, ids[:, 30:], decode(10)), expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_bytes_are_those_of_the_models_own_cache(family):
    model = make(family)
    config = model.config.get_text_config(decoder=True)
    own, cache = DynamicCache(config=config), PolicyCache(context.make("full"), model)
    ids = torch.randint(2, 128, (1, LENGTH))
    for each in (own, cache):
        read(model, each, ids, decode(LENGTH, 30))
    shape = cache.shape()
    states = window_bytes = 0
    theirs: Any
    for layer, theirs in zip(cache.layers, own.layers, strict=True):
        if isinstance(layer, StateLayer):
            parts = (theirs.conv_states, theirs.recurrent_states)
            states += sum(x.nbytes for part in parts for x in part.values() if x is not None)
            states += theirs.cumulative_length_linear.nbytes
        if isinstance(layer, PolicyLayer) and layer.sees_everything:
            assert theirs.keys.nbytes + theirs.values.nbytes == LENGTH * shape.token_bytes // shape.layers
        elif isinstance(layer, PolicyLayer):
            # One more column than the model's cache, for writing in place, and a time per column.
            columns = theirs.keys.shape[2] + 1
            window_bytes += (theirs.keys.nbytes + theirs.values.nbytes) // (
                columns - 1
            ) * columns + 8 * columns
    assert cache.nbytes() == cache.policy.nbytes(LENGTH, shape) + window_bytes + states


@pytest.mark.one_in(4)
@pytest.mark.parametrize("family", MIXED)
def test_generation_by_beams_and_of_padded_batches_is_the_models_own(family):
    model: Any = make(family)
    generator = torch.Generator().manual_seed(3)
    padding = 0 if family == "llama4" else 5
    ids, mask = pad(torch.randint(2, 128, (2, 20), generator=generator), padding)
    for options in ({"num_beams": 3}, {"do_sample": False}):
        arguments = options | {"max_new_tokens": 12, "pad_token_id": 0, "attention_mask": mask}
        own = model.generate(ids, **arguments)
        ours = model.generate(ids, cache=PolicyCache(context.make("full"), model), **arguments)
        assert own.tolist() == ours.tolist()


def test_states_cannot_be_cropped_and_drafts_are_refused():
    model = make("lfm2")
    cache = PolicyCache(context.make("full"), model)
    read(model, cache, torch.randint(2, 128, (1, 20)), [])
    with pytest.raises(ValueError, match="recurrent or convolutional states"):
        cache.crop(-1)
    assert not cache.is_croppable
    with pytest.raises(ValueError, match=r"assisted decoding .* do not support this; omit the"):
        cache.activate_past_recording()
    # Windows can be cropped until they are full.
    model = make("gemma3", sliding_window=32)
    ids = torch.randint(2, 128, (1, LENGTH))
    cache = PolicyCache(context.make("full"), model)
    read(model, cache, ids[:, :20], [])
    cache.crop(-5)
    expected = read(model, DynamicCache(config=model.config), ids[:, :25], [15])
    close(read(model, cache, ids[:, 15:25], []), expected[:, 15:])
    read(model, cache, ids[:, 25:], [])
    with pytest.raises(ValueError, match="own window of 32"):
        cache.crop(-1)


@pytest.mark.parametrize("layer", [0, 1])
def test_a_call_interrupted_in_a_layer_with_a_state_is_known(layer):
    model = make("lfm2")
    cache = PolicyCache(context.make("full"), model)
    ids = torch.randint(2, 128, (1, 20))
    read(model, cache, ids, [])

    def stop(*_):
        raise KeyboardInterrupt

    hook = model.model.layers[layer].feed_forward.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        read(model, cache, ids[:, :3], [])
    hook.remove()
    with pytest.raises(RuntimeError, match="was interrupted"):
        read(model, cache, ids[:, :3], [])
    cache.reset()
    close(read(model, cache, ids, []), read(model, DynamicCache(config=model.config), ids, []))


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "gpt_oss", "qwen3_next", "cohere2"])
def test_captured_weights_are_those_of_the_model(family):
    model = make(family)
    ids = torch.randint(2, 128, (2, 20))
    layers = attention_modules(model)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        expected = model(ids, output_attentions=True, use_cache=False)
        with capture_attention(model, dict.fromkeys(layers)) as recorded_weights:
            logits = model(ids, use_cache=False).logits
    close(logits, expected.logits)
    theirs = [weights for weights in expected.attentions if weights is not None]
    for layer, weights in zip(layers, theirs[-len(layers) :], strict=True):
        close(recorded_weights[layer][0], weights)
