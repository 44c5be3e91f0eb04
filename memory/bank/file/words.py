"""Tokenization for the keyword index.

Latin words are matched by their Porter stems without accents; Chinese, Japanese and Korean are split into
character bigrams. Bigrams need no dictionary and have higher recall than dictionary words. A day, a month or
a year in a query matches the records of that date.
"""

from __future__ import annotations

import calendar
import functools
import re
import threading
import unicodedata
from datetime import UTC, datetime, tzinfo
from typing import NamedTuple

import snowballstemmer

_UNSPACED = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U000323af"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(r"[^\W_]+")
_ORDINAL = re.compile(r"(\d{1,2})(?:st|nd|rd|th)")
_MAX_TERMS = 48
_STOP_WORDS = """
a about after all also am an and any are as at be been before being but by can could d did do does
doing down for from had has have having he her here hers him his how i if in into is it its just ll
m may me might more most my no nor not now o of off on once only or other our ours out over own re s
same shall she should so some such t than that the their theirs them then there these they this
those through to too under until up us ve very was we were what when where which while who whom
whose why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Stop words: words too common to search for."""
_QUERY_STOP_WORDS = STOP_WORDS - {"may"}  # in a query, "may" is more often the month
_ACCENTS = re.compile("[\u0300-\u036f]+")
_STEMMER = snowballstemmer.stemmer("porter")
_STEMMER_LOCK = threading.Lock()  # the stemmer has a state
MAX_WORD = 64
"""Letters of an index word. Longer words match by their first letters."""


class Term(NamedTuple):
    """Word of a query, with the index words that match it."""

    words: tuple[str, ...]
    """Alternatives: index words from `index_words`."""
    is_prefix: bool = False
    """Match each index word that starts with one of `words`."""


def index_words(text: str) -> list[str]:
    """Return the index words of a text in order: stems, and bigrams of Chinese, Japanese and Korean.

    A run of such characters becomes pairs of adjacent characters and its last character.
    """
    return [stem(word[:MAX_WORD]) for word in _WORD.findall(_index_text(text).lower())]


def day_words(text: str, observed: float, zone: tzinfo = UTC) -> str:
    """Return the index words of the date on which a text was observed, such as "7 May 2023 05 07".

    The date is in Chinese characters if the text contains Chinese, Japanese or Korean. The result is empty
    if the time is outside the calendar.
    """
    try:
        day = datetime.fromtimestamp(observed, zone)
    except (ValueError, OverflowError, OSError):
        return ""
    if _RUN.search(text):
        return f"{day.year}年{day.month}月{day.day}日"
    return f"{day.day} {calendar.month_name[day.month]} {day.year} {day.month:02} {day.day:02}"


def query_terms(query: str) -> list[Term]:
    """Return the distinct terms of a query; stop words only if it has no other words."""
    query_words = words(query)
    content = [word for word in query_words if word not in _QUERY_STOP_WORDS] or query_words
    return list(dict.fromkeys(map(_term, content)))[:_MAX_TERMS]


def _term(word: str) -> Term:
    # A single character of an unspaced script matches the start of a bigram, or the last character of a run.
    if len(word) == 1 and _RUN.match(word):
        return Term((word,), is_prefix=True)
    ordinal, index_word = _ORDINAL.fullmatch(word), stem(word[:MAX_WORD])
    return Term((index_word, ordinal[1]) if ordinal else (index_word,))


@functools.lru_cache(maxsize=1 << 16)
def stem(word: str) -> str:
    """Return a lower-cased word without accents; its Porter stem if it then has ASCII letters only.

    A word whose stem is a stop word is its own stem: the name "Ines" would otherwise be found at each "in".
    """
    if not word.isascii():
        word = unicodedata.normalize("NFC", _ACCENTS.sub("", unicodedata.normalize("NFD", word)))
    if len(word) < 3 or not (word.isascii() and word.isalpha()):
        return word
    with _STEMMER_LOCK:
        result = _STEMMER.stemWord(word)
    return word if result in STOP_WORDS else result


def _index_text(text: str) -> str:
    """Return a text in which each run of Chinese, Japanese or Korean is its bigrams and last character."""
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", normalise(text))


def words(text: str) -> list[str]:
    """Return the lower-cased words of a text in order.

    A run of Chinese, Japanese or Korean characters becomes bigrams.
    """
    return split_words(normalise(text))


def split_words(text: str) -> list[str]:
    """Return the words of a text that `normalise` returned, as `words` does."""
    result: list[str] = []
    for word in _WORD.findall(text.lower()):
        position = 0
        for run in _RUN.finditer(word):
            if run.start() > position:
                result.append(word[position : run.start()])
            result += _pairs(run[0])
            position = run.end()
        if position < len(word):
            result.append(word[position:])
    return result


def normalise(text: str) -> str:
    """Return the text in Unicode normal form NFKC, which unifies wide, narrow and composed characters.

    A run of combining marks is broken after 30 marks, as in Unicode's stream-safe text format (UAX 15), since
    sorting a run of marks takes quadratic time.
    """
    if not text.isascii():
        marks = "".join(map(re.escape, filter(_is_mark, set(text))))
        if marks:
            text = re.sub(f"[{marks}]{{30}}(?=[{marks}])", "\\g<0>\u034f", text)
    return unicodedata.normalize("NFKC", text)


def _is_mark(letter: str) -> bool:
    """Return True if a character decomposes into combining marks only."""
    return letter > "\u02ff" and all(map(unicodedata.combining, unicodedata.normalize("NFKD", letter)))


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
