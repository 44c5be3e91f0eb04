"""What models are told: the same in both languages, and every text with its values."""

from __future__ import annotations

import ast
import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from scrubjay.agents.language import prompts as wording
from scrubjay.agents.language.address import Refused
from scrubjay.agents.language.prompts import LANGUAGES, Phrase, Told, load_prompts
from scrubjay.agents.tools import ToolUnavailable
from scrubjay.agents.tools.base import Unreachable

AGENTS = Path(wording.__file__).parents[2]


KINDS = {"Phrase", "Mistaken", "Refused", "Unreachable", "PlanError"}


def test_every_text_is_used_and_given_the_values_it_asks_for():
    english = load_prompts("en")
    written: set[str] = set()
    checked = 0
    for path in AGENTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                written.add(node.value)
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args):
                continue
            name = node.args[0]
            if node.func.id in KINDS and isinstance(name, ast.Constant):
                given = {keyword.arg for keyword in node.keywords} - {"offline"}
                assert given == english.asks_for(str(name.value)), (path.name, node.lineno)
                checked += 1
    assert checked > 60
    file = tomllib.loads((Path(wording.__file__).parent / "tools_en.toml").read_text("utf-8"))
    assert {name for name in file if not name.startswith("fault_")} <= written


def test_an_error_is_english_and_its_phrase_any_language():
    error = Unreachable("web_unreachable", host="a.example", failure=Phrase("web_no_answer"), offline=False)
    assert isinstance(error, OSError)
    assert isinstance(error, Told)
    assert str(error) == "a.example cannot be reached (no address answered in time)"
    assert error.phrase.said(load_prompts("zh")) == "无法连接 a.example（没有地址及时回应）"
    assert not error.offline
    assert isinstance(Refused("web_password"), ValueError)
    assert str(ToolUnavailable("t", "c", "h")) == "t is unavailable (offline): c. h"


def test_both_languages_say_the_same_things_with_the_same_values():
    english, *others = (load_prompts(language) for language in LANGUAGES)
    for other in others:
        assert other.names == english.names
        assert len(other.weekdays) == len(english.weekdays) == 7
        for name in english.names:
            assert other.asks_for(name) == english.asks_for(name), name


@given(st.text())
def test_values_are_never_read_as_templates(text):
    assert (
        load_prompts("en").say("goal", question=f"$reason ${{x}} {text}")
        == f"QUESTION: $reason ${{x}} {text}"
    )
