"""Templates of prompts: as many as are asked for, all different, in two languages alike."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.lm.tuning import Task, generate_templates


def task(done=()):
    return Task(
        "Mei", "", "Why?", ({"name": "look_up", "parameters": {"properties": {"topic": {}}}},), 5, done
    )


@given(st.integers(0, 2**32), st.integers(1, 40), st.sampled_from(["en", "zh"]))
@settings(max_examples=20, deadline=None)
def test_templates_are_all_different_and_the_same_again(seed, count, language):
    templates = generate_templates(count, language, seed)
    assert templates == generate_templates(count, language, seed)
    assert len({template.id for template in templates}) == len(templates) == count
    assert {template.form for template in templates[:4]} <= {
        "KuaiAgent",
        "AutoGPT",
        "ToolLlama",
        "ModelScope",
    }
    assert len({template.form for template in templates}) == min(count, 4)


def test_there_are_thousands_of_templates_and_both_languages_have_the_same_parts():
    for language in ("en", "zh"):
        assert len(generate_templates(3000, language)) == 3000
    english, chinese = generate_templates(1, "en")[0], generate_templates(1, "zh")[0]
    assert dict(english.wording).keys() == dict(chinese.wording).keys()
    assert not re.search("[\u4e00-\u9fff]", english.to_plan(task()))
    with pytest.raises(ValueError, match="'fr'"):
        generate_templates(1, "fr")
    with pytest.raises(ValueError, match="count=0"):
        generate_templates(0, "en")
