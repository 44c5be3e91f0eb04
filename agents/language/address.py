"""Web addresses: canonical form, extraction from text, and the set of addresses that a model may open.

The web client and the gate both use `canonicalize_address`. The client therefore requests exactly the address
that the gate has checked.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from scrubjay.agents.language.prompts import LocalizedError

PORTS = {"http": 80, "https": 443}
MAX_ADDRESS_LENGTH = 8192
"""Maximum length of an address in characters; servers accept no more."""

_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")
_MAX_HOST_LENGTH = 253  # limit of DNS; checked before the characters of the host are
# A scheme matches only from the first of its letters: trying each letter would take quadratic time.
_ADDRESS = re.compile(r"(?<![a-z0-9+.-])[0-9+.-]*([a-z][a-z0-9+.-]*://[^\s<>\"]+)", re.IGNORECASE)
_ASCII = re.compile(r"[!-~]+")
_SEPARATORS = re.compile("[\\s\"'<>()\\[\\]{}（）【】《》「」『』“”‘’，。；！？、]+")
_ENDS = ".,;:!?)]}'`*…。，、；：！？）】》」』”’"  # end of a sentence, or a part of the address
_MAX_ENDS = 4


class RequestError(LocalizedError, ValueError):
    """A request or its response is not allowed, for example because of a private address."""


def canonicalize_address(address: str) -> str:
    """Return the canonical form of a web address, the form that the web client requests.

    Scheme and host are in lower case. The host is IDNA-encoded and has no trailing dot. The scheme's default
    port is left out. Path and query are percent-encoded, and the fragment is dropped. A canonical address is
    returned unchanged.

    Raises RequestError if the address is not http or https, contains a user name, or contains white space, a
    backslash, a control character or an invisible format character.
    """
    excerpt = address if len(address) <= 200 else address[:197] + "..."
    if len(address) > MAX_ADDRESS_LENGTH:
        raise RequestError("web_long", url=excerpt, most=MAX_ADDRESS_LENGTH)
    for character in address:
        if character == "\\" or is_blank(character):
            raise RequestError("web_character", url=repr(excerpt), character=f"U+{ord(character):04X}")
    try:
        parts = urlsplit(address)
        host, port = parts.hostname or "", parts.port  # reading the port validates it
        if parts.scheme not in PORTS or not host:
            raise RequestError("web_scheme", url=excerpt)
        if "@" in parts.netloc:
            raise RequestError("web_password")
        host = _check_host(host, "[" in parts.netloc)
        path = quote(parts.path or "/", safe="/%:=&+$,;@!'()*~-._")
        query = quote(parts.query, safe="/%:=&+$,;@!'()*~-._?[]|")
    except RequestError:
        raise
    except ValueError as error:
        raise RequestError("web_no_address", url=excerpt, error=error) from None
    netloc = host if port is None or port == PORTS[parts.scheme] else f"{host}:{port}"
    return urlunsplit((parts.scheme, netloc, path, query, ""))


def normalize_address(address: str) -> str:
    """Return the canonical form of a web address; return any other text unchanged."""
    try:
        return canonicalize_address(address)
    except RequestError:
        return address


def is_blank(character: str) -> bool:
    """Return True for white space, control characters and invisible format characters."""
    return character.isspace() or unicodedata.category(character)[0] in "CZ"


def remove_blanks(text: str) -> str:
    """Return `text` without the characters for which `is_blank` is True."""
    return "".join(character for character in text if not is_blank(character))


def find_addresses(text: str) -> set[str]:
    """Return the complete addresses `scheme://...` in a text, in canonical form."""
    return {
        normalize_address(candidate)
        for word in _ADDRESS.findall(text)
        for candidate in _address_candidates(word)
    }


class AllowedAddresses:
    """Set of the addresses that a model may open after it has read untrusted text.

    Someone other than the model must have written the complete address. In trusted texts, such as the user's
    messages, every word counts as an address, with or without trailing punctuation, and with or without
    `http://` or `https://`. In untrusted texts only addresses with a scheme count.

    An address is in the set if its canonical form equals one of these addresses. A prefix or an extension of
    an allowed address is not in the set.
    """

    def __init__(self, trusted_texts: Iterable[str], untrusted_addresses: Iterable[set[str]] = ()) -> None:
        self._forms: set[str] = set()
        self._words: set[str] = set()
        for text in trusted_texts:
            self._forms.update(find_addresses(text))
            for words in (text.split(), _SEPARATORS.split(text), _ASCII.findall(text)):
                self._words.update(
                    _lowercase_host(candidate) for word in words for candidate in _word_candidates(word)
                )
        for addresses in untrusted_addresses:
            self._forms.update(addresses)

    def __contains__(self, address: str) -> bool:
        canonical = normalize_address(address)
        if canonical in self._forms or _lowercase_host(address) in self._words:
            return True
        scheme, _, bare = canonical.partition("://")
        return scheme in PORTS and (bare in self._words or bare.removesuffix("/") in self._words)


def find_new_addresses(result: str, call_text: str) -> set[str]:
    """Return the addresses in a tool's result that do not occur in the text of its call.

    An address of the call is recognized in any spelling: with spaces, capitals or percent-encoding, or
    without the scheme.
    """
    call_characters, new_addresses = _fold(call_text), set[str]()
    for word in _ADDRESS.findall(result):
        forms = {candidate: normalize_address(candidate) for candidate in _address_candidates(word)}
        spellings = {
            _fold(spelling.partition("://")[2]).rstrip("/") for spelling in (*forms, *forms.values())
        }
        if not any(spelling in call_characters for spelling in spellings):
            new_addresses.update(forms.values())
    return new_addresses


def _check_host(host: str, is_ipv6: bool) -> str:
    if is_ipv6:
        if "%" in host:
            raise ValueError("the host contains % and the name of a network interface; remove both")
        return f"[{ipaddress.IPv6Address(host).compressed}]"
    if len(host) > _MAX_HOST_LENGTH:
        raise ValueError(f"the host has {len(host)} characters, more than {_MAX_HOST_LENGTH}")
    host = host.encode("idna").decode().lower().removesuffix(".")
    if not _HOST.fullmatch(host):
        raise ValueError(f"{host!r} is not a host name")
    return host


def _address_candidates(word: str) -> Iterator[str]:
    """Yield the beginnings of `word` that may be an address.

    The candidates are the whole word and its leading ASCII characters, because Chinese text may follow an
    address without a space. Each of the two also occurs without some or all of the punctuation at its end.
    """
    yield from _word_candidates(word)
    yield from _word_candidates(_ASCII.findall(word)[0])


def _word_candidates(word: str) -> Iterator[str]:
    """Yield a word, then shorter words without some or all of the punctuation at the end of the word."""
    for _ in range(_MAX_ENDS):
        yield word
        if word[-1:] not in _ENDS:
            return
        word = word[:-1]
    yield word.rstrip(_ENDS)


def _lowercase_host(word: str) -> str:
    host, slash, rest = word.partition("/")
    return f"{host.lower()}{slash}{rest}"


def _fold(text: str) -> str:
    return unquote(remove_blanks(text)).lower()
