"""Retrieval heads: ranking, stored scores, and a probe against greedy decoding with eager attention."""

import pytest
import torch

from scrubjay.memory.context import head_scores
from scrubjay.memory.context import retrieval_heads as module
from scrubjay.memory.context.quotes import build_chat_prompt
from scrubjay.memory.context.retrieval_heads import RetrievalHeads, measure_retrieval_heads, retrieval_heads

pytestmark = pytest.mark.requires("transformers")

HEADS = RetrievalHeads(((0.1, 0.0, 0.4), (0.3, 0.25, 0.1), (0.0, 0.0, 0.0)), probes=4)


def test_heads_are_ranked_and_a_layer_chosen_by_them_all():
    assert HEADS.rank()[:3] == [(0, 2), (1, 0), (1, 1)]
    assert HEADS.best_layer() == 1
    assert HEADS.select_heads(1) == [0, 1]
    assert HEADS.select_heads(1, share=0.9) == [0]
    with pytest.raises(ValueError, match="no retrieval head"):
        HEADS.select_heads(2)
    with pytest.raises(ValueError, match="layer=3"):
        HEADS.select_heads(3)


def test_scores_are_stored_and_serve_fine_tunes_but_no_strangers_of_the_same_sizes(
    tiny_llama, tmp_path, monkeypatch
):
    model = tiny_llama()
    monkeypatch.setattr(head_scores, "SCORES_FILE", tmp_path / "heads.json")
    module.store(model, HEADS, "a command", tmp_path / "heads.json")
    module.store(tiny_llama(vocab_size=65), RetrievalHeads(((1.0,),), 1), "another", tmp_path / "heads.json")
    head_scores._load_scores.cache_clear()
    assert retrieval_heads(model, tokenizer=None) == HEADS
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * parameter.std() * torch.randn_like(parameter)
    assert retrieval_heads(model, tokenizer=None) == HEADS
    monkeypatch.setattr(module, "measure_retrieval_heads", lambda *_, **__: "measured")
    assert retrieval_heads(tiny_llama(seed=1), tokenizer=None) == "measured"
    head_scores._load_scores.cache_clear()


def test_probes_ask_for_a_value_in_their_text():
    for probe in module._probes(6, sentences=20, seed=1):
        assert f"{probe.answer}{probe.value}." in probe.text
        assert probe.text.count(probe.value) == 1
        assert probe.text.count("The code of project") == 3
        assert probe.answer.removeprefix("The code of project ").removesuffix(" is ") in probe.question


@pytest.mark.slow
def test_stored_heads_of_smollm2_still_copy(smollm2):
    model, tokenizer = smollm2
    stored_heads = retrieval_heads(model, tokenizer)
    assert stored_heads.best_layer() in range(14, 24)
    measured_heads = measure_retrieval_heads(model, tokenizer, probes=1, sentences=8)
    assert measured_heads.rank()[0] in stored_heads.rank()[:8]


@pytest.mark.slow
def test_one_pass_sees_what_greedy_decoding_does_with_eager_attention(smollm2):
    model, tokenizer = smollm2
    (probe,) = module._probes(1, sentences=10, seed=3)
    before, question, tail = build_chat_prompt(tokenizer, probe.question)
    start = probe.text.index(probe.value)
    pieces = (
        before + probe.text[:start],
        probe.value,
        probe.text[start + len(probe.value) :] + question + tail + probe.answer,
    )
    lead, value, rest = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    prompt = torch.tensor([lead + value + rest])
    implementation = model.config._attn_implementation
    model.set_attn_implementation("eager")
    out = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=len(value),
        do_sample=False,
        output_attentions=True,
        return_dict_in_generate=True,
    )
    model.set_attn_implementation(implementation)
    assert out.sequences[0, prompt.shape[1] :].tolist() == value
    hits = torch.zeros(30, 9)
    for step, layers in enumerate(out.attentions):
        for layer, weights in enumerate(layers):
            best = weights[0, :, -1].argmax(dim=-1)
            inside = (best >= len(lead)) & (best < len(lead) + len(value))
            hits[layer] += inside & (prompt[0, best.clamp(max=prompt.shape[1] - 1)] == value[step])
    torch.testing.assert_close(module._score(model, tokenizer, probe), hits / len(value))
