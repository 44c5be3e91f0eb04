"""Tests of reading in blocks, or at once if a policy selects keys at the end of a prompt."""

import pytest
import torch

from scrubjay.experiments.lm.reading import read
from scrubjay.memory import context

pytestmark = pytest.mark.requires("transformers")


@pytest.mark.parametrize("name", ["snapkv", "recycled", "chunks"])
def test_a_prompt_is_cut_only_where_its_end_does_not_choose(name, model):
    language, _ = model
    policy = context.make(name, budget=80)
    calls = []
    handle = language.register_forward_pre_hook(
        lambda _, args, __: calls.append(args[0].shape[1]), with_kwargs=True
    )
    with handle:
        list(read(language, context.PolicyCache(policy, language), torch.arange(90), 32))
    assert calls == ([32, 32, 26] if name == "chunks" else [90])
