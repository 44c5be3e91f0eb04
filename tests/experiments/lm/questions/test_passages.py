"""Tests of passages: facts that stand in the text once, one text for all questions, the split of a prompt."""

import pytest
import torch

from scrubjay.experiments.lm.questions.passages import FACTS, KINDS, PASSAGES, make_passage, split_prompt
from scrubjay.experiments.lm.reading import tokenize

pytestmark = pytest.mark.requires("wonderwords")
SENTENCES = [f"It was the day number {number} of a long year." for number in range(50)]


def count(example):
    return len(example.prompt.split()) + example.new_tokens


def test_all_questions_have_one_text_with_all_answers():
    passage = make_passage(FACTS, 400, count, SENTENCES, 1)
    assert [kind for kind, _ in passage.questions] == [kind for kind in KINDS[:5] for _ in range(2)]
    assert len({example.question for _, example in passage.questions}) == len(passage.questions)
    assert len({example.references for _, example in passage.questions}) == len(passage.questions)
    (text,) = {(example.instruction, example.context) for _, example in passage.questions}
    for _, example in passage.questions:
        (value,) = example.references
        assert text[1].count(f"{example.answer_prefix} {value}") == 1
        assert value not in example.question + example.answer_prefix
    most = max(count(example) for _, example in passage.questions)
    assert 360 < most <= 400


def test_equal_seeds_give_equal_passages_and_others_give_others():
    first, again, other = (make_passage(FACTS, 300, count, SENTENCES, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize("kind", PASSAGES[1:])
def test_tasks_of_ruler_have_one_question(kind):
    ((name, example),) = make_passage(kind, 900, count, SENTENCES, 0).questions
    assert name == kind
    assert all(reference in example.context for reference in example.references)


def test_an_unknown_passage_and_a_short_length_are_named():
    with pytest.raises(ValueError, match="unknown passage 'novel'; choose from facts"):
        make_passage("novel", 300, count, SENTENCES, 0)
    with pytest.raises(ValueError, match="length=20: must be at least"):
        make_passage(FACTS, 20, count, SENTENCES, 0)


@pytest.mark.requires("transformers")
def test_a_prompt_is_split_before_its_question(model):
    tokenizer = model[1]
    (_, example), *_ = make_passage(FACTS, 200, count, SENTENCES, 0).questions
    text, question = split_prompt(tokenizer, example)
    assert torch.equal(torch.cat([text, question]), tokenize(tokenizer, example.render(tokenizer)))
    assert len(question) == len(tokenizer(f"{example.question} {example.answer_prefix}")["input_ids"])
