"""Prompts: the same names and values in both languages, and every text used with its values."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.language import prompts as wording
from scrubjay.agents.language.address import RequestError
from scrubjay.agents.language.prompts import LANGUAGES, LocalizedError, Phrase, load_prompts
from scrubjay.agents.tools import ToolUnavailable
from scrubjay.agents.tools.base import UnreachableError

AGENTS = Path(wording.__file__).parents[2]


CLASSES = {"Phrase", "ToolArgumentError", "RequestError", "UnreachableError", "PlanError"}


def test_every_text_is_used_and_given_the_values_it_asks_for():
    english = load_prompts("en")
    string_constants: set[str] = set()
    count = 0
    for path in AGENTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                string_constants.add(node.value)
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            name = node.args[0]
            if node.func.id in CLASSES and isinstance(name, ast.Constant):
                value_names = {keyword.arg for keyword in node.keywords} - {"offline"}
                assert value_names == english.placeholders(str(name.value)), (path.name, node.lineno)
                count += 1
    assert count > 60
    file = tomllib.loads((Path(wording.__file__).parent / "tools_en.toml").read_text("utf-8"))
    assert {name for name in file if not name.startswith("fault_")} <= string_constants


def test_an_error_is_english_and_its_phrase_any_language():
    error = UnreachableError(
        "web_unreachable", host="a.example", failure=Phrase("web_no_answer"), offline=False
    )
    assert isinstance(error, OSError)
    assert isinstance(error, LocalizedError)
    assert str(error) == "a.example cannot be reached (none of the host's addresses answered in time)"
    assert error.phrase.render(load_prompts("zh")) == "无法连接 a.example（没有地址及时回应）"
    assert not error.offline
    assert isinstance(RequestError("web_password"), ValueError)
    assert str(ToolUnavailable("t", "c", "h")) == "t is unavailable (offline): c. h"


def test_both_languages_say_the_same_things_with_the_same_values():
    english, *others = (load_prompts(language) for language in LANGUAGES)
    for other in others:
        assert other.names == english.names
        assert len(other.weekdays) == len(english.weekdays) == 7
        for name in english.names:
            assert other.placeholders(name) == english.placeholders(name), name


@given(st.text())
def test_values_are_never_read_as_templates(text):
    assert (
        load_prompts("en").say("goal", question=f"$reason ${{x}} {text}")
        == f"QUESTION: $reason ${{x}} {text}"
    )
