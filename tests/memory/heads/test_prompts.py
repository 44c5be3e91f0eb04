"""Prompts around a text: question and tail are separate, and every text starts with BOS."""

import copy

import pytest
import torch

from scrubjay.memory.heads.prompts import build_chat_prompt, prepend_bos
from scrubjay.memory.heads.retrieval import _probes, _score
from scrubjay.memory.heads.sink_rate import measure_attention
from scrubjay.memory.reading.infiniretri import InfiniRetri


@pytest.fixture
def with_bos(tiny_chat):
    """Return a model and a tokenizer without a chat template that prepends BOS, as Gemma's does."""
    from tokenizers.processors import TemplateProcessing

    model, tokenizer = tiny_chat
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    bos = tokenizer.convert_ids_to_tokens(3)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 3)]
    )
    assert tokenizer("a").input_ids[0] == 3
    return model, tokenizer


def test_the_tail_of_the_template_is_not_of_the_question(tiny_chat):
    _, tokenizer = tiny_chat
    before, question, tail = build_chat_prompt(tokenizer, "Where is it?")
    assert question.endswith("Where is it?")
    assert "<|im_end|>" in tail
    assert "<|im_start|>user" in before
    assert before + question + tail == tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )


def test_bos_is_prepended_once(with_bos, tiny_chat):
    _, tokenizer = with_bos
    assert prepend_bos(tokenizer, []) == [3]
    assert prepend_bos(tokenizer, [7, 8]) == [3, 7, 8]
    assert prepend_bos(tokenizer, [3, 7, 8]) == [3, 7, 8]
    assert prepend_bos(tiny_chat[1], [7, 8]) == [7, 8]


def test_every_forward_pass_starts_with_bos(with_bos, monkeypatch):
    model, tokenizer = with_bos
    inputs = []
    forward = model.base_model.forward

    def record(input_ids, **options):
        inputs.append(input_ids[0].tolist())
        return forward(input_ids, **options)

    monkeypatch.setattr(model.base_model, "forward", record)
    reader = InfiniRetri(model, tokenizer, chunk_tokens=60, layer=1, heads=[0])
    reader.read("The jay hid a nut. It rained.", "Where?", progress=False, max_new_tokens=2)
    (probe,) = _probes(1, sentences=2, seed=0)
    _score(model, tokenizer, probe)
    assert len(inputs) >= 3
    starts = [tokens[0] for tokens in inputs if len(tokens) > 1]
    assert starts
    assert set(starts) == {3}


def test_rows_are_weighted_by_their_attention_to_the_question(with_bos, monkeypatch):
    from scrubjay.memory.reading import infiniretri

    model, tokenizer = with_bos
    raw_weights, row_weights = [], []
    capture, scores = infiniretri.attention_weights, infiniretri.phrase_scores

    def record_weights(*arguments):
        raw_weights.append(capture(*arguments)[1])
        return {1: raw_weights[-1]}

    def record_scores(weights, *sizes):
        row_weights.append(weights)
        return scores(weights, *sizes)

    monkeypatch.setattr(infiniretri, "attention_weights", record_weights)
    monkeypatch.setattr(infiniretri, "phrase_scores", record_scores)
    reader = InfiniRetri(model, tokenizer, chunk_tokens=60, layer=1, heads=[0, 1], row_weights="own")
    sentences = reader._cut("The jay hid a nut.")
    reader.select_sentences(sentences, "Where?")
    before, question_tokens, _ = reader._prompt("Where?")
    first = len(before) + len(sentences[0].tokens)
    weights = raw_weights[0][0]
    for row in range(len(question_tokens)):
        own = float(weights[:, row, first : first + len(question_tokens)].sum())
        torch.testing.assert_close(row_weights[0][:, row], weights[:, row] * own**2)
    with pytest.raises(ValueError, match="row_weights='mine'"):
        InfiniRetri(model, tokenizer, layer=1, heads=[0], row_weights="mine")  # pyright: ignore[reportArgumentType]


def test_entropy_of_uniform_attention(tiny_llama):
    model = tiny_llama(torch.float64)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    ids = torch.randint(2, 64, (2, 20))
    looks = measure_attention(model, ids)
    even = sum(torch.tensor(float(n)).log() for n in range(1, 21)) / 20
    torch.testing.assert_close(looks.entropy, torch.full((2, 2, 4), float(even), dtype=torch.float64))
    assert looks.layers == [0, 1]
