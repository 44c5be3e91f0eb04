"""Contract of all context policies: those of the registry, and those of `by_layer`."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from by_layer import BY_LAYER, MAPS, SCORES, SMALL, close, pad, read, record_budgets, replay_budgets
from transformers import DynamicCache
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from scrubjay.memory import context
from scrubjay.memory.context.policies.full import FullPolicy

# Sizes at which nothing is evicted after 40 tokens.
SCORED = ("adakv", "cake", "expected_attention", "keydiff", "kvzap", "kvzip", "pyramidkv", "task_kv", "tova")
OTHERS = ("h2o", "recycled", "refreshkv", "sinks", "snapkv", "spread", "tail", "widening", "window", "zipvl")
LARGE = {
    **{name: {"budget": 64} for name in (*SCORED, *OTHERS)},
    **{name: {} for name in ("alternating", "full")},
    "elsewhere": SMALL["elsewhere"],
    "chunks": {"budget": 80, "chunk_size": 8},
    **{name: {"budget": 80, "chunk_size": 8} for name in ("hip", "longheads", "quest")},
    "duo": {"num_sinks": 4, "recent": 60, "scores": SCORES},
}
LARGE["kvzap"] |= {"window": 8, "threshold": -float("inf"), "weights": MAPS}
LARGE["flexprefill"] = SMALL["flexprefill"] | {"gamma": 1 - 1e-9, "policy": context.make("snapkv", budget=64)}
LARGE["zipvl"]["tau"], LARGE["task_kv"]["recent"] = 1.0, 32
# Policies whose memories cannot be cropped.
CROP_NOTHING = {*SCORED, "flexprefill", "h2o", "snapkv", "spread", "zipvl"} - {"keydiff", "kvzap"}
POLICIES = [*context.list_policies(), *BY_LAYER]

pytestmark = [pytest.mark.requires("transformers"), pytest.mark.usefixtures("register_test_policies")]


@pytest.fixture
def model(tiny_llama):
    return tiny_llama()


def small(name):
    return context.make(name, **SMALL[name])


def test_every_policy_is_in_the_suite():
    assert SMALL.keys() == LARGE.keys() == set(POLICIES)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("cuts", [[], [1, 2, 3, 30, 31], list(range(1, 40))])
@pytest.mark.parametrize("name", POLICIES)
def test_nothing_dropped_is_full_attention(name, cuts, model, text):
    expected = read(model, DynamicCache(config=model.config), text)
    policy = context.make(name, **LARGE[name])
    close(read(model, context.PolicyCache(policy, model), text, cuts), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_half_precision_is_as_near_as_the_models_own_cache(name, tiny_llama, text):
    model = tiny_llama(dtype=torch.bfloat16, initializer_range=0.1)
    policy = context.make(name, **LARGE[name])
    cuts = [30, 31, 32]
    logits = read(model, context.PolicyCache(policy, model), text, cuts)
    assert logits.dtype == torch.bfloat16
    own = read(model, DynamicCache(config=model.config), text, cuts)
    exact = model.float()
    truth = read(exact, DynamicCache(config=exact.config), text, cuts)
    error, own_error = ((output - truth).abs() for output in (logits, own))
    assert error.max() <= 1.5 * own_error.max()
    assert error.square().mean() <= 1.2 * own_error.square().mean()


@pytest.mark.parametrize("name", POLICIES)
def test_something_is_dropped_when_the_text_is_long(name, model, text):
    if name in ("elsewhere", "full"):
        return
    expected = read(model, DynamicCache(config=model.config), text)
    logits = read(model, context.PolicyCache(small(name), model), text, list(range(30, 40)))
    assert (logits - expected)[:, 39:].abs().max() > 1e-2


def check_bytes(cache, most):
    """Check that a cache has `most` bytes, or fewer if its policy states only a bound."""
    assert cache.nbytes() == most or (not cache.policy.exact_bytes and cache.nbytes() < most)


@pytest.mark.parametrize("name", POLICIES)
def test_bytes_are_as_stated(name, model, text):
    policy = small(name)
    cache = context.PolicyCache(policy, model)
    assert cache.nbytes() == 0
    for count in range(1, 41):
        read(model, cache, text[:, count - 1 : count])
        check_bytes(cache, policy.nbytes(count, cache.shape(), at_once=False))
    for count in (2, 7, 8, 9, 12, 13, 40):
        cache.reset()
        read(model, cache, text[:, :count])
        check_bytes(cache, policy.nbytes(count, cache.shape()))


@pytest.mark.parametrize("name", POLICIES)
def test_token_by_token_is_all_at_once(name, model, text):
    policy = small(name)
    if not policy.split_invariant:
        pytest.skip(f"{name} treats a prompt differently")
    expected = read(model, context.PolicyCache(policy, model), text)
    for cuts in (list(range(1, 40)), [3, 4, 5, 25, 26], [20]):
        close(read(model, context.PolicyCache(policy, model), text, cuts), expected)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("by", [1, 7, 30])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_are_independent(name, by, model, text):
    policy = small(name)
    ids, mask = pad(text, by)
    cuts = [32, 33, 34, 35, 38]
    with record_budgets() as budgets:
        logits = read(model, context.PolicyCache(policy, model), ids, cuts, mask)
    with replay_budgets(budgets):
        alone = read(model, context.PolicyCache(policy, model), text[1:2], cuts)
    close(logits[1:], alone)
    short = text[:1, : 40 - by]
    with replay_budgets(budgets):
        alone = read(model, context.PolicyCache(policy, model), short, [cut - by for cut in cuts])
    close(logits[:1, by:], alone)


@pytest.mark.parametrize("name", POLICIES)
def test_padding_between_turns(name, model, text):
    policy = small(name)
    ids = text.clone()
    mask = torch.ones_like(ids)
    mask[0, 20:24] = 0
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = context.PolicyCache(policy, model)
    with torch.no_grad(), record_budgets() as budgets:
        out = [
            model(ids[:, a:b], attention_mask=mask[:, :b], position_ids=positions[:, a:b], cache=cache).logits
            for a, b in ((0, 20), (20, 36), (36, 37), (37, 40))
        ]
    logits = torch.cat(out, dim=1)
    real_tokens = torch.cat([ids[:1, :20], ids[:1, 24:]], dim=1)
    with replay_budgets(budgets):
        alone = read(model, context.PolicyCache(policy, model), real_tokens, [20, 32, 33])
    close(torch.cat([logits[:1, :20], logits[:1, 24:]], dim=1), alone)


@pytest.mark.one_in(3)
@pytest.mark.parametrize("name", POLICIES)
def test_generate_in_a_padded_batch_and_turn_after_turn(name, model, text):
    policy = small(name)
    options = {"do_sample": False, "max_new_tokens": 6}
    ids, mask = pad(text, 9)
    cache = context.PolicyCache(policy, model)
    with record_budgets() as budgets:
        together = model.generate(ids, attention_mask=mask, cache=cache, **options)
    for row, prompt in enumerate((text[:1, :31], text[1:])):
        cache = context.PolicyCache(policy, model)
        with replay_budgets(budgets):
            first = model.generate(prompt, cache=cache, **options)
        assert torch.equal(first[0, -6:], together[row, -6:])
        assert cache.get_seq_length() == first.shape[1] - 1
        # The next turn only reads the new tokens; the result equals reading all in these pieces.
        conversation = torch.cat([first, text[:1, :5]], dim=1)
        # The mask is explicit, since the model may have generated the padding token.
        second = model.generate(
            conversation, attention_mask=torch.ones_like(conversation), cache=cache, **options
        )
        again = context.PolicyCache(policy, model)
        length = prompt.shape[1]
        cuts = [*range(length, length + 6), conversation.shape[1]]
        with replay_budgets(budgets):
            logits = read(model, again, second[:, :-1], [*cuts, *range(cuts[-1] + 1, second.shape[1] - 1)])
        assert torch.equal(
            logits[0, conversation.shape[1] - 1 :].argmax(dim=-1), second[0, conversation.shape[1] :]
        )


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", POLICIES)
def test_assisted_decoding_gives_the_same_text_or_is_refused_by_name(name, model, tiny_llama, text):
    policy = small(name)
    options = {"do_sample": False, "max_new_tokens": 12}
    drafts = {
        "itself": {"assistant_model": copy.deepcopy(model)},
        "another model": {"assistant_model": tiny_llama(num_hidden_layers=1)},
        "the prompt": {"prompt_lookup_num_tokens": 3},
    }
    for row in range(2):
        prompt = torch.cat([text[row : row + 1]] * 2, dim=1)
        expected = model.generate(prompt, cache=context.PolicyCache(policy, model), **options)
        for who, draft in drafts.items():
            cache = context.PolicyCache(policy, model)
            assert cache.is_croppable or name != "full"
            if cache.is_croppable:
                assert torch.equal(model.generate(prompt, cache=cache, **options, **draft), expected), who
                continue
            with pytest.raises(ValueError, match=f"assisted decoding .* {type(policy).__name__}"):
                model.generate(prompt, cache=cache, **options, **draft)
            # The error comes before anything is read, so the cache stays usable.
            assert cache.get_seq_length() == 0
            assert torch.equal(model.generate(prompt, cache=cache, **options), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_crop_removes_tokens_or_raises(name, model, text):
    policy = small(name)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:, :5])
    if name in CROP_NOTHING:
        with pytest.raises(ValueError, match="cannot be cropped"):
            cache.crop(-2)
    else:
        read(model, cache, text[:, 20:22])
        cache.crop(-2)
    assert cache.get_seq_length() == 5
    assert cache.nbytes() <= policy.nbytes(5, cache.shape())
    close(read(model, cache, text[:, 5:]), read(model, context.PolicyCache(policy, model), text, [5])[:, 5:])
    if policy.can_crop:
        cache.crop(-30)
        cuts = [1, 2] if policy.split_invariant else []
        rest = read(model, cache, text[:, 10:], cuts)
        again = read(model, context.PolicyCache(policy, model), text, [5, 10, *(10 + cut for cut in cuts)])
        close(rest, again[:, 10:])
    else:
        assert not cache.is_croppable
        with pytest.raises(ValueError, match="crop"):
            cache.crop(-30)
    with pytest.raises(ValueError, match="must not be positive"):
        cache.crop(3)
    with pytest.raises(ValueError, match="has only"):
        cache.crop(-1000)


@pytest.mark.parametrize("name", [name for name in POLICIES if name not in CROP_NOTHING])
def test_crop_also_removes_padding(name, model, text):
    policy = context.make(name, **LARGE[name])
    ids, mask = pad(text[:, :10], 8)
    cache = context.PolicyCache(policy, model)
    read(model, cache, ids, mask=mask)
    cache.crop(-5)
    ids, mask = (
        torch.cat([ids[:, :5], text[:, 20:26]], 1),
        torch.cat([mask[:, :5], torch.ones(2, 6)], 1).long(),
    )
    expected = read(model, context.PolicyCache(policy, model), ids, mask=mask)[:, 5:]
    close(read(model, cache, ids, mask=mask), expected)


@pytest.mark.parametrize("layer", [0, 1])
def test_an_interrupted_call_is_reported(layer, model, text):
    cache = context.PolicyCache(small("sinks"), model)
    read(model, cache, text[:, :10])

    def stop(*_):
        raise KeyboardInterrupt

    # Interrupt after the layer's attention, or during it.
    hook = model.model.layers[layer].mlp.register_forward_pre_hook(stop)
    if layer == 1:
        hook.remove()
        generate = cache.attention_layers[1].memory.generate
        cache.attention_layers[1].memory.generate = stop  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(KeyboardInterrupt):
        read(model, cache, text[:, 10:20])
    hook.remove()
    if layer == 1:
        cache.attention_layers[1].memory.generate = generate
    for length in (10, 1):
        with pytest.raises(RuntimeError, match="was interrupted"):
            read(model, cache, text[:, 10 : 10 + length])
    cache.reset()
    close(read(model, cache, text), read(model, context.PolicyCache(cache.policy, model), text))


@pytest.mark.parametrize("name", POLICIES)
def test_a_copy_is_independent(name, model, text):
    cache = context.PolicyCache(small(name), model)
    read(model, cache, text[:, :20])
    clone = copy.deepcopy(cache)
    # Both outgrow their capacity, one after the other.
    clone_logits = read(model, clone, text.flip(1)[:, :20])
    cache_logits = read(model, cache, text[:, 20:])
    for more, logits in ((text[:, 20:], cache_logits), (text.flip(1)[:, :20], clone_logits)):
        alone = context.PolicyCache(cache.policy, model)
        whole_text = torch.cat([text[:, :20], more, text[:, :3]], dim=1)
        expected = read(model, alone, whole_text, [20, 40, 41, 42])
        close(logits, expected[:, 20:40])
        own = cache if logits is cache_logits else clone
        close(read(model, own, text[:, :3], [1, 2]), expected[:, 40:])


@pytest.mark.parametrize("name", POLICIES)
def test_read_in_inference_mode_and_outside_of_it(name, model, text):
    expected = read(model, context.PolicyCache(small(name), model), text, [19, 20, 21])
    cache = context.PolicyCache(small(name), model)
    with torch.inference_mode():
        begin = read(model, cache, text[:, :19]).clone()
    close(torch.cat([begin, read(model, cache, text[:, 19:], [1, 2])], dim=1), expected)


def test_a_deleted_store_file_loses_nothing(model, text, tmp_path):
    policy = context.make("chunks", **SMALL["chunks"], folder=str(tmp_path))
    cache, whole = (context.PolicyCache(policy, model) for _ in range(2))
    read(model, whole, text, [20])
    expected = read(model, whole, text[:, :1])
    other_files = set(tmp_path.iterdir())
    read(model, cache, text[:, :20])
    for file in set(tmp_path.iterdir()) - other_files:
        file.unlink()
    read(model, cache, text[:, 20:])
    close(read(model, cache, text[:, :1]), expected)


@pytest.mark.parametrize("name", POLICIES)
def test_reset_forgets(name, model, text):
    cache = context.PolicyCache(small(name), model)
    read(model, cache, text.flip(1))
    cache.reset()
    assert cache.nbytes() == cache.get_seq_length() == 0
    close(read(model, cache, text), read(model, context.PolicyCache(cache.policy, model), text))


@pytest.mark.one_in(3)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("name", POLICIES)
def test_rows_are_reordered_and_repeated(name, padding, model, text):
    ids, mask = pad(text, padding)
    rows = torch.tensor([1, 0, 0])
    cache = context.PolicyCache(small(name), model)
    with record_budgets() as budgets:
        read(model, cache, ids[:, :30], mask=mask[:, :30])
        cache.reorder_cache(rows)
        logits = read(model, cache, ids[rows], [31], mask[rows])
    with replay_budgets(budgets):
        again = read(model, context.PolicyCache(cache.policy, model), ids[rows], [30, 31], mask[rows])
    close(logits, again[:, 30:])


@pytest.mark.one_in(3)
@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("name", POLICIES)
def test_a_conversation_is_saved_and_goes_on(name, padding, model, tiny_llama, text, tmp_path):
    ids, mask = pad(text, padding)
    policy = small(name)
    cache = context.PolicyCache(policy, model)
    read(model, cache, ids[:, :30], [20, 21], mask[:, :30])
    cache.save(tmp_path / "cache.safetensors")
    expected = read(model, cache, ids, [31, 32], mask)
    loaded_cache = context.PolicyCache.load(tmp_path / "cache.safetensors", policy, model)
    assert loaded_cache.get_seq_length() == 30
    assert torch.equal(read(model, loaded_cache, ids, [31, 32], mask), expected)
    assert loaded_cache.nbytes() == cache.nbytes()
    other = context.make("sinks", budget=9)
    with pytest.raises(ValueError, match="saved with"):
        context.PolicyCache.load(tmp_path / "cache.safetensors", other, model)
    with pytest.raises(ValueError, match="key_heads=2, but the model has 4"):
        context.PolicyCache.load(tmp_path / "cache.safetensors", policy, tiny_llama(num_key_value_heads=4))
    with pytest.raises(ValueError, match="itemsize=4, but the model has 2"):
        context.PolicyCache.load(tmp_path / "cache.safetensors", policy, tiny_llama(dtype=torch.bfloat16))
    with (tmp_path / "cache.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ValueError, match="damaged"):
        context.PolicyCache.load(tmp_path / "cache.safetensors", policy, model)


@pytest.mark.parametrize("name", POLICIES)
def test_beams(name, model, text):
    options = {"do_sample": False, "max_new_tokens": 5, "num_beams": 3}
    cache = context.PolicyCache(small(name), model)
    with record_budgets() as budgets:
        out = model.generate(text, cache=cache, **options)
    with replay_budgets(budgets):
        alone = model.generate(text[1:], cache=context.PolicyCache(small(name), model), **options)
    assert torch.equal(out[1:], alone)


@pytest.mark.parametrize("name", POLICIES)
def test_gradients_reach_every_parameter(name, model, text):
    logits = model(text, cache=context.PolicyCache(small(name), model)).logits
    logits[:, -1].square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


def test_invalid_sizes_are_reported():
    with pytest.raises(ValueError, match="choose from"):
        context.make("sink")
    with pytest.raises(ValueError, match="its fields are budget, num_sinks"):
        context.make("sinks", windows=3)
    with pytest.raises(ValueError, match="budget=4"):
        context.make("sinks", budget=4)
    with pytest.raises(ValueError, match="num_sinks=-1"):
        context.make("sinks", num_sinks=-1)
    with pytest.raises(ValueError, match="budget=0"):
        context.make("window", budget=0)


def test_a_package_that_wraps_every_attention_function_may_stay(model, text, monkeypatch):
    """Importing kvpress wraps them; it passes dropout as the sixth argument, as for transformers' SDPA."""
    outputs = {}
    for use_wrapper in (False, True):
        cache = context.PolicyCache(context.make("sinks", budget=24), model)
        if use_wrapper:
            before = ALL_ATTENTION_FUNCTIONS["scrubjay"]

            def wrapper(module, query, key, value, attention_mask, dropout, before=before, **options):
                return before(module, query, key, value, attention_mask, dropout, **options)

            monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "scrubjay", wrapper)
        outputs[use_wrapper] = model(text[:, :40], cache=cache).logits
    assert torch.equal(outputs[True], outputs[False])


