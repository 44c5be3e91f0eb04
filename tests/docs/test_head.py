"""A page has its first paragraph as description."""

import pytest
from docutils.core import publish_doctree

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="module")
def head(from_docs):
    return from_docs("head")


def parse(text):
    return publish_doctree(text, settings_overrides={"doctitle_xform": False})


def test_the_first_paragraph_describes_a_page(head):
    page = parse('One\n===\n\n- an item of a list\n\nA page on\n"one" thing only.\n\nMore.\n')
    assert head.describe(page) == 'A page on "one" thing only.'
    context = {}
    head.add_description(None, "one", "page.html", context, page)
    assert context["metatags"] == (
        '<meta name="description" content="A page on &quot;one&quot; thing only.">\n'
    )


def test_a_long_description_ends_at_a_word(head):
    text = head.describe(parse("One\n===\n\n" + "some words " * 40))
    assert len(text) <= 160
    assert text.endswith(("some…", "words…"))


def test_a_page_without_text_has_no_description(head):
    assert head.describe(parse("One\n===\n")) == ""
    context = {}
    head.add_description(None, "search", "search.html", context, None)
    assert not context
