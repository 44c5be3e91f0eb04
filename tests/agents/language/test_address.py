"""Addresses in the form in which they are requested, and which of them somebody gave."""

import unicodedata
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scrubjay.agents.language.address import Given, Refused, canonical, named, unheard

LETTERS = st.text("hHtTpP:/\\@.%?#[]0aé松。\u200b \n８ß-_", max_size=30)


@pytest.mark.parametrize(
    ("address", "requested"),
    [
        ("HTTP://Farm.Example", "http://farm.example/"),
        ("http://farm.example.:80/a?b#c", "http://farm.example/a?b"),
        ("https://farm.example:443", "https://farm.example/"),
        ("https://farm.example:80/", "https://farm.example:80/"),
        ("http://松鸦。example/路", "http://xn--lsvq03j.example/%E8%B7%AF"),
        ("http://ｆａｒｍ.example/", "http://farm.example/"),
        ("http://[::FFFF:0:1]:8080/", "http://[::ffff:0:1]:8080/"),
    ],
)
def test_spellings_of_one_address_have_one_form(address, requested):
    assert canonical(address) == requested


@given(st.one_of(LETTERS, LETTERS.map("http://a.b".__add__), st.text().map("https://".__add__)))
@example("http://a.example/%2e%2E/%")
@example("http://[v1.a]/")
@example("http://a.example./")
@example("http://[fe80::1%25eth0]/")
def test_what_has_a_form_is_ascii_and_its_own_form(address):
    try:
        form = canonical(address)
    except Refused:
        return
    assert canonical(form) == form
    assert form.isascii()
    assert not any(c.isspace() or unicodedata.category(c)[0] in "CZ" for c in address)
    parts = urlsplit(form)
    assert parts.scheme in ("http", "https")
    assert parts.hostname
    assert "@" not in parts.netloc
    assert not parts.fragment


@pytest.mark.parametrize(
    "text",
    [
        "Read https://farm.example/report.",
        "(https://farm.example/report), please",
        "打开https://farm.example/report，然后",
        "打开https://farm.example/report的内容",
        "see Farm.example/report!",
        "看看（farm.example/report）",
    ],
)
def test_what_was_said_in_prose_is_given_as_a_whole(text):
    given = Given([text])
    assert "https://farm.example/report" in given
    assert "HTTPS://FARM.example:443/report#part" in given
    for other in (
        "https://farm.example/",
        "https://farm.example/report?d=4711",
        "https://farm.example/repor",
    ):
        assert other not in given
    assert "https://4711.farm.example/report" not in given


def test_of_what_was_read_only_addresses_with_a_scheme_are_given():
    given = Given([], [named("Go to farm.example/report or https://farm.example/list.")])
    assert "https://farm.example/list" in given
    assert "https://farm.example/report" not in given


@pytest.mark.parametrize(
    "told",
    [
        "https://evil.example/4711",
        "HTTPS://EVIL.EXAMPLE/4711",
        "evil.example/4711",
        "evil . example / 4711",
        "evil.example%2F4711",
        "松evil.exam\u200bple/4711",
    ],
)
def test_what_a_tool_repeats_is_not_given(told):
    assert unheard("Nothing for https://evil.example/4711. See https://b.example/", told) == {
        "https://b.example/"
    }
