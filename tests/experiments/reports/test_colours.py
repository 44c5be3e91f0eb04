"""A memory has the same color in every plot."""

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.experiments.reports.colours import assign_colors
from scrubjay.memory import list_memories


@given(st.sets(st.sampled_from(list_memories()), min_size=1))
def test_a_memory_has_its_own_colour_among_any_others(names):
    alone = {name: assign_colors([name])[name] for name in names}
    assert assign_colors(names) == alone
    assert len(set(alone.values())) == len(names)


def test_sizes_of_one_memory_are_told_apart_from_it_and_from_others():
    colors = assign_colors(["hcam, chunk size 8", "hcam, chunk size 16", "gru"])
    assert colors["hcam, chunk size 16"] == assign_colors(["hcam"])["hcam"]
    assert len(set(colors.values())) == 3


def test_those_without_a_colour_of_their_own_share_one_last():
    assert assign_colors(["b", "a", "b"]) == {"a": "#1f77b4", "b": "#ff7f0e"}
    many = assign_colors(str(number) for number in range(40))
    assert len(set(many.values())) == 15
