"""Conversations in one mean what they meant apart."""

from scrubjay.experiments.lm.conversations import generate_conversation
from scrubjay.experiments.quality.datasets.pooling import concatenate


def test_conversations_in_one_keep_what_each_question_means():
    apart = [generate_conversation("en", seed, 400) for seed in (1, 2)]
    whole = concatenate(apart)
    assert len(whole.turns) == sum(len(one.turns) for one in apart)
    questions = iter(whole.questions)
    begin = 0
    for one in apart:
        for place, turn in enumerate(one.turns):
            copy = whole.turns[begin + place]
            assert (copy.text, copy.observed) == (turn.text, turn.observed)
            if turn.replaces is not None:
                assert copy.replaces is not None
                assert whole.turns[copy.replaces].text == one.turns[turn.replaces].text
        for question in one.questions:
            copy = next(questions)
            assert (copy.text, copy.ability, copy.at) == (question.text, question.ability, question.at)
            for now, before in (
                (copy.answers, question.answers),
                (copy.outdated_answers, question.outdated_answers),
            ):
                assert {whole.turns[i].text for i in now} == {one.turns[i].text for i in before}
        begin += len(one.turns)
    assert next(questions, None) is None
