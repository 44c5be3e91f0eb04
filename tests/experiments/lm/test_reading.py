"""Tests of reading in blocks, of answers, which equal those of `generate`, and of curves of losses."""

import dataclasses
import math

import pytest
import torch

from scrubjay.experiments.lm.needles import Example
from scrubjay.experiments.lm.reading import Curve, answer, answer_with_infiniretri, read, tokenize
from scrubjay.memory import context
from scrubjay.memory.context.infiniretri import InfiniRetri

pytestmark = pytest.mark.requires("transformers")


@pytest.mark.parametrize("name", ["snapkv", "recycled", "chunks"])
def test_a_prompt_is_cut_only_where_its_end_does_not_choose(name, model):
    language, _ = model
    policy = context.make(name, budget=80)
    calls = []
    handle = language.register_forward_pre_hook(
        lambda _, args, __: calls.append(args[0].shape[1]), with_kwargs=True
    )
    with handle:
        list(read(language, context.PolicyCache(policy, language), torch.arange(90), 32))
    assert calls == ([32, 32, 26] if name == "chunks" else [90])


def test_an_answer_is_what_generate_writes(model):
    language, tokenizer = model
    example = Example("w1 w2", "w3 w4 w5 " * 7, "w6", "w7", ("never",), 9)
    response = answer(language, tokenizer, context.make("full"), example, block=5)
    tokens = tokenize(tokenizer, example.render(tokenizer))
    expected = language.generate(
        tokens[None], do_sample=False, max_new_tokens=9, attention_mask=torch.ones(1, len(tokens))
    )
    assert response.text == tokenizer.decode(expected[0, len(tokens) :], skip_special_tokens=True)
    assert (response.score, response.tokens) == (0, len(tokens))
    first = response.text.split()[0]
    early = answer(
        language,
        tokenizer,
        context.make("full"),
        Example("w1 w2", "w3 w4 w5 " * 7, "w6", "w7", (first,), 9),
        5,
    )
    assert (early.text, early.score) == (first, 1)


def test_infiniretri_answers_from_what_it_kept(model, tmp_path):
    language, tokenizer = model
    example = Example("w1 w2", "w3 w4 w5 w6 . " * 20, "w7", "w8", ("never",), 5)
    reader = InfiniRetri(language, tokenizer, chunk_tokens=20, layer=1, heads=[0])
    selection = reader.read(example.context, example.question, max_new_tokens=1, progress=False)
    response = answer_with_infiniretri(language, tokenizer, reader, example, 7, tmp_path, quiet=True)
    shorter = dataclasses.replace(example, context=" ".join(selection.sentences))
    assert 0 < len(shorter.context) < len(example.context) / 4
    assert response.text == answer(language, tokenizer, context.make("full"), shorter, block=7).text
    assert not list(tmp_path.iterdir())
    assert response.tokens == selection.tokens_read > len(tokenize(tokenizer, shorter.context))


def test_a_curve_of_equal_chances_has_their_perplexity():
    curve = Curve([{"nats": [math.log(7)] * 4, "cpu": 2.0}, {"nats": [math.log(7)] * 2, "cpu": 1.0}])
    assert curve.perplexity() == pytest.approx(7)
    assert curve.milliseconds("cpu") == pytest.approx(500)
    assert curve.milliseconds("cpu", 0.5) == pytest.approx(500)
