"""Summaries of chunks and the tree search equal slow definitions; presets are settings of `ChunksPolicy`."""

import itertools
import math

import pytest
import torch
from by_layer import pad, read

from scrubjay.kernels.select import best
from scrubjay.memory import context
from scrubjay.memory.context.policies.chunk_search import expand_query, search_tree, summarize, vote
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.rotary import PairLayout, Rotary

PRESETS = ("hip", "longheads", "quest")
WIDTH, SIZE = 6, 5


@pytest.fixture
def rotation():
    frequencies = torch.tensor([1.0, 0.1])
    rotary = Rotary(PairLayout(2, True), lambda: frequencies, torch.float32)
    return rotary.make_slot_rotation(SIZE, torch.device("cpu"))


@pytest.fixture
def chunks():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(3, 2, SIZE, WIDTH, generator=generator).unbind(0)


def turn(vector, place):
    """Rotate the pairs (0, 1) and (2, 3) of a list of numbers."""
    out = list(vector)
    for pair, frequency in enumerate((1.0, 0.1)):
        x, y, angle = vector[2 * pair], vector[2 * pair + 1], place * frequency
        out[2 * pair] = x * math.cos(angle) - y * math.sin(angle)
        out[2 * pair + 1] = x * math.sin(angle) + y * math.cos(angle)
    return out


def attend(query, keys, values, scale):
    weights = [math.exp(scale * sum(a * b for a, b in zip(query, key, strict=True))) for key in keys]
    total = sum(weights)
    return [
        sum(weight * value[i] for weight, value in zip(weights, values, strict=True)) / total
        for i in range(len(values[0]))
    ]


