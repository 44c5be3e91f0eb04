"""Parts of sets: no conversation is in both, and what is in neither is named."""

import itertools

import pytest

from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.lm.conversations import Conversation
from scrubjay.experiments.quality.datasets import splits
from scrubjay.experiments.quality.datasets.splits import PARTS, find_part, part_names, select_part

LISTED = sorted(splits._parts())


def flat(names):
    return [*itertools.chain.from_iterable(one if isinstance(one, list) else [one] for one in names)]


@pytest.mark.parametrize("name", LISTED)
def test_nothing_is_in_both_parts_or_twice(name):
    development, test = (flat(part_names(name, part)) for part in PARTS)
    both = development + test
    assert development
    assert test
    assert len(set(both)) == len(both)


def test_people_of_realtalk_are_in_one_part():
    people = [
        {name for chat in part_names("REALTALK", part) for name in chat.split("_")[2:]} for part in PARTS
    ]
    assert not set.intersection(*people)


@pytest.mark.parametrize("name", ["BFCL", "LoCoMo", "REALTALK", "BEAM-100K"])
def test_a_part_is_what_its_names_say(name):
    both = [Conversation((), (), one) for part in PARTS for one in part_names(name, part)]
    for part in PARTS:
        assert [one.name for one in select_part(both, name, part)] == part_names(name, part)
    with pytest.raises(UsageError, match=f"{name}: 'stranger' is in neither part"):
        select_part([*both, Conversation((), (), "stranger")], name, "test")


def test_a_set_that_is_not_listed_is_parted_by_its_names_alike_at_every_call():
    both = [Conversation((), (), f"q{number}") for number in range(200)]
    development, test = (select_part(both, "LongMemEval", part) for part in PARTS)
    assert len(development) + len(test) == 200
    assert 60 < len(development) < 140
    assert {find_part(one.name, "LongMemEval") for one in test} == {"test"}
    assert find_part("q0", "LongMemEval") == find_part("q0", "LongMemEval")


def test_a_part_without_anything_is_an_error():
    with pytest.raises(UsageError, match="no conversations of the test part"):
        select_part([], "LongMemEval", "test")
