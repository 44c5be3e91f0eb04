"""A memory has one colour, whoever else is drawn."""

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.reports.colours import colours
from scrubjay.memory import list_memories


@given(st.sets(st.sampled_from(list_memories()), min_size=1))
def test_a_memory_has_its_own_colour_among_any_others(names):
    alone = {name: colours([name])[name] for name in names}
    assert colours(names) == alone
    assert len(set(alone.values())) == len(names)


def test_sizes_of_one_memory_are_told_apart_from_it_and_from_others():
    found = colours(["hcam, chunk size 8", "hcam, chunk size 16", "gru"])
    assert found["hcam, chunk size 16"] == colours(["hcam"])["hcam"]
    assert len(set(found.values())) == 3


def test_those_without_a_colour_of_their_own_share_one_last():
    assert colours(["b", "a", "b"]) == {"a": "#1f77b4", "b": "#ff7f0e"}
    many = colours(str(number) for number in range(40))
    assert len(set(many.values())) == 15
