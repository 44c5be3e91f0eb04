"""Generation of transformers with a policy cache: beams, assisted decoding, batches, pipelines."""

import copy
from typing import Any

import pytest
import torch
import transformers
from by_layer import make_for, pad
from families import FAMILIES, make

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache

pytestmark = pytest.mark.requires("transformers")

NEW = 10
WIDE = {name: {"budget": 64} for name in context.list_policies()} | {"duo": {}, "flexprefill": {}, "full": {}}
WIDE |= {"kvzap": {"budget": 64, "window": 8, "threshold": -float("inf")}}
WIDE |= {name: {"budget": 64, "chunk_size": 4} for name in ("longheads", "quest")}
WIDE["task_kv"]["recent"] = 32
"""Sizes at which nothing is evicted yet."""
TIGHT: dict[str, dict[str, Any]] = {
    "window": {"budget": 12},
    "sinks": {"budget": 12, "num_sinks": 2},
    "h2o": {"budget": 12, "recent": 5, "num_sinks": 2, "interval": 3},
    "snapkv": {"budget": 12, "window": 4, "num_sinks": 2},
    "recycled": {"budget": 12, "stride": 4, "num_sinks": 2},
    "duo": {"num_sinks": 2, "recent": 8},
    "refreshkv": {"budget": 8, "stride": 4, "num_sinks": 2, "similarity": 0.5},
    "task_kv": {"budget": 20, "window": 4, "num_sinks": 2, "recent": 5},
    "chunks": {"budget": 12, "chunk_size": 2, "local_chunks": 2, "store": "model"},
}
"""Sizes at which most of a prompt is evicted or not read."""
QUICK = ("gpt_oss", "falcon", "falcon_h1", "gemma3")


def quick(families):
    return [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in families]


def prompt(length, rows=1, seed=4):
    return torch.randint(2, 128, (rows, length), generator=torch.Generator().manual_seed(seed))


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", WIDE)
@pytest.mark.parametrize("family", quick(FAMILIES))
def test_beams_are_the_models_own_while_nothing_is_dropped(family, name):
    model: Any = make(family)
    # Llama 4 scales queries by columns seen, padding included; Gemma 2 outputs NaN for padding.
    padding = 0 if family in ("llama4", "gemma2") else 5
    ids, mask = pad(prompt(20, 2), padding)
    arguments = {"max_new_tokens": NEW, "pad_token_id": 0, "attention_mask": mask, "num_beams": 3}
    own = model.generate(ids, **arguments)
    ours = model.generate(ids, cache=PolicyCache(make_for(model, name, **WIDE[name]), model), **arguments)
    assert own.tolist() == ours.tolist()


@pytest.mark.one_in(4)
@pytest.mark.parametrize("name", TIGHT)
@pytest.mark.parametrize("family", quick(family for family in FAMILIES if family != "llama4"))
def test_a_padded_row_is_written_as_alone_under_a_tight_policy(family, name):
    model: Any = make(family)
    ids, mask = pad(prompt(30, 2), 5)
    arguments = {"max_new_tokens": NEW, "pad_token_id": 0, "eos_token_id": None, "do_sample": False}

    def generate(ids, mask):
        cache = PolicyCache(make_for(model, name, **TIGHT[name]), model)
        return model.generate(ids, cache=cache, attention_mask=mask, **arguments)[:, -NEW:].tolist()

    both = generate(ids, mask)
    for row, first in enumerate((5, 0)):
        assert generate(ids[row : row + 1, first:], mask[row : row + 1, first:]) == both[row : row + 1]


@pytest.mark.parametrize("family", quick(FAMILIES))
def test_drafts_change_no_text_or_are_refused(family):
    model: Any = make(family)
    ids = prompt(20)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    cache = PolicyCache(context.make("full"), model)
    if not cache.is_croppable:
        with pytest.raises(
            ValueError, match=r"assisted (decoding .* do not support this|generation is not supported)"
        ):
            model.generate(ids, cache=cache, assistant_model=copy.deepcopy(model), **arguments)
        assert cache.get_seq_length() == 0
        return
    own = model.generate(ids, **arguments)
    ours = model.generate(ids, cache=cache, assistant_model=copy.deepcopy(model), **arguments)
    assert own.tolist() == ours.tolist()


@pytest.mark.parametrize("name", ["full", *TIGHT])
def test_pipelines_write_through_a_policy(name, tiny_chat):
    model, tokenizer = copy.deepcopy(tiny_chat[0]), copy.deepcopy(tiny_chat[1])
    tokenizer.padding_side = "left"
    policy = make_for(model, name, **TIGHT.get(name, {}))
    pipe: Any = transformers.pipeline("text-generation", model=model, tokenizer=tokenizer)
    arguments = {"max_new_tokens": NEW, "do_sample": False, "return_full_text": False}
    texts = ["The jay hides what it will want in winter.", "It remembers where."]

    def generate(texts, **options):
        cache = PolicyCache(policy, model)
        outputs = pipe(texts, cache=cache, **arguments, **options)
        return [each[0]["generated_text"] for each in outputs], cache

    alone = [generate([text])[0][0] for text in texts]
    together, cache = generate(texts, batch_size=2)
    assert together == alone
    tokens = max(len(tokenizer(text).input_ids) for text in texts) + NEW - 1
    assert cache.get_seq_length() == tokens
    if name == "full":
        assert alone == [pipe(text, **arguments)[0]["generated_text"] for text in texts]
    elif policy.split_invariant:
        assert cache.nbytes() < PolicyCache(context.make("full"), model).policy.nbytes(tokens, cache.shape())
