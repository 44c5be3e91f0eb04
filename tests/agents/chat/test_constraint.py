"""Grammar constraints with a random model."""

from __future__ import annotations

import json
import re

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.agents import LocalChatModel
from scrubjay.agents.chat.constraint import Constraint, json_grammar
from scrubjay.agents.chat.language_model import LoadedModel

from .talking import adder, weather

pytestmark = pytest.mark.requires("transformers", "llguidance")


@pytest.mark.parametrize("choice", ["any", "adder"])
@pytest.mark.parametrize("temperature", [0, 2])
def test_a_call_is_valid_whatever_the_model_thinks(chat, choice, temperature):
    model = chat(temperature=temperature, max_tokens=140, seed=0).bind_tools(
        [weather, adder], tool_choice=choice
    )
    answer = model.invoke("Hello")
    (call,) = answer.tool_calls
    assert call["name"] in (["adder"] if choice == "adder" else ["weather", "adder"])
    assert not answer.invalid_tool_calls
    assert answer.text == ""
    {"weather": weather, "adder": adder}[call["name"]].invoke(call["args"])
    chunks = list(model.stream("Hello"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole = whole + chunk
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [(call["name"], call["args"])]


SCHEMAS = st.recursive(
    st.sampled_from(
        [
            {"type": "string"},
            {"type": "string", "minLength": 3, "maxLength": 5},
            {"type": "string", "pattern": "^[a-c]{2}-[0-9]+$"},
            {"type": "integer"},
            {"type": "integer", "minimum": 12, "maximum": 99},
            {"type": "number"},
            {"type": "boolean"},
            {"type": "null"},
            {"enum": ["sunny", "rainy", 3]},
            {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        ]
    ),
    lambda inner: st.one_of(
        st.dictionaries(st.sampled_from(["a", "name", "é", 'q"']), inner, max_size=3).flatmap(
            lambda properties: st.sets(st.sampled_from(sorted(properties) or ["a"])).map(
                lambda required_names: {
                    "type": "object",
                    "properties": properties,
                    "required": sorted(required_names & set(properties)),
                }
            )
        ),
        st.tuples(inner, st.integers(0, 2)).map(
            lambda array: {"type": "array", "items": array[0], "minItems": array[1], "maxItems": 3}
        ),
    ),
    max_leaves=4,
)


@given(schema=SCHEMAS, spare=st.integers(0, 30), seed=st.integers(0, 99))
@settings(deadline=None, max_examples=25)
def test_json_is_valid_at_any_limit_that_admits_it(tiny_chat, schema, spare, seed):
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    model = LocalChatModel(model=tiny_chat, temperature=1, seed=seed, max_conversations=0)
    limit = 1
    try:
        answer = model.invoke("Hello", response_format=form, max_tokens=limit)
    except ValueError as error:
        limit = int(re.findall(r"has (\d+) tokens", str(error))[0]) + spare
        answer = model.invoke("Hello", response_format=form, max_tokens=limit)
    jsonschema.validate(json.loads(answer.text), schema)
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] <= limit


@pytest.fixture(scope="module")
def vocabulary(tiny_chat):
    model, tokenizer = tiny_chat
    return LoadedModel(model, tokenizer, "tiny").vocabulary


def test_only_tokens_that_keep_the_answer_valid_may_be_chosen(tiny_chat, vocabulary):
    _, tokenizer = tiny_chat
    constraint = Constraint(vocabulary, json_grammar({"enum": ["ab", "ac"]}))
    forced_tokens = constraint.forced_tokens()
    assert tokenizer.decode(forced_tokens) == '"a'
    constraint.accept(forced_tokens)
    allowed_tokens = constraint.restrict(torch.zeros(len(tokenizer))).isfinite().nonzero().flatten().tolist()
    assert {tokenizer.decode([token]) for token in allowed_tokens} == {"b", "c"}
    one, other = (constraint.copy_after(token) for token in allowed_tokens)
    assert tokenizer.decode(one.shortest_end()) == tokenizer.decode(other.shortest_end()) == '"'
    # The original constraint is not advanced by its copies.
    assert len(constraint.shortest_end() or ()) == 2
    assert not constraint.is_finished
    with pytest.raises(ValueError, match="cannot constrain the answer"):
        constraint.accept(tokenizer("d").input_ids)


@given(schema=SCHEMAS)
@settings(deadline=None, max_examples=30)
def test_the_shortest_end_is_valid_by_itself(tiny_chat, vocabulary, schema):
    _, tokenizer = tiny_chat
    constraint = Constraint(vocabulary, json_grammar(schema))
    end = constraint.shortest_end()
    assert end is not None
    jsonschema.validate(json.loads(tokenizer.decode(end)), schema)
    constraint.accept(end)
    assert constraint.shortest_end() == []


def test_a_schema_that_contradicts_itself_is_refused(vocabulary):
    with pytest.raises(ValueError, match="cannot constrain the answer"):
        Constraint(vocabulary, json_grammar({"type": "integer", "minimum": 5, "maximum": 4}))
