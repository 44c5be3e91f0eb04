"""The check of names and docstrings finds private words and accepts the field's words."""

import ast
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent


def load(name):
    spec = importlib.util.spec_from_file_location(name, TESTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def plain_words():
    return load("plain_words")


@pytest.mark.parametrize("name", ["told", "_kept", "Seen", "asked", "Judged", "with_", "recalled"])
def test_a_bare_participle_is_found(plain_words, name):
    assert plain_words.is_participle(name) == (name != "with_")


@pytest.mark.parametrize("name", ["seed", "truncated", "masked", "stored_keys", "read", "KEPT", "state"])
def test_nouns_verbs_and_terms_are_accepted(plain_words, name):
    assert not plain_words.is_participle(name)


def test_every_kind_of_name_is_checked(plain_words):
    source = """
class Told(Base):
    kept: int

    def asked(self, seen, *given):
        self.found = seen
        for said in given:
            pass

    def of_row(self): ...
"""
    names = {name for _, _, name in plain_words.names(ast.parse(source))}
    assert {"Told", "kept", "asked", "seen", "given", "found", "said", "of_row"} <= names


def test_docstrings_of_fields_and_constants_are_checked(plain_words):
    source = '''
"""What a module is."""
LIMIT = 3
"""How much."""

class A:
    """Of one kind."""

    x: int
    """Whether."""
    y = "Where a plain string is no docstring."
'''
    texts = [text for _, text in plain_words.docstrings(ast.parse(source))]
    assert texts == ["What a module is.", "How much.", "Of one kind.", "Whether."]
    assert all(plain_words.OPENING.match(text) for text in texts)


def test_a_bad_file_fails(tmp_path, plain_words, monkeypatch, capsys):
    (tmp_path / "bad.py").write_text('"""What it is."""\ntold = 1\n')
    monkeypatch.setattr(plain_words, "ROOT", tmp_path)
    monkeypatch.setattr(sys, "argv", ["plain_words", "bad.py"])
    assert plain_words.main() == 1
    out = capsys.readouterr().out
    assert "bad.py:2: variable told" in out
    assert "bad.py:1: What it is." in out


@pytest.mark.matrix
def test_a_round_of_samples_is_reproducible():
    command = [sys.executable, str(TESTS / "sample_texts.py"), "7"]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)
    )
    assert first == second
    assert first.count("\n## ") >= 100


def test_pages_have_short_sentences_and_examples(plain_words):
    bad, done = plain_words.check_pages()
    assert not bad
    assert not done, "remove these exceptions from UNFINISHED"


def test_headings_tables_and_code_are_no_prose(plain_words):
    page = "---\na: b\n---\n# One, two\n\n| a, b, c | d |\n\n```sh\na, b, c\n```\n\n- One `two`.\n- Three.\n"
    assert plain_words.prose(page).split() == ["-", "One", "two.", "-", "Three."]


@pytest.mark.parametrize(
    ("page", "rule"),
    [
        ("word " * 36, "sentences"),
        ("One two three four, five. " * 30, "commas"),
        ("One two three. " * 90, "words"),
        ("```sh\na\n```\n\n```text\nb\n```\n", "examples"),
    ],
)
def test_a_page_that_breaks_a_rule_is_found(plain_words, page, rule):
    assert rule in plain_words.check_page("docs/guide/train.md", page)
    assert (rule in plain_words.check_page("docs/guide/index.md", page)) is (rule in ("sentences", "commas"))


def test_a_good_page_passes(plain_words):
    example = "```python\nprint(1)\n```\n\n```text\n1\n```\n\n"
    page = "One two three four five. " * 100 + f"\n\n{example}Next, one.\n\n{example}"
    assert not plain_words.check_page("docs/guide/train.md", page)
