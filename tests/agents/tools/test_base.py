"""Recorded results, and messages about invalid arguments."""

import json
import os
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ConfigDict, ValidationError, create_model

from scrubjay.agents.language.prompts import load_prompts
from scrubjay.agents.tools import Replay, WebConfig, make_tools
from scrubjay.agents.tools.base import ToolResult, describe_faults

from .asking import call, clock

DAY = date(2026, 11, 25)


@settings(max_examples=30)
@given(
    st.text(max_size=20),
    st.dictionaries(st.text("ab", max_size=2), st.integers() | st.text("鸦\n\"'", max_size=3)),
)
def test_what_is_recorded_is_found_again(tmp_path_factory, text, arguments):
    path = tmp_path_factory.mktemp("replay") / "answers.jsonl"
    Replay(path).add("browse", "en", arguments, ToolResult(text, ("https://a",), {"n": [1]}), DAY)
    again = Replay(path)
    assert again.find("browse", "en", dict(reversed(arguments.items()))) == ToolResult(
        text, ("https://a",), {"n": [1]}, "2026-11-25"
    )
    assert again.find("browse", "zh", arguments) is None
    assert again.find("wikipedia", "en", arguments) is None


def test_the_last_of_several_answers_holds(tmp_path):
    replay = Replay(tmp_path / "answers.jsonl")
    for text in ("old", "new"):
        replay.add("browse", "en", {}, ToolResult(text), DAY)
    for reader in (replay, Replay(replay.path)):
        assert len(reader) == 1
        assert (answer := reader.find("browse", "en", {}))
        assert answer.text == "new"


def test_many_writers_share_a_file(tmp_path):
    path = tmp_path / "answers.jsonl"
    writers = [Replay(path) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for number in range(100):
            pool.submit(writers[number % 4].add, "browse", "en", {"n": number}, ToolResult("x" * 5000), DAY)
    assert len(Replay(path)) == 100


def test_a_line_that_was_torn_costs_only_itself(tmp_path):
    path = tmp_path / "answers.jsonl"
    Replay(path).add("browse", "en", {"n": 1}, ToolResult("one"), DAY)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match="line 2: skipped"):
        replay = Replay(path)
    replay.add("browse", "en", {"n": 2}, ToolResult("two"), DAY)
    with pytest.warns(UserWarning, match="line 2: skipped"):
        assert len(Replay(path)) == 2


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "a field has another type"),
        ("{}", r"it lacks '\w+'"),
        ("null", "a field has another type"),
        ('{"tool": "a"}', r"it lacks '\w+'"),
        (json.dumps({"tool": "a", "language": "en"}), r"it lacks '\w+'"),
        ("[" * 100_000, "it is nested too deeply"),
        ('{"tool": ' * 100_000, "it is nested too deeply"),
        ("{", "Expecting property name .*"),
    ],
)
def test_a_line_of_something_else_is_skipped(tmp_path, line, reason):
    path = tmp_path / "answers.jsonl"
    path.write_text(line + "\n")
    with pytest.warns(UserWarning, match=rf"line 1: skipped, not a recorded answer \({reason}\)"):
        assert len(Replay(path)) == 0


def test_recorded_answers_are_a_regular_file_of_limited_size(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a regular file; give a file of recorded answers"):
        Replay(tmp_path / "pipe")
    (tmp_path / "huge").touch()
    os.truncate(tmp_path / "huge", 2**40)
    with pytest.raises(ValueError, match="huge has 1,099,511,627,776 bytes: the limit is 268,435,456"):
        Replay(tmp_path / "huge")


def test_a_line_of_other_bytes_is_skipped(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_bytes(b"\0\0\0{\xff\xff\xff\xff\n")
    with pytest.warns(UserWarning, match=r"line 1: skipped, not a recorded answer \(it is not UTF-8\)"):
        assert len(Replay(path)) == 0


def test_answers_are_recorded_and_given_again_without_network(tmp_path, serve):
    site = serve({"/": ("text/plain", b"Jays cache food.")})
    path = tmp_path / "deep" / "answers.jsonl"
    web = WebConfig(allow_private=True)
    (live,) = make_tools(["browse"], clock=clock, replay=path, web=web)
    first = call(live, url=site.url)
    assert first.artifact["recorded"] is None
    site.stop()
    for tools in (
        make_tools(["browse"], replay=path, web=web),
        make_tools(["browse"], replay=Replay(path), offline=True),
    ):
        again = call(tools[0], url=site.url)
        assert again.content == f"[recorded on 2026-11-25] {first.content}"
        assert again.artifact == first.artifact | {"recorded": "2026-11-25"}
    (chinese,) = make_tools(["browse"], replay=path, offline=True, language="zh")
    assert call(chinese, url=site.url).status == "error"  # recorded in another language
    assert call(tools[0], url=site.url + "other").status == "error"
    assert site.paths == ["/"]


def test_english_words_of_faults_are_pydantic_s():
    kinds: dict[str, Any] = {
        "s": str, "i": int, "f": float, "b": bool, "l": list, "d": dict, "w": Literal["solar", "lunar"],
    }  # fmt: skip
    fields: dict[str, Any] = {name: (kind, ...) for name, kind in kinds.items()}
    schema = create_model("schema", __config__=ConfigDict(extra="forbid"), **fields)
    wrong = [dict.fromkeys([*kinds, "more"], value) for value in (None, "?", 1.5, [])]
    names = set()
    for arguments in [{}, *wrong]:
        with pytest.raises(ValidationError) as raises:
            schema(**arguments)
        faults = raises.value.errors()
        names |= {f"fault_{fault['type']}" for fault in faults}
        plain = "; ".join(f"{fault['loc'][0]}: {fault['msg']}" for fault in faults)
        assert describe_faults(raises.value, load_prompts("en")) == plain
        assert not re.search("Input|valid", describe_faults(raises.value, load_prompts("zh")))
    assert names == {name for name in load_prompts("en").names if name.startswith("fault_")}
