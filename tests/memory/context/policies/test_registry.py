"""Registry of cache policies: names, presets, and the policies that keep all tokens."""

import pytest

from scrubjay.memory import context
from scrubjay.memory.context import registry
from scrubjay.memory.context.policies.chunks import ChunksPolicy
from scrubjay.memory.context.policies.full import FullPolicy


def test_each_name_makes_a_policy_with_this_name():
    names = context.list_policies()
    assert names == sorted(names)
    assert all(context.name_of(context.make(name)) == name for name in names)


def test_the_policies_that_keep_all_tokens():
    complete = registry.list_complete()
    assert {"chunks", "full", "recycled"} <= set(complete) < set(context.list_policies())
    assert all(not context.make(name).drops for name in complete)


def test_a_preset_has_its_own_name():
    assert {"hip", "longheads", "quest"} == {
        name
        for name in context.list_policies()
        if isinstance(context.make(name), ChunksPolicy) and name != "chunks"
    }


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ValueError, match="policy 'sinks' is already registered as SinksPolicy"):
        context.register("sinks", FullPolicy)


def test_an_unknown_name_is_refused_with_the_closest_one():
    with pytest.raises(ValueError, match="did you mean 'snapkv'"):
        context.make("snapkw")
