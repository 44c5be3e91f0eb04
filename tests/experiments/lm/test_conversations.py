import pytest

from scrubjay.experiments.lm.conversations import ABILITIES, LANGUAGES, generate_conversation


@pytest.mark.parametrize("language", LANGUAGES)
def test_questions_know_the_turns_that_answer_them(language):
    conversation = generate_conversation(language, seed=7)
    assert conversation == generate_conversation(language, seed=7) != generate_conversation(language, seed=8)
    turns = conversation.turns
    assert [turn.observed for turn in turns] == sorted(turn.observed for turn in turns)
    assert {question.ability for question in conversation.questions} == set(ABILITIES)
    replaced_turns = {turn.replaces for turn in turns} - {None}
    for question in conversation.questions:
        assert question.answers <= set(range(len(turns)))
        if question.ability == "updated":
            (newest,) = question.answers
            assert newest not in replaced_turns
            assert all(place < newest and place in replaced_turns for place in question.outdated_answers)
        if question.ability == "past":
            (place,) = question.answers
            (end,) = [turn.observed for turn in turns if turn.replaces == place]
            assert question.at is not None
            assert turns[place].observed < question.at < end
        if question.ability == "reply":
            (place,) = question.answers
            assert turns[place].observed - turns[place - 1].observed == turns[1].observed - turns[0].observed
        if question.ability in ("stated", "paraphrased", "dated"):
            (place,) = question.answers
            assert any(name in turns[place].text and name in question.text for name in _names(language))


def _names(language):
    from scrubjay.experiments.lm.conversations import _wording

    return _wording()[language]["people"]


def test_wrong_input_is_named():
    with pytest.raises(ValueError, match="choose from en"):
        generate_conversation("fr", 0)
    with pytest.raises(ValueError, match="people=21"):
        generate_conversation("en", 0, 1000, 21)
    with pytest.raises(ValueError, match="turns=50: must be at least"):
        generate_conversation("en", 0, 50)
