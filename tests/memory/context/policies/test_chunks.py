"""Chunks policy against its definition: votes, chunks that are always read, and attention by kernels."""

import math

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from scrubjay.kernels import attend_chosen, merge
from scrubjay.memory.context.layers.rotation import find_rotation
from scrubjay.memory.context.policies.base import Step
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.dense import Scoring

pytestmark = pytest.mark.requires("transformers")

HEADS, GROUPS, WIDTH, SCALE = 4, 2, 8, 0.4


@pytest.fixture(scope="module")
def rotary():
    config = LlamaConfig(
        vocab_size=8,
        hidden_size=HEADS * WIDTH,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
    )
    return find_rotation(LlamaForCausalLM(config).double()).by_layer[0]


def step_of(rotary, first, length) -> Step:
    time = torch.arange(first, first + length)[None]
    before, after = torch.tensor([first]), torch.tensor([first + length])
    return Step(time, time, first, before, after, False, rotary)


def best_between(query, keys, policy) -> list[int]:
    """Return the selected chunks of one key head, for query heads `[shared, width]` without rotation."""
    full = len(keys) // policy.chunk_size
    candidates = range(1, full - policy.num_local)
    means = [keys[m * policy.chunk_size : (m + 1) * policy.chunk_size].mean(dim=0) for m in candidates]
    votes = [0.0] * len(means)
    for q in query:
        scores = [math.exp(SCALE * float(q @ mean)) for mean in means]
        votes = [vote + score / sum(scores) for vote, score in zip(votes, scores, strict=True)]
    ranking = sorted(range(len(votes)), key=lambda place: (-votes[place], place))
    return sorted(candidates[place] for place in ranking[: policy.num_selected])


@pytest.mark.parametrize("tokens", [3, 8, 9, 23, 61, 64, 95])
@pytest.mark.parametrize("local", [0, 2])
@pytest.mark.parametrize("store", ["model", "cpu", "disk"])
def test_a_token_reads_the_chunks_of_its_own_votes(rotary, tokens, local, store):
    """The output equals `attend_chosen` at consecutive slots, merged with the token itself."""
    policy = ChunksPolicy(budget=4 * (local + 5), chunk_size=4, local_chunks=local, store=store)
    generator = torch.Generator().manual_seed(tokens)
    shape = (1, GROUPS, tokens + 1, WIDTH)
    keys, values = (torch.randn(shape, generator=generator, dtype=torch.float64) * 2 for _ in "kv")
    query = torch.randn(1, HEADS, tokens + 1, WIDTH, generator=generator, dtype=torch.float64)
    shift = rotary.make_rotation(None, torch.arange(tokens + 1)[None])
    model_query, model_keys = shift(query), shift(keys)
    memory = policy.build()
    out = None
    for first, length in ((0, tokens), (tokens, 1)):
        own = slice(first, first + length)
        step = step_of(rotary, first, length)
        tensors = (model_query[:, :, own], model_keys[:, :, own], values[:, :, own])
        out = memory.attend(*tensors, step, Scoring(SCALE))

    for head in range(HEADS):
        group = head // (HEADS // GROUPS)
        shared = query[0, group * 2 : group * 2 + 2, -1]
        full = tokens // 4
        selection = {0, *range(max(full - local, 0), -(-tokens // 4))}
        selection |= set(best_between(shared, keys[0, group, :tokens], policy))
        chunks = sorted(selection)
        lengths = [min(4, tokens - 4 * m) for m in chunks]
        slots = [4 * place + c for place in range(len(chunks)) for c in range(4)]
        chunk_tables = torch.zeros(2, len(chunks), 4, WIDTH, dtype=torch.float64)
        for place, m in enumerate(chunks):
            own = slice(4 * m, 4 * m + lengths[place])
            chunk_tables[0, place, : lengths[place]] = keys[0, group, own]
            chunk_tables[1, place, : lengths[place]] = values[0, group, own]
        at_slots = rotary.make_rotation(None, torch.tensor([slots]))(chunk_tables[0].view(1, 1, -1, WIDTH))
        new = rotary.make_rotation(None, torch.tensor([[sum(lengths)]]))
        q, k = new(query[:, head, -1:][:, None]), new(keys[:, group, -1:][:, None])
        far = attend_chosen(
            q.transpose(1, 2),
            at_slots.view(1, len(chunks), 4, 1, WIDTH),
            chunk_tables[1].view(1, len(chunks), 4, 1, WIDTH),
            torch.arange(len(chunks)).view(1, 1, 1, -1),
            combine="joint",
            scale=SCALE,
            lengths=torch.tensor([lengths]),
            return_lse=True,
        )
        itself = (values[:, group, -1:][:, None].transpose(1, 2), (q * k).sum(dim=-1).transpose(1, 2) * SCALE)
        assert out is not None
        torch.testing.assert_close(merge([far, itself])[0, 0, 0], out[0, head, 0], rtol=1e-5, atol=1e-6)
