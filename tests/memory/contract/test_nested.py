"""Entries of parts keep their names through `add_affixes` and `select_part`."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.contract.base import add_affixes, select_part

WORDS = st.text("ab01", min_size=1, max_size=3)
PATTERNS = st.sampled_from([("{}.", ""), ("{}/", ""), ("block_{}.", ""), ("", "_{}")])


@given(
    parts=st.dictionaries(st.integers(0, 120), st.dictionaries(WORDS, st.integers(), max_size=3), max_size=4),
    pattern=PATTERNS,
)
def test_parts_come_back_out_of_the_whole(parts, pattern):
    prefix, suffix = pattern
    affixes = {part: {"prefix": prefix.format(part), "suffix": suffix.format(part)} for part in parts}
    parts = {part: {name: torch.tensor(v % 97) for name, v in own.items()} for part, own in parts.items()}
    whole = {"time": torch.tensor(0)}
    for part, own in parts.items():
        whole |= add_affixes(own, **affixes[part])
    assert len(whole) == 1 + sum(map(len, parts.values()))
    for part, own in parts.items():
        part_state = select_part(whole, **affixes[part])
        assert list(part_state) == list(own)
        assert all(part_state[name] is own[name] for name in own)


def test_names_are_those_of_older_checkpoints():
    state = {"keys": torch.zeros(1), "a.b": torch.ones(1)}
    assert list(add_affixes(state, prefix="actor/")) == ["actor/keys", "actor/a.b"]
    assert list(add_affixes(state, suffix="_11")) == ["keys_11", "a.b_11"]
    assert select_part(add_affixes(state, suffix="_11"), suffix="_1") == {}
    assert list(select_part(add_affixes(add_affixes(state, prefix="0."), prefix="0."), prefix="0.")) == [
        "0.keys",
        "0.a.b",
    ]
