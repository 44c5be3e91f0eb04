"""What stands around a text: its question apart from the tail, and the first token of every text."""

import copy

import pytest
import torch

from scrubjay.memory.heads.prompts import chat_prompt, opened
from scrubjay.memory.heads.retrieval import _probes, _score
from scrubjay.memory.heads.sink_rate import attended
from scrubjay.memory.reading.infiniretri import InfiniRetri


@pytest.fixture
def with_bos(tiny_chat):
    """Return a model and a tokenizer that has no template, and puts BOS before every text as Gemma's."""
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
    before, asked, tail = chat_prompt(tokenizer, "Where is it?")
    assert asked.endswith("Where is it?")
    assert "<|im_end|>" in tail
    assert "<|im_start|>user" in before
    assert before + asked + tail == tokenizer.apply_chat_template(
        [{"role": "user", "content": asked}], tokenize=False, add_generation_prompt=True
    )


def test_a_text_is_opened_once(with_bos, tiny_chat):
    _, tokenizer = with_bos
    assert opened(tokenizer, []) == [3]
    assert opened(tokenizer, [7, 8]) == [3, 7, 8]
    assert opened(tokenizer, [3, 7, 8]) == [3, 7, 8]
    assert opened(tiny_chat[1], [7, 8]) == [7, 8]


def test_whoever_reads_begins_with_it(with_bos, monkeypatch):
    model, tokenizer = with_bos
    read = []
    forward = model.base_model.forward

    def noted(input_ids, **options):
        read.append(input_ids[0].tolist())
        return forward(input_ids, **options)

    monkeypatch.setattr(model.base_model, "forward", noted)
    reader = InfiniRetri(model, tokenizer, chunk_tokens=60, layer=1, heads=[0])
    reader.read("The jay hid a nut. It rained.", "Where?", progress=False, max_new_tokens=2)
    (probe,) = _probes(1, sentences=2, seed=0)
    _score(model, tokenizer, probe)
    assert len(read) >= 3
    starts = [tokens[0] for tokens in read if len(tokens) > 1]
    assert starts
    assert set(starts) == {3}


def test_rows_count_by_what_they_attend_to_the_question(with_bos, monkeypatch):
    from scrubjay.memory.reading import infiniretri

    model, tokenizer = with_bos
    captured, scored = [], []
    capture, scores = infiniretri.attention_weights, infiniretri.phrase_scores

    def noted(*arguments):
        captured.append(capture(*arguments)[1])
        return {1: captured[-1]}

    def told(weights, *sizes):
        scored.append(weights)
        return scores(weights, *sizes)

    monkeypatch.setattr(infiniretri, "attention_weights", noted)
    monkeypatch.setattr(infiniretri, "phrase_scores", told)
    reader = InfiniRetri(model, tokenizer, chunk_tokens=60, layer=1, heads=[0, 1], row_weights="own")
    sentences = reader._cut("The jay hid a nut.")
    reader.judge(sentences, "Where?")
    before, asked, _ = reader._prompt("Where?")
    first = len(before) + len(sentences[0].tokens)
    weights = captured[0][0]
    for row in range(len(asked)):
        own = float(weights[:, row, first : first + len(asked)].sum())
        torch.testing.assert_close(scored[0][:, row], weights[:, row] * own**2)
    with pytest.raises(ValueError, match="row_weights='mine'"):
        InfiniRetri(model, tokenizer, layer=1, heads=[0], row_weights="mine")  # pyright: ignore[reportArgumentType]


def test_entropy_of_even_and_of_single_minded_heads(tiny_llama):
    model = tiny_llama(torch.float64)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data.zero_()
    ids = torch.randint(2, 64, (2, 20))
    looks = attended(model, ids)
    even = sum(torch.tensor(float(n)).log() for n in range(1, 21)) / 20
    torch.testing.assert_close(looks.entropy, torch.full((2, 2, 4), float(even), dtype=torch.float64))
    assert looks.layers == [0, 1]