def test_a_custom_policy_can_be_registered(model, text):
    class Mine(FullPolicy):
        pass

    context.register("mine", Mine)
    try:
        assert context.name_of(context.make("mine")) == "mine"
        with pytest.raises(ValueError, match="already registered"):
            context.register("mine", Mine)
    finally:
        from scrubjay.memory.context import registry

        del registry._POLICIES["mine"]
    with pytest.raises(ValueError, match="not registered"):
        context.name_of(Mine())


def test_a_mask_of_the_new_tokens_alone_is_refused(model, text):
    cache = context.PolicyCache(context.make("full"), model)
    read(model, cache, text[:, :30])
    with pytest.raises(ValueError, match="all past and new tokens"):
        model(text[:, 30:], attention_mask=torch.ones(2, 10), cache=cache)


def test_a_change_of_the_attention_implementation_is_reported(model, text):
    cache = context.PolicyCache(context.make("full"), model)
    model.set_attn_implementation("eager")
    with pytest.raises(RuntimeError, match="does not call the policy"):
        read(model, cache, text)
    assert model.config._attn_implementation == "eager"


def test_the_models_config_is_as_it_was(model, text):
    before, own = model.config.to_dict(), model.config._attn_implementation
    cache = context.PolicyCache(context.make("sinks", budget=24), model)
    assert (model.config.to_dict(), model.config._attn_implementation) == (before, own)
    model.generate(text[:, :30], cache=cache, max_new_tokens=3, do_sample=False)
    assert (model.config.to_dict(), model.config._attn_implementation) == (before, own)
    with pytest.raises(ValueError, match="all past and new tokens"):
        model(text[:, :2], attention_mask=torch.ones(2, 1), cache=cache)
    assert model.config._attn_implementation == own


