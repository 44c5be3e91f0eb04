"""States of parts keep their names, whatever part and pattern, and come back whole."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from scrubjay.memory.contract.nested import named, part_of

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
        whole |= named(own, **affixes[part])
    assert len(whole) == 1 + sum(map(len, parts.values()))
    for part, own in parts.items():
        found = part_of(whole, **affixes[part])
        assert list(found) == list(own)
        assert all(found[name] is own[name] for name in own)


def test_names_are_those_of_older_checkpoints():
    state = {"keys": torch.zeros(1), "a.b": torch.ones(1)}
    assert list(named(state, prefix="actor/")) == ["actor/keys", "actor/a.b"]
    assert list(named(state, suffix="_11")) == ["keys_11", "a.b_11"]
    assert part_of(named(state, suffix="_11"), suffix="_1") == {}
    assert list(part_of(named(named(state, prefix="0."), prefix="0."), prefix="0.")) == ["0.keys", "0.a.b"]
