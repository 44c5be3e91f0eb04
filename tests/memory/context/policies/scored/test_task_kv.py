"""Task-KV against a slow definition, its division of a budget, and the memory of its full heads."""

import itertools
from typing import Any

import pytest
import torch
from by_layer import close, pad, read
from families import make
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import DynamicCache

from scrubjay.memory import context
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.task_kv import TaskKVPolicy, measure_distances

pytestmark = pytest.mark.requires("transformers")

HEADS = {"num_attention_heads": 8, "num_key_value_heads": 4}
SMALL: dict[str, Any] = {"window": 4, "num_sinks": 2, "recent": 5, "kernel": 3}


def choose_slowly(attention, values, policy, full_heads):
    """Return the tokens that each key head keeps of a prompt, and the full heads, by loops.

    `attention` has the weights of all query heads, "heads queries tokens", and `values` those of the key
    heads. `full_heads` is the number of far heads and that of near heads, without a budget.
    """
    groups, count = values.shape[:2]
    shared = len(attention) // groups
    means = attention[:, -policy.window :].unflatten(0, (groups, shared)).mean(dim=(1, 2))
    vectors: list[Any] = []
    for head in range(groups):
        order = sorted(range(count - policy.window), key=lambda token, own=means[head]: -float(own[token]))
        vectors.append(sum(means[head, token] * values[head, token] for token in order[: policy.top]))
    center = sum(vectors) / groups
    distances = [float((vector - center).norm()) for vector in vectors]
    far, near = full_heads
    while True:
        by_distance = sorted(range(groups), key=lambda head: -distances[head])
        full = {*by_distance[:far], *by_distance[len(by_distance) - near :]}
        left = groups * policy.budget - len(full) * count
        if not full or left >= (groups - len(full)) * (policy.num_sinks + policy.recent):
            break
        far, near = (far, near - 1) if near else (far - 1, near)
    stays, number, other_count = [], 0, groups - len(full)
    for head in range(groups):
        if head in full:
            stays.append(set(range(count)))
            continue
        size = left // other_count + (number < left % other_count)
        number += 1
        safe = {*range(policy.num_sinks), *range(count - policy.recent, count)}
        around = [0.0 if token in safe else float(means[head, token]) for token in range(count)]
        half = policy.kernel // 2
        averages = [sum(around[max(token - half, 0) : token + half + 1]) for token in range(count)]
        best = sorted(set(range(count)) - safe, key=lambda token, own=averages: -own[token])
        stays.append(safe | set(best[: size - len(safe)]))
    return stays, full


CASES = {
    "one far, one near": ({"share": 0.25, "last_share": 0.25, "budget": 30, "top": 9}, [(1, 1), (1, 1)]),
    "fewer in the last layer": (
        {"share": 0.5, "last_share": 0.25, "nearest": 0, "budget": 31},
        [(2, 0), (1, 0)],
    ),
    "too many for the budget": (
        {"share": 0.6, "last_share": 0.6, "nearest": 1, "budget": 17},
        [(2, 1), (2, 1)],
    ),
    "near ones alone": ({"share": 0.0, "last_share": 0.0, "nearest": 2, "budget": 28}, [(0, 2), (0, 2)]),
    "none": ({"share": 0.25, "last_share": 0.25, "budget": 10}, [(1, 1), (1, 1)]),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "gpt_oss"])
