"""Addresses, in the one form in which they are requested and compared, and who wrote them.

What is requested and what a gate allows must be the same text: so both take it from `canonical`.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from scrubjay.agents.language.prompts import Told

PORTS = {"http": 80, "https": 443}
LONGEST = 8192
"""Characters of an address at most; servers take no more."""

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_LONGEST_HOST = 253  # as DNS has it, before anything looks at its letters
# A scheme is tried from where its letters begin alone: from each of them would take their square.
_WRITTEN = re.compile(r"(?<![a-z0-9+.-])[0-9+.-]*([a-z][a-z0-9+.-]*://[^\s<>\"]+)", re.IGNORECASE)
_ASCII = re.compile(r"[!-~]+")
_BETWEEN = re.compile("[\\s\"'<>()\\[\\]{}（）【】《》「」『』“”‘’，。；！？、]+")
_ENDS = ".,;:!?)]}'`*…。，、；：！？）】》」』”’"  # of a sentence around an address, or of the address
_MOST_ENDS = 4


class Refused(Told, ValueError):
    """An address or an answer is against the rules, such as a private address or a page of the wrong kind."""


def canonical(address: str) -> str:
    """Return a web address as it is requested; it is a fixed point of this function.

    Scheme and host in small letters, the host by IDNA and without a last dot, the port only if it is not the
    scheme's own, path and query percent-encoded, no fragment. Raises Refused on what is no address of http or
    https, holds a user name, or holds white space, a backslash, a control or an invisible format character.
    """
    shown = address if len(address) <= 200 else address[:197] + "..."
    if len(address) > LONGEST:
        raise Refused("web_long", url=shown, most=LONGEST)
    for character in address:
        if character == "\\" or is_blank(character):
            raise Refused("web_character", url=repr(shown), character=f"U+{ord(character):04X}")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port  # which is checked as it is read
        if parts.scheme not in PORTS or not host:
            raise Refused("web_scheme", url=shown)
        if "@" in parts.netloc:
            raise Refused("web_password")
        host = _host(host, "[" in parts.netloc)
        path = quote(parts.path or "/", safe="/%:=&+$,;@!'()*~-._")
        query = quote(parts.query, safe="/%:=&+$,;@!'()*~-._?[]|")
    except Refused:
        raise
    except ValueError as error:
        raise Refused("web_no_address", url=shown, error=error) from None
    netloc = host if port is None or port == PORTS[parts.scheme] else f"{host}:{port}"
    return urlunsplit((parts.scheme, netloc, path, query, ""))


def form(address: str) -> str:
    """Return the canonical form of a web address, and any other text as it is."""
    try:
        return canonical(address)
    except Refused:
        return address


def is_blank(character: str) -> bool:
    """Return whether a character is white space, a control, or one of format that no reader sees."""
    return character.isspace() or unicodedata.category(character)[0] in "CZ"


def squeezed(text: str) -> str:
    """Return `text` without the characters that `is_blank` names."""
    return "".join(character for character in text if not is_blank(character))


def named(text: str) -> set[str]:
    """Return the addresses `scheme://...` that a text names as wholes, in their forms."""
    return {form(reading) for word in _WRITTEN.findall(text) for reading in _addresses(word)}


class Given:
    """What a model may open though a stranger may have asked it to: addresses that others wrote, as wholes.

    Of what the user said that is any word, with what ends a sentence or without it, and with `http://` or
    `https://` before it or without; of what was read, addresses with a scheme. An address is given if it is
    one of them in canonical form: what begins like one, or goes on after one, is another.
    """

    def __init__(self, said: Iterable[str], read: Iterable[set[str]] = ()) -> None:
        self._forms: set[str] = set()
        self._words: set[str] = set()
        for text in said:
            self._forms.update(named(text))
            for words in (text.split(), _BETWEEN.split(text), _ASCII.findall(text)):
                self._words.update(_small_host(reading) for word in words for reading in _readings(word))
        for addresses in read:
            self._forms.update(addresses)

    def __contains__(self, address: str) -> bool:
        wanted = form(address)
        if wanted in self._forms or _small_host(address) in self._words:
            return True
        scheme, _, bare = wanted.partition("://")
        return scheme in PORTS and (bare in self._words or bare.removesuffix("/") in self._words)


def unheard(text: str, told: str) -> set[str]:
    """Return what `named` finds in what a tool said, but for what it was `told`, which it may repeat.

    However that was spelt: with gaps, capitals, percent signs, or without its scheme.
    """
    heard, found = _spoken(told), set[str]()
    for word in _WRITTEN.findall(text):
        forms = {reading: form(reading) for reading in _addresses(word)}
        ways = {_spoken(way.partition("://")[2]).rstrip("/") for way in (*forms, *forms.values())}
        if not any(way in heard for way in ways):
            found.update(forms.values())
    return found


def _host(host: str, bracketed: bool) -> str:
    if bracketed:
        if "%" in host:
            raise ValueError("its host names a network of this machine")
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if len(host) > _LONGEST_HOST:
        raise ValueError(f"its host has {len(host)} characters")
    host = host.encode("idna").decode().lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host")
    return host


def _addresses(word: str) -> Iterator[str]:
    """Yield what may be meant by what begins as an address: it may end where another script begins."""
    yield from _readings(word)
    yield from _readings(_ASCII.findall(word)[0])


def _readings(word: str) -> Iterator[str]:
    """Yield a word of prose, and what is left of it without what may end a sentence."""
    for _ in range(_MOST_ENDS):
        yield word
        if word[-1:] not in _ENDS:
            return
        word = word[:-1]
    yield word.rstrip(_ENDS)


def _small_host(word: str) -> str:
    host, slash, rest = word.partition("/")
    return f"{host.lower()}{slash}{rest}"


def _spoken(text: str) -> str:
    return unquote(squeezed(text)).lower()
