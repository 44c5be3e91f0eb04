"""All causal language models of transformers under all policies, against a definition without a cache.

Five models run in CI, all of them in `make test-all`.
"""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parent))

import cases
import definition
import tiny
from by_layer import make_for
from results import PAGE, kind_of, make_row
from transformers import DynamicCache
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from scrubjay.memory import context
from scrubjay.memory.context import PolicyCache

pytestmark = pytest.mark.requires("transformers")

CI = ("gemma3", "gpt_oss", "llama4", "falcon_h1", "gpt2")
"""Models in CI: images, learned sinks, chunks, own attention code, states, and positions of other kinds."""
PRECISION = ("llama", "gemma3_text", "qwen3", "smollm3", "falcon_h1", "gpt2")
"""Models in bfloat16, without experts: rounding would change the choice of experts."""


def marks(name):
    return pytest.mark.slow if name in CI else pytest.mark.matrix


def rows():
    """Return the rows of the page of results by name."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    return {line.split(" | ")[0][2:]: line for line in lines}


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks(name)) for name in tiny.names()])
def test_a_model_equals_the_definition_or_is_refused(name):
    outcome = cases.find_outcome(name)
    assert rows()[name] == make_row(name, outcome), "write the page again: see its first lines"
    for reason in outcome.reasons.values():
        assert "\n" not in reason
        assert "use " in reason
    if outcome.policies:
        cases.compare(name, outcome.policies)


def test_the_page_has_every_model():
    assert rows().keys() >= {*tiny.names()} >= {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES}
    assert {*cases.POLICIES, *cases.SAME_MODELS} == set(context.list_policies())
    assert cases.POLICIES.keys() >= {*cases.SAME_MODELS.values()}


@pytest.mark.parametrize("name", ["bamba", "gpt2", "gptj", "jamba", "llama", "qwen3"])
def test_policies_serve_the_same_models(name):
    def build(policy, name):
        model = tiny.make(name)
        PolicyCache(make_for(model, policy), model)

    reasons = cases.find_outcome(name).reasons
    for policy, like in cases.SAME_MODELS.items():
        is_restarted = policy == "kvzip" and name in cases.STATE_RESETTING_MODELS
        if like in reasons or is_restarted:
            with pytest.raises(ValueError, match="use "):
                build(policy, name)
        else:
            build(policy, name)


@pytest.mark.slow
def test_steps_below_time_step_min_differ_as_with_transformers_own_cache():
    """The page names this model. If transformers mends it, the page must be written again."""
    model = tiny.make("zamba2", time_step_min=0.001, time_step_floor=1e-4)
    text = cases.make_text(0)
    caches = [DynamicCache(config=model.config), PolicyCache(context.make("full"), model)]
    own, ours = (cases.read(model, cache, text, cases.STEPS) for cache in caches)
    with torch.no_grad():
        whole = model(text.ids, use_cache=False).logits
    assert cases.error(ours, own, text) < 1e-5
    assert 1e-2 < cases.error(ours, whole, text) < 0.1
    assert "zamba2" in PAGE.read_text("utf-8").partition("time_step_min")[0]


def test_kinds_of_outcomes():
    assert kind_of(cases.Outcome((), {"full": "no"})) == "none"
    assert kind_of(cases.Outcome(("full",), {"sinks": "no"})) == "some"
    assert kind_of(cases.Outcome(("full",), {})) == "all"


def test_the_definition_is_the_models_own_pass_if_nothing_is_dropped():
    """Copies at their own positions change nothing, so the definition adds no error of its own."""
    model, text = tiny.make("qwen2"), cases.make_text(cases.PADDING)
    calls = definition.attention_calls(model, text)
    with torch.no_grad():
        expected = definition.run(model, text)
    logits, is_full = definition.define(model, text, calls, lambda _: definition.view_text(text))
    assert is_full == [True, True]
    assert cases.error(logits, expected, text) < 1e-5
    everything = definition.causal_mask(text)
    reports = [everything[:, None].repeat(1, 2, 1, 1)] * 2
    for moves in (True, False):
        views = definition.view_reports(text, reports, [4, 4], moves)
        again, _ = definition.define(model, text, calls, lambda index, x=views: x[index])
        assert cases.error(again, expected, text) < 1e-5


def test_the_definition_tells_a_wrong_distance():
    """A sink that is one position too far changes the logits by far more than rounding."""
    models, text = cases.Models("qwen2"), cases.make_text(0)
    view = definition.view_stream(text, cases.BUDGET, cases.SINKS)
    exact, rounding, _ = models.define(text, lambda _: view)
    far_view = view._replace(copies=view.copies._replace(positions=(view.copies.positions - 1).clamp(min=0)))
    wrong, _, _ = models.define(text, lambda _: far_view)
    assert cases.error(wrong, exact, text) > 100 * cases.ROUNDING * rounding


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["full", "window", "sinks"])
@pytest.mark.parametrize("name", PRECISION)
def test_bfloat16_is_as_near_as_the_models_own_attention(name, policy):
    half = tiny.make(name, torch.bfloat16)
    exact_model = tiny.make(name, torch.bfloat16).double()
    try:
        PolicyCache(context.make(policy, **cases.POLICIES[policy]), half)
    except ValueError:
        assert name == "gpt2"
        return
    for padding in (0, cases.PADDING):
        text = cases.make_text(padding)
        budget = cases.LENGTH if policy == "full" else cases.BUDGET
        view = definition.view_stream(text, budget, cases.SINKS if policy == "sinks" else 0)
        calls = [definition.attention_calls(model, text) for model in (exact_model, half)]
        exact, _ = definition.define(exact_model, text, calls[0], lambda _, x=view: x)
        own, _ = definition.define(half, text, calls[1], lambda _, x=view: x)
        cache = PolicyCache(context.make(policy, **cases.POLICIES[policy]), half)
        logits = cases.read(half, cache, text, cases.BLOCKS)
        assert logits.dtype == torch.bfloat16
        difference, own_difference = (x.double() - exact for x in (logits, own))
        rows_of_text = text.mask.bool()
        assert difference[rows_of_text].square().mean() <= 1.5 * own_difference[rows_of_text].square().mean()
