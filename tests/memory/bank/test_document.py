"""Splitting of documents into sections and passages, which are exact excerpts."""

import itertools
import random
import re

import pytest

from scrubjay.memory.bank import document
from scrubjay.memory.bank.document import split_document

from ... import texts

CODE = '''# Loops. Nested ones.
import os

class Walker:
    """Walks. Then stops."""

    def walk(self, depth=0):
        for name in os.listdir("."):
            if name.endswith(".py"):
                # Print it. Indented by depth.
                print("  " * depth + name)
\treturn None
# The end
walk()
'''
TABLE = """## Prices

| item | price. in EUR |
| ---- | ------------- |
| tea  | 3.  Cheap. |
|      | 4     |

```sh
# no heading
make   all
```

Some text. More text
is on the next line.

# Empty
### Deep
  * a list
      1. with levels
"""
POEM = """The fog comes
on little cat feet.

   It sits looking
      over harbor and city
on silent haunches
and then moves on.
"""
DOCUMENTS = {
    "code": CODE,
    "table": TABLE,
    "poem": POEM,
    "Chinese": "# 狗\n\n狗会叫。它们跑得很快。\n  猫不会。\n",
    "prose": "Intro here.\n\n# Cats\n\nCats purr. "
    + "They sleep all day. " * 60
    + "\n\n# Dogs\n\nDogs bark.",
}
LINE_ENDS = {"LF": "\n", "CRLF": "\r\n", "CR": "\r"}


def check_excerpts(text, sections, passage_length):
    """Check that the passages are excerpts of `text` in order, and that only white space is left out."""
    place = 0
    for passage in itertools.chain.from_iterable(passages for _, passages in sections):
        start = text.index(passage, place)
        assert not text[place:start].strip()
        # A passage that starts a line includes the indentation of the line, if there is room for it.
        _, line_end, indentation = text[place:start].rpartition("\n")
        assert not (line_end and indentation) or len(indentation) >= passage_length
        assert passage.strip()
        assert len(passage) <= passage_length
        place = start + len(passage)
    assert not text[place:].strip()


@pytest.mark.parametrize("line_end", LINE_ENDS.values(), ids=LINE_ENDS)
@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_passages_are_excerpts_that_lose_only_white_space_between_them(text, line_end):
    for passage_length in (1, 2, 7, 20, 40, 100, 600, 10**9):
        sections = split_document(text.replace("\n", line_end), passage_length)
        check_excerpts(text, sections, passage_length)


@pytest.mark.parametrize("text", [CODE, TABLE, POEM])
def test_a_document_in_a_bank_keeps_its_lines(bank, text):
    ids = bank.add_document(text, passage_length=150)
    lines = "\n".join(bank.get(id).text for id in ids).split("\n")
    assert [line for line in lines if line.strip()] == [line for line in text.split("\n") if line.strip()]


@pytest.mark.one_in(4)
@pytest.mark.parametrize("unit", texts.UNITS.values(), ids=texts.UNITS)
def test_no_text_of_others_breaks_the_law(unit):
    generator = random.Random(unit)
    pieces = [
        unit,
        unit[:1],
        "a b",
        "\n",
        "\n\n",
        "  ",
        "# ",
        "```",
        "~~~~",
        ". ",
        "。",
        "|",
        "---",
        "\u2028",
    ]
    for _ in range(300):
        text = "".join(generator.choices(pieces, k=generator.randrange(40)))
        plain = text.replace("\r\n", "\n").replace("\r", "\n")
        for passage_length in (1, 5, 30):
            sections = split_document(text, passage_length)
            if sections:
                check_excerpts(plain, sections, passage_length)
            else:
                headings = [line for line in plain.split("\n") if line.strip()]
                assert all(re.match(r"#{1,6}\s|-{3,}", line) or "---" in plain for line in headings)


def test_sections_start_at_headings_outside_code(bank):
    assert [heading for heading, _ in split_document(TABLE)] == ["Prices", "Deep"]
    assert [heading for heading, _ in split_document(DOCUMENTS["prose"])] == ["", "Cats", "Dogs"]
    assert [heading for heading, _ in split_document("Title\n=====\n\nText\n\nSub\n---\n\nMore")] == [
        "Title",
        "Sub",
    ]
    for code in ("```\n# a\n```", "~~~ py\n# a\n```\n# b\n~~~", "````\n```\n# a\n````", "   ```\n# open"):
        assert [heading for heading, _ in split_document(f"x\n\n{code}")] == [""]
    assert [heading for heading, _ in split_document("```code``` inline\n\n# Real\n\ntext")] == ["", "Real"]
    assert split_document("text\n\n# Last")[-1] == ("Last", ["# Last"])
    ids = bank.add_document("# Cats\n\nCats purr.\n\n# Dogs\n\nDogs bark.", source="zoo")
    assert [(bank.get(id).text, bank.get(id).provenance) for id in ids] == [
        (f"# {name}\n\n{name} {verb}.", {"source": "zoo", "section": name})
        for name, verb in (("Cats", "purr"), ("Dogs", "bark"))
    ]
    for text in (" \n", "# Only\n\n## headings\n"):
        with pytest.raises(ValueError, match="blank or has only headings"):
            bank.add_document(text)


def test_passages_are_cut_between_the_largest_parts_that_fit():
    def split(text, length):
        return [passage for _, passages in split_document(text, length) for passage in passages]

    assert split("One two.\n\nThree four. Five six.\n\nSeven.", 24) == [
        "One two.",
        "Three four. Five six.",
        "Seven.",
    ]
    assert split("One two. Three\nfour. Five six seven", 16) == ["One two.", "Three\nfour.", "Five six seven"]
    assert split("x = [1,\n     2]\ny = 3\n", 15) == ["x = [1,\n     2]", "y = 3"]
    # A row of a table and an indented line are not cut at the end of a sentence.
    assert split("| Dr. Who. | 5 |\n| Mr. Bean. | 6 |", 30) == ["| Dr. Who. | 5 |", "| Mr. Bean. | 6 |"]
    # A heading stays with its text.
    assert split("# Title\n\n" + "word " * 10, 30)[0] == "# Title\n\nword word word word"
    assert document.split_document("a" * 25, 10) == [("", ["a" * 10, "a" * 10, "a" * 5])]