@torch.no_grad()
def test_heads_keep_the_tokens_of_the_definition(family, case, text):
    """Also with soft caps, learned sinks and sliding windows, and for a row with padding."""
    fields, full_heads = CASES[case]
    model: Any = make(family, **HEADS)
    policy: Any = context.make("task_kv", **SMALL | fields)
    ids, mask = pad(text, 5)
    cache: Any = context.PolicyCache(policy, model, track_tokens=True)
    read(model, cache, ids, mask=mask)
    tokens_by_layer, numbers = cache.get_retained_tokens(), set()
    model.set_attn_implementation("eager")
    layers = [layer for layer in cache.attention_layers if layer.sees_everything]
    for row, (place, layer) in itertools.product(range(2), enumerate(layers)):
        own = ids[row : row + 1, mask[row].bool()]
        plain: Any = DynamicCache()
        out: Any = model(own, past_key_values=plain, output_attentions=True)
        attention, values = out.attentions[layer.index][0], plain.layers[layer.index].values[0]
        stays, full = choose_slowly(attention.double(), values.double(), policy, full_heads[place])
        marks = tokens_by_layer[layer.index].stored_mask[row]
        assert [set(head.nonzero().flatten().tolist()) for head in marks] == stays
        limits = layer.memory.limits[row]
        assert {head for head, limit in enumerate(limits) if limit == -1} == full
        assert sum(map(len, stays)) == 4 * policy.budget
        numbers.add(len(full))
    assert (numbers == {0}) == (case == "none")


