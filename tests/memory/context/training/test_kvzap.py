"""Training of KVzap: targets and fits against slow definitions, and the weights of SmolLM2."""

import random
import sys
from typing import Any

import pytest
import torch
from by_layer import read
from families import make

from scrubjay.memory import context
from scrubjay.memory.context.policies.scored.kvzap import _REGISTERED, KVzapWeights
from scrubjay.memory.context.training.kvzap import (
    INSTRUCTION,
    NUM_SINKS,
    Ridge,
    cut_passages,
    describe_variance,
    explain_variance,
    main,
    measure_scores,
    read_files,
    train_kvzap,
    write_scene,
)

pytestmark = pytest.mark.requires("transformers")

INSTRUCTION_IDS = (5, 6, 7)
STORY = (
    "The lighthouse keeper wrote one line in the log each evening: the state of the sea, the oil left "
    "in the tank, and whether the relief boat had been seen. In winter the boat did not come for weeks, "
    "and he learned to bake bread from the flour that the storms had wetted. His daughter sent letters "
    "that arrived in bundles, so that he read a whole season in an hour, and then he read it again more "
    "slowly, one letter to an evening. In her last letter of March 1911 she wrote that she had found "
    "work in the town of Holmvik, at 27 Harbor Street, and that the rent was 14 crowns a month. He "
    "answered that the lamp needed a new mantle, that the gulls had come back early, and that he would "
    "be sixty-three in June. "
)
"""A text that no weights were fitted to."""


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@torch.no_grad()
def test_a_target_is_the_largest_norm_of_what_a_query_reads(family, text):
    """Loops over the queries of a repetition, from the attention weights and projections of the model."""
    model: Any = make(family)
    ids, length = text[0], text.shape[1]
    results = measure_scores(model, ids, INSTRUCTION_IDS)
    whole = torch.cat([ids, torch.tensor(INSTRUCTION_IDS), ids])[None]
    states: dict[int, Any] = {}
    hooks = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, options: states.update({module.layer_idx: options["hidden_states"][0]}),
            with_kwargs=True,
        )
        for layer in model.model.layers
    ]
    model.set_attn_implementation("eager")
    attentions = model(whole, output_attentions=True, use_cache=False).attentions
    for hook in hooks:
        hook.remove()
    assert results
    for index, (hidden, scores) in results.items():
        module = model.model.layers[index].self_attn
        torch.testing.assert_close(hidden, states[index][:length], atol=1e-5, rtol=1e-5)
        heads = model.config.num_attention_heads
        shared, width = heads // scores.shape[1], module.head_dim
        values = module.v_proj(states[index]).view(len(whole[0]), -1, width)
        matrix = module.o_proj.weight.view(-1, heads, width)
        for token in range(length):
            for group in range(scores.shape[1]):
                largest = max(
                    float(
                        attentions[index][0, head, query, token]
                        * (matrix[:, head] @ values[token, group]).norm()
                        / states[index][query].norm()
                    )
                    for head in range(group * shared, (group + 1) * shared)
                    for query in range(length + 3, 2 * length + 3)
                )
                expected = torch.tensor(largest).log()
                torch.testing.assert_close(scores[token, group], expected, atol=1e-3, rtol=1e-3)


def test_a_model_without_an_output_projection_is_refused(text):
    with pytest.raises(TypeError, match="has no output projection `o_proj`"):
        measure_scores(make("phi"), text[0])


@pytest.mark.parametrize("penalty", [0.0, 0.3])
def test_a_fit_is_the_solution_of_the_penalized_equations(penalty):
    torch.manual_seed(2)
    inputs, targets = torch.randn(60, 7) + 2, torch.randn(60, 3) - 5
    ridge = Ridge()
    for rows in (slice(0, 25), slice(25, 60)):
        ridge.add(inputs[rows], targets[rows])
    table = ridge.fit(penalty)
    # Least squares with one more row for each weight that draws it to 0.
    strength = penalty * (inputs - inputs.mean(dim=0)).square().sum(dim=0).mean()
    more = torch.cat([strength.sqrt() * torch.eye(7), torch.zeros(7, 1)], dim=1)
    rows = torch.cat([torch.cat([inputs, torch.ones(60, 1)], dim=1), more]).double()
    expected = torch.linalg.lstsq(rows, torch.cat([targets, torch.zeros(7, 3)]).double()).solution.mT
    torch.testing.assert_close(table, expected, atol=1e-6, rtol=1e-5)