@pytest.mark.parametrize("name", POLICIES)
def test_a_call_of_other_rows_is_refused_and_the_cache_goes_on(name, model, text):
    cache, reference = (context.PolicyCache(small(name), model) for _ in range(2))
    for each in (cache, reference):
        read(model, each, text[:, :30])
    with pytest.raises(ValueError, match="batch size 1: the cache has batch size 2; reset or rebuild"):
        model(text[:1, 30:31], cache=cache)
    cache.batch_select_indices(torch.tensor([1]))
    reference.reorder_cache(torch.tensor([1]))
    rest = text[1:, 30:]
    assert torch.equal(read(model, cache, rest, range(1, 10)), read(model, reference, rest, range(1, 10)))


def test_invalid_policies_and_models_are_named(model):
    with pytest.raises(TypeError, match=r"policy='sinks': pass a policy, such as make\('sinks'"):
        context.PolicyCache("sinks", model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match=r"model=.*LlamaForCausalLM.*: pass a loaded model"):
        context.PolicyCache(context.make("full"), type(model))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"policy 'sinks' has budget=1\.5: must be an integer"):
        context.make("sinks", budget=1.5)


def test_threads_that_read_at_once_attend_by_their_policies_and_leave_the_config(model, text):
    def read_slowly(_):
        return read(model, context.PolicyCache(context.make("sinks", budget=24), model), text)

    own, alone = model.config._attn_implementation, read_slowly(0)
    with ThreadPoolExecutor(4) as threads:
        assert all(torch.equal(logits, alone) for logits in threads.map(read_slowly, range(12)))
    assert model.config._attn_implementation == own


def test_without_a_cache_of_ours_the_model_is_as_before(model, text):
    ids, mask = pad(text, 7)
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).logits
        expected_text = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=5)
        context.PolicyCache(context.make("full"), model)
        logits = model(ids, attention_mask=mask).logits
        assert torch.equal(
            model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=5), expected_text
        )
    close(logits[mask.bool()], expected[mask.bool()])
