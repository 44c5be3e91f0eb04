"""Parts of sets: no conversation is in both, and what is in neither is named."""

import itertools

import pytest

from scrubjay.experiments.language.conversations import Conversation
from scrubjay.experiments.quality.sets import parts
from scrubjay.experiments.quality.sets.parts import PARTS, names_of, only, part_of
from scrubjay.experiments.words.failures import UsageError

LISTED = sorted(parts._parts())


def flat(names):
    return [*itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in names)]


@pytest.mark.parametrize("name", LISTED)
def test_nothing_is_in_both_parts_or_twice(name):
    development, test = (flat(names_of(name, part)) for part in PARTS)
    both = development + test
    assert development
    assert test
    assert len(set(both)) == len(both)


def test_people_of_realtalk_are_in_one_part():
    people = [{name for chat in names_of("REALTALK", part) for name in chat.split("_")[2:]} for part in PARTS]
    assert not set.intersection(*people)


@pytest.mark.parametrize("name", ["BFCL", "LoCoMo", "REALTALK", "BEAM-100K"])
def test_a_part_is_what_its_names_say(name):
    both = [Conversation((), (), one) for part in PARTS for one in names_of(name, part)]
    for part in PARTS:
        assert [one.name for one in only(both, name, part)] == names_of(name, part)
    with pytest.raises(UsageError, match=f"{name}: 'stranger' is in neither part"):
        only([*both, Conversation((), (), "stranger")], name, "test")


def test_a_set_that_is_not_listed_is_parted_by_its_names_alike_at_every_call():
    both = [Conversation((), (), f"q{number}") for number in range(200)]
    development, test = (only(both, "LongMemEval", part) for part in PARTS)
    assert len(development) + len(test) == 200
    assert 60 < len(development) < 140
    assert {part_of(one.name, "LongMemEval") for one in test} == {"test"}
    assert part_of("q0", "LongMemEval") == part_of("q0", "LongMemEval")


def test_a_part_without_anything_is_an_error():
    with pytest.raises(UsageError, match="nothing of its test part"):
        only([], "LongMemEval", "test")