def test_the_summary_by_attention_is_that_of_longheads(chunks, rotation):
    queries, keys, values = chunks
    scoring = Scoring(scale=0.4)
    result = summarize("attention", queries[None], keys[None], values[None], rotation, scoring)[0]
    for chunk in range(2):
        turned_queries, turned_keys = (
            [turn(vector, place) for place, vector in enumerate(x[chunk].tolist())] for x in (queries, keys)
        )
        outputs = [attend(query, turned_keys, values[chunk].tolist(), 0.4) for query in turned_queries]
        mean = [sum(output[i] for output in outputs) / SIZE for i in range(WIDTH)]
        expected = attend(mean, turned_keys, turned_keys, 0.4)
        torch.testing.assert_close(result[chunk], torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_other_summaries(chunks, rotation):
    queries, keys, values = chunks
    names = ("mean", "middle", "bounds")
    result = {name: summarize(name, queries, keys, values, rotation, Scoring(scale=1.0)) for name in names}
    for chunk, table in enumerate(keys.tolist()):
        columns = list(zip(*table, strict=True))
        expected = {
            "mean": [sum(column) / SIZE for column in columns],
            "middle": table[2],
            "bounds": [max(column) for column in columns] + [min(column) for column in columns],
        }
        for name in names:
            torch.testing.assert_close(result[name][chunk], torch.tensor(expected[name]))


def test_the_score_of_bounds_is_the_largest_product_of_any_key_within_them(chunks, rotation):
    queries, keys, values = chunks
    summary = summarize("bounds", queries, keys, values, rotation, Scoring(scale=1.0))
    query = queries[0, 0]
    scores = summary @ expand_query("bounds", query)
    products = torch.maximum(query * keys.amax(dim=1), query * keys.amin(dim=1))
    torch.testing.assert_close(scores, products.sum(dim=1))
    assert (scores >= (keys @ query).amax(dim=1)).all()


def test_a_summary_by_attention_needs_values_as_wide_as_keys(chunks, rotation):
    queries, keys, values = chunks
    with pytest.raises(ValueError, match="4 and 6 numbers in this model; choose summary='mean'"):
        summarize("attention", queries, keys, values[..., :4], rotation, Scoring(scale=1.0))


def search_slowly(scores, number, first, last):
    """Return the chunks that a tree search over scores finds."""
    count = max(last - first, 0)
    edges = [first + count * i // number for i in range(number + 1)]
    nodes = list(itertools.pairwise(edges))
    while any(end - begin > 1 for begin, end in nodes):
        halves = []
        for begin, end in nodes:
            middle = (begin + end) // 2
            halves += [half for half in ((begin, middle), (middle, end)) if half[1] > half[0]]
        order = sorted(halves, key=lambda half: -scores[(half[0] + half[1]) // 2])
        nodes = sorted(order[:number])
    return {begin for begin, end in nodes if end > begin}


@pytest.mark.parametrize("number", [1, 2, 3, 7, 20, 64])
def test_the_tree_search_equals_its_definition_in_every_row(number):
    generator = torch.Generator().manual_seed(number)
    queries, summaries = torch.randn(6, 4, 8, generator=generator), torch.randn(6, 37, 8, generator=generator)
    first, last = torch.tensor([0, 1, 1, 5, 9, 1]), torch.tensor([37, 30, 2, 5, 3, 23])
    result = search_tree(queries, summaries, number, first, last)
    scores = (summaries @ queries.mT).amax(dim=2)
    for row in range(6):
        expected = search_slowly(scores[row].tolist(), number, int(first[row]), int(last[row]))
        assert set(result[row].nonzero().flatten().tolist()) == expected
        assert result[row].sum() == len(expected) == min(number, max(int(last[row] - first[row]), 0))


@pytest.mark.parametrize("peak", [0, 11, 40, 63])
def test_the_tree_search_finds_the_best_chunks_around_one_peak(peak):
    scores = -(torch.arange(64.0) - peak - 0.25).abs()
    result = search_tree(torch.ones(1, 1, 1), scores.view(1, 64, 1), 8, torch.tensor([0]), torch.tensor([64]))
    assert set(result[0].nonzero().flatten().tolist()) == set(best(scores, 8).tolist())


def test_padding_has_no_vote():
    generator = torch.Generator().manual_seed(0)
    queries, summaries = torch.randn(2, 5, 8, generator=generator), torch.randn(2, 30, 8, generator=generator)
    valid, outside = torch.ones(2, 5).bool(), torch.zeros(2, 30).bool()
    valid[0, :2], outside[0, 20:], outside[:, 0] = False, True, True
    for search in ("flat", "tree"):
        votes = vote(queries, summaries, search, 4, Scoring(scale=1.0), outside, valid)
        alone = vote(queries[:1, 2:], summaries[:1, 1:20], search, 4, Scoring(scale=1.0))
        torch.testing.assert_close(votes[:1, 1:20], alone)
        assert not votes[outside].any()


@pytest.mark.requires("transformers")
@pytest.mark.parametrize("summary", ["mean", "middle", "bounds", "attention"])
def test_summaries_do_not_depend_on_calls_and_padding(summary, tiny_llama, text):
    model = tiny_llama()
    policy = ChunksPolicy(budget=80, chunk_size=4, summary=summary)

    def summarize_text(ids, cuts, mask=None):
        cache = context.PolicyCache(policy, model)
        read(model, cache, ids, cuts, mask)
        return [layer.memory.state["summaries"] for layer in cache.attention_layers]

    expected = summarize_text(text, [])
    ids, mask = pad(text, 7)
    for cuts in ([3, 9, 10, 11, 26], list(range(1, 40))):
        for one, other in zip(expected, summarize_text(text, cuts), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    short = summarize_text(text[:1, :33], [])
    for one, other in zip(short, summarize_text(ids, [20, 33], mask), strict=True):
        torch.testing.assert_close(one, other[:1, :, : one.shape[2]], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_setting_of_chunks(name):
    preset = context.make(name, budget=4096)
    assert vars(preset) == vars(context.make("chunks", **vars(preset)))
    assert context.name_of(preset) == name


@pytest.mark.parametrize(("field", "value"), [("summary", "sum"), ("search", "beam"), ("store", "gpu")])
def test_unknown_choices_are_refused(field, value):
    with pytest.raises(ValueError, match=f"{field}='{value}'; choose from '"):
        context.make("chunks", **{field: value})