def test_equal_heads_have_no_distance_and_two_heads_have_equal_ones():
    vectors = torch.randn(3, 1, 16, generator=torch.Generator().manual_seed(1))
    assert not measure_distances(vectors.expand(3, 5, 16)).any()
    two = measure_distances(torch.randn(50, 2, 16, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(two[:, 0], two[:, 1])
    many = torch.randn(3, 7, 16, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    expected = (many - many.mean(dim=1, keepdim=True)).norm(dim=2)
    torch.testing.assert_close(measure_distances(many), expected)


@pytest.mark.parametrize("odd_head", range(6))
def test_a_head_with_another_mean_of_its_values_is_full(odd_head):
    generator = torch.Generator().manual_seed(odd_head)
    keys, values = (torch.randn(1, 6, 60, 8, generator=generator) for _ in range(2))
    queries = torch.randn(1, 12, 4, 8, generator=generator)
    values[:, odd_head] += 3
    policy = TaskKVPolicy(budget=40, nearest=0, share=0.2, **SMALL)
    distances = measure_distances(policy.summarize(keys, values, queries, Scoring(0.3)))[0].tolist()
    limits = policy.set_limits(distances, 60)
    assert [head for head, limit in enumerate(limits) if limit == -1] == [odd_head]


def test_the_vector_is_the_attention_to_the_values_of_the_best_tokens_before_the_window():
    """Unit keys make the logits equal to the query, whose softmax is the weights."""
    weights = torch.tensor([0.1, 0.25, 0.15, 0.05, 0.2, 0.25])
    keys, queries = torch.eye(6)[None, None], weights.log()[None, None, None]
    values = torch.tensor([1.0, 10.0, 100.0, 1e3, 1e4, 1e5])[None, None, :, None]
    for top, expected in ((1, 2.5), (3, 2.5 + 2e3 + 15), (9, 2.5 + 2e3 + 15 + 0.1 + 50)):
        fields: dict[str, Any] = {**SMALL, "window": 1}
        policy = TaskKVPolicy(budget=40, top=top, **fields)
        vector = policy.summarize(keys, values, queries, Scoring(1.0))
        torch.testing.assert_close(vector, torch.tensor([[[expected]]]))
    # Without a token before the window, all tokens are used.
    fields = {**SMALL, "window": 6, "recent": 6}
    policy = TaskKVPolicy(budget=40, top=2, **fields)
    assert policy.summarize(keys, values, queries, Scoring(1.0)).item() == pytest.approx(25e3 + 2.5)


def test_the_number_of_far_heads_falls_linearly_as_in_the_paper():
    """Llama 2 has 32 layers of 32 heads, and 4 of them in the last layer; Mistral has one."""
    for share, last in ((0.25, 4), (0.3, 1)):
        policy = TaskKVPolicy(share=share, last_share=last / 32, nearest=0)
        numbers = [policy.for_layer(index, 32).count_full(32, 100)[0] for index in range(32)]
        exact = [32 * share - (32 * share - last) * index / 31 for index in range(32)]
        assert max(abs(number - one) for number, one in zip(numbers, exact, strict=True)) <= 0.5 + 1e-9
        assert (numbers[0], numbers[-1]) == (int(32 * share + 0.5), last)
        assert numbers == sorted(numbers, reverse=True)
    assert TaskKVPolicy().for_layer(0, 1).count_full(32, 100) == (8, 1)


@pytest.mark.parametrize("heads", [1, 2, 3, 8])
def test_the_limits_of_a_layer_sum_to_its_budget(heads):
    distances = torch.rand(heads, generator=torch.Generator().manual_seed(heads)).tolist()
    for budget, tokens, share, nearest in itertools.product(
        (7, 12, 30, 41), (2, 7, 29, 41, 90), (0.0, 0.3, 1.0), (0, 1, 9)
    ):
        policy = TaskKVPolicy(budget=budget, share=share, nearest=nearest, **SMALL)
        limits = policy.set_limits(distances, tokens)
        full, others = limits.count(-1), [limit for limit in limits if limit != -1]
        assert full == sum(policy.count_full(heads, tokens)) < heads
        assert max(others) - min(others) <= 1
        assert min(others) >= 7
        assert others == sorted(others, reverse=True)
        if tokens < budget:
            assert set(others) == {budget}
        else:
            assert full * tokens + sum(others) == heads * budget


def test_near_heads_are_omitted_before_far_ones():
    policy = TaskKVPolicy(budget=30, share=0.25, nearest=2, **SMALL)
    numbers = [policy.count_full(8, tokens) for tokens in (30, 50, 60, 95, 150, 200, 300)]
    assert numbers == [(2, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0), (0, 0)]
    limits = policy.set_limits([3.0, 9.0, 1.0, 5.0, 8.0, 2.0, 4.0, 6.0], 50)
    assert [head for head, limit in enumerate(limits) if limit == -1] == [1, 2, 4, 5]


@torch.no_grad()
def test_full_heads_stay_and_the_others_stay_bounded(text):
    """After a second prompt and single tokens; a memory that is reset chooses again."""
    model: Any = make("llama", **HEADS)
    policy: Any = context.make("task_kv", budget=24, **SMALL)
    cache = context.PolicyCache(policy, model)
    read(model, cache, text[:1, :28])
    memories: list[Any] = [layer.memory for layer in cache.attention_layers]
    choice = [memory.limits for memory in memories]
    for end in (*range(29, 37), 40):
        read(model, cache, text[:1, cache.get_seq_length() : end])
        for memory, limits in zip(memories, choice, strict=True):
            assert memory.state["limits"].tolist() == limits
            for length, limit in zip(memory.state["lengths"][0].tolist(), limits[0], strict=True):
                if limit == -1:
                    assert length == end
                else:
                    assert limit <= length <= limit + (3 if end < 40 else 0)
    cache.reset()
    assert cache.nbytes() == 0
    read(model, cache, text[1:])
    memories = [layer.memory for layer in cache.attention_layers]
    assert [memory.limits for memory in memories] != choice


@torch.no_grad()
def test_no_head_is_full_before_a_prompt(text):
    model: Any = make("llama", **HEADS)
    policy: Any = context.make("task_kv", budget=12, share=0.5, last_share=0.5, **SMALL)
    cache = context.PolicyCache(policy, model)
    for end in range(1, 31):
        read(model, cache, text[:, end - 1 : end])
    memories: list[Any] = [layer.memory for layer in cache.attention_layers]
    assert all(memory.limits == [[0] * 4] * 2 for memory in memories)
    assert {int(length) for memory in memories for length in memory.state["lengths"].flatten()} == {14}
    read(model, cache, text[:, 30:])
    # The heads had 14 tokens and got 10, so that one full head leaves 8 tokens to each of the others.
    for memory in memories:
        assert all(sorted(row) == [-1, 8, 8, 8] for row in memory.limits)
        assert all(sorted(row) == [8, 8, 8, 24] for row in memory.state["lengths"].tolist())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@torch.no_grad()
def test_the_bytes_are_exact_and_marks_change_no_head(dtype, text):
    model: Any = make("llama", **HEADS).to(dtype)
    policy: Any = context.make("task_kv", budget=25, **SMALL)
    cache, tracking = (context.PolicyCache(policy, model, track_tokens=track) for track in (False, True))
    read(model, cache, text)
    read(model, tracking, text)
    assert cache.nbytes() == policy.nbytes(40, cache.shape())
    for layer, other in zip(cache.attention_layers, tracking.attention_layers, strict=True):
        assert torch.equal(layer.memory.state["limits"], other.memory.state["limits"])
        assert layer.memory.state["lengths"].sum(dim=1).tolist() == [100, 100]


@pytest.mark.parametrize("family", ["llama", "gpt_oss"])
@torch.no_grad()
def test_a_row_that_begins_later_chooses_in_its_own_first_prompt(family, text):
    """One row has only padding in the first call, and one token in the second."""
    model: Any = make(family, **HEADS)
    policy: Any = context.make("task_kv", budget=20, **SMALL)
    ids, mask = pad(text, 32)
    cuts = [31, 33, 38]
    logits = read(model, context.PolicyCache(policy, model), ids, cuts, mask)
    cache = context.PolicyCache(policy, model)
    close(logits[:1, 32:], read(model, cache, text[:1, :8], [1, 6]))
    close(logits[1:], read(model, context.PolicyCache(policy, model), text[1:2], cuts))
    assert all(sorted(layer.memory.limits[0])[:3] == [-1, -1, 20] for layer in _full_layers(cache)[:1])


def _full_layers(cache) -> list[Any]:
    return [layer for layer in cache.attention_layers if layer.sees_everything]


@torch.no_grad()
def test_limits_of_a_file_that_do_not_fit_are_refused(text, tmp_path):
    model: Any = make("llama", **HEADS)
    policy: Any = context.make("task_kv", budget=24, **SMALL)
    cache, path = context.PolicyCache(policy, model), tmp_path / "cache.safetensors"
    read(model, cache, text)
    cache.save(path)
    again: Any = context.PolicyCache.load(path, policy, model)
    assert again.attention_layers[0].memory.limits == _full_layers(cache)[0].memory.limits
    tensors, metadata = load_file(path), read_metadata(path)
    (head,) = (tensors["0.limits"][0] != -1).nonzero()[0].tolist()
    for value in (-2, 0, 3, 25, 10**9):
        limits = tensors["0.limits"].clone()
        limits[0, head] = value
        save_file(tensors | {"0.limits": limits}, path, metadata)
        with pytest.raises(ValueError, match=r"the limits .* do not fit the policy and its tokens"):
            context.PolicyCache.load(path, policy, model)
    save_file(tensors | {"0.limits": torch.full((2, 4), -1)}, path, metadata)
    with pytest.raises(ValueError, match=r"the limits .* do not fit"):
        context.PolicyCache.load(path, policy, model)


def read_metadata(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"budget": 271}, "budget=271: must be at least 272, for 16 sinks and 256 recent tokens"),
        ({"recent": 31}, "recent=31: must be at least 32"),
        ({"share": 1.5}, r"share=1\.5: must be from 0 to 1"),
        ({"last_share": -0.1}, r"last_share=-0\.1: must be from 0 to 1"),
        ({"share": float("nan")}, "share=nan: must be from 0 to 1"),
        ({"nearest": -1}, "nearest=-1: must be at least 0"),
        ({"top": 0}, "top=0: must be at least 1"),
        ({"kernel": 4}, "kernel=4: must be odd"),
        ({"heads": "adaptive"}, "heads='adaptive': must be 'equal'"),
    ],
)
def test_invalid_fields_are_reported(fields, message):
    with pytest.raises(ValueError, match=message):
        context.make("task_kv", **fields)