def test_training_explains_the_scores_of_the_passages_and_serves_the_policy(tiny_llama, text):
    model = tiny_llama()
    weights = train_kvzap(model, text, INSTRUCTION_IDS, penalty=1e-6)
    assert {*weights.maps} == {0, 1}
    assert all(table.shape == (2, 33) and table.dtype == torch.float16 for table in weights.maps.values())
    shares = explain_variance(model, weights, text, INSTRUCTION_IDS)
    # 33 numbers explain 36 tokens of each of two texts in part.
    assert all(0.3 < share <= 1 for share in shares.values())
    assert describe_variance({0: 0.5, 3: 0.25}) == "0: 0.50, 3: 0.25\nmean: 0.38"
    policy = context.make("kvzap", budget=40, window=4, threshold=-2.0, weights=weights.register())
    assert read(model, context.PolicyCache(policy, model), text).isfinite().all()


def test_the_explained_variance_is_that_of_the_definition(tiny_llama, text):
    model = tiny_llama()
    weights = train_kvzap(model, text[:1])
    hidden, scores = measure_scores(model, text[1])[0]
    table = weights.maps[0].float()
    errors = scores[NUM_SINKS:] - hidden[NUM_SINKS:] @ table[:, :-1].mT - table[:, -1]
    expected = 1 - errors.square().mean(dim=0) / scores[NUM_SINKS:].var(dim=0, unbiased=False)
    assert explain_variance(model, weights, text[1:])[0] == pytest.approx(float(expected.mean()), rel=1e-3)


def test_nothing_to_learn_from_is_refused(tiny_llama):
    with pytest.raises(ValueError, match="no passages: give texts"):
        train_kvzap(tiny_llama(), [])
    with pytest.raises(ValueError, match="a passage has 4 tokens: must have more than 4"):
        train_kvzap(tiny_llama(), [torch.arange(4)])


def test_texts_come_from_files_folders_and_rules(tmp_path):
    (tmp_path / "b.md").write_text("page")
    (tmp_path / "a.py").write_text("code")
    (tmp_path / "c.bin").write_text("x")
    assert list(read_files([tmp_path, tmp_path / "c.bin"])) == ["code", "page", "x"]
    with pytest.raises(ValueError, match="none: no such file or folder"):
        list(read_files([tmp_path / "none"]))
    scene = write_scene(random.Random(3), 40)
    assert scene == write_scene(random.Random(3), 40) != write_scene(random.Random(4), 40)
    assert "{" not in scene


def test_passages_have_one_length(tiny_chat):
    passages = cut_passages(tiny_chat[1], ["a b c " * 300, "d " * 900])
    assert len(passages) > 1
    assert {len(passage) for passage in passages} == {1000}


def test_the_command_writes_weights(tiny_chat, tmp_path, monkeypatch, capsys):
    model, tokenizer = tiny_chat
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "maps.safetensors"
    arguments = [str(tmp_path / "model"), "--out", str(out), "--scenes", "2", "--samples", "0"]
    monkeypatch.setattr(sys, "argv", ["kvzap", *arguments])
    main()
    assert "1 passages of 1000 tokens; R² on 1 others" in capsys.readouterr().out
    assert {*KVzapWeights.load(out).maps} == set(range(model.config.num_hidden_layers))


@pytest.mark.slow  # dequantizing the model takes 15 seconds
def test_scores_of_smollm2_correlate_with_those_of_a_text_that_no_map_has_seen(smollm2):
    """The text is shorter than those of the training, where attention is larger. So means differ."""
    model, tokenizer = smollm2
    policy: Any = context.PolicyCache(context.make("kvzap", budget=512), model).policy
    maps = _REGISTERED[policy.weights].maps
    ids = tokenizer(STORY, return_tensors="pt").input_ids[0]
    instruction = tokenizer(INSTRUCTION, add_special_tokens=False).input_ids
    correlations = []
    for layer, (states, scores) in measure_scores(model, ids, instruction).items():
        table = maps[layer].float()
        guesses = states.float() @ table[:, :-1].mT + table[:, -1]
        for guess, score in zip(guesses[NUM_SINKS:].mT, scores[NUM_SINKS:].mT, strict=True):
            correlations.append(float(torch.corrcoef(torch.stack([guess, score.float()]))[0, 1]))
    assert len(correlations) == 90
    assert sum(correlations) / 90 > 0.5
