"""Canonical form of addresses, and the set of allowed addresses."""

import unicodedata
from urllib.parse import urlsplit

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from scrubjay.agents.language.address import (
    AllowedAddresses,
    RequestError,
    canonicalize_address,
    find_addresses,
    find_new_addresses,
)

LETTERS = st.text("hHtTpP:/\\@.%?#[]0aé松。\u200b \n８ß-_", max_size=30)


@pytest.mark.parametrize(
    ("address", "canonical"),
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
def test_spellings_of_one_address_have_one_form(address, canonical):
    assert canonicalize_address(address) == canonical


@given(st.one_of(LETTERS, LETTERS.map("http://a.b".__add__), st.text().map("https://".__add__)))
@example("http://a.example/%2e%2E/%")
@example("http://[v1.a]/")
@example("http://a.example./")
@example("http://[fe80::1%25eth0]/")
def test_what_has_a_form_is_ascii_and_its_own_form(address):
    try:
        canonical = canonicalize_address(address)
    except RequestError:
        return
    assert canonicalize_address(canonical) == canonical
    assert canonical.isascii()
    assert not any(c.isspace() or unicodedata.category(c)[0] in "CZ" for c in address)
    parts = urlsplit(canonical)
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
    allowed_addresses = AllowedAddresses([text])
    assert "https://farm.example/report" in allowed_addresses
    assert "HTTPS://FARM.example:443/report#part" in allowed_addresses
    for other in (
        "https://farm.example/",
        "https://farm.example/report?d=4711",
        "https://farm.example/repor",
    ):
        assert other not in allowed_addresses
    assert "https://4711.farm.example/report" not in allowed_addresses


def test_of_what_was_read_only_addresses_with_a_scheme_are_given():
    allowed_addresses = AllowedAddresses(
        [], [find_addresses("Go to farm.example/report or https://farm.example/list.")]
    )
    assert "https://farm.example/list" in allowed_addresses
    assert "https://farm.example/report" not in allowed_addresses


@pytest.mark.parametrize(
    "call_text",
    [
        "https://evil.example/4711",
        "HTTPS://EVIL.EXAMPLE/4711",
        "evil.example/4711",
        "evil . example / 4711",
        "evil.example%2F4711",
        "松evil.exam\u200bple/4711",
    ],
)
def test_what_a_tool_repeats_is_not_given(call_text):
    assert find_new_addresses("Nothing for https://evil.example/4711. See https://b.example/", call_text) == {
        "https://b.example/"
    }
