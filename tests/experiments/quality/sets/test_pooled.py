"""Conversations in one mean what they meant apart."""

from scrubjay.experiments.language.conversations import converse
from scrubjay.experiments.quality.sets.pooled import in_one


def test_conversations_in_one_keep_what_each_question_means():
    apart = [converse("en", seed, 400) for seed in (1, 2)]
    whole = in_one(apart)
    assert len(whole.turns) == sum(len(one.turns) for one in apart)
    questions = iter(whole.questions)
    begin = 0
    for one in apart:
        for place, turn in enumerate(one.turns):
            moved = whole.turns[begin + place]
            assert (moved.text, moved.observed) == (turn.text, turn.observed)
            if turn.replaces is not None:
                assert moved.replaces is not None
                assert whole.turns[moved.replaces].text == one.turns[turn.replaces].text
        for question in one.questions:
            moved = next(questions)
            assert (moved.text, moved.ability, moved.at) == (question.text, question.ability, question.at)
            for now, before in ((moved.answers, question.answers), (moved.outdated, question.outdated)):
                assert {whole.turns[i].text for i in now} == {one.turns[i].text for i in before}
        begin += len(one.turns)
    assert next(questions, None) is None
