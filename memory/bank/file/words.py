"""Tokenization for the keyword index.

Latin words are matched by Porter stems; Chinese, Japanese and Korean are split into character bigrams. The
date of a record is among its words, so that a query with a day, a month or a year matches records of that
date.

SQLite's tokenizer treats a run of Chinese characters as one word, so that parts of the run do not match.
Character bigrams need no dictionary and have higher recall than dictionary words.
"""

from __future__ import annotations

import calendar
import re
import unicodedata
from datetime import UTC, datetime, tzinfo

_UNSPACED = (
    "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\U00020000-\U000323af"
)
_RUN = re.compile(f"[{_UNSPACED}]+")
_WORD = re.compile(r"[^\W_]+")
_ORDINAL = re.compile(r"(\d{1,2})(?:st|nd|rd|th)")
_MAX_TERMS = 48
_MONTHS = frozenset(name.lower() for name in calendar.month_name if name)
_YEAR = re.compile(r"(?:19|20)\d\d")
_DAY_PART = re.compile(r"\d{1,2}(?:st|nd|rd|th)?|[年月日]")

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


def index_text(text: str) -> str:
    """Return the text to index.

    Each run of Chinese, Japanese or Korean characters is replaced by its bigrams (pairs of adjacent
    characters) and its last character.
    """
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", normalise(text))


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
        return index_text(f"{day.year}年{day.month}月{day.day}日")
    return f"{day.day} {calendar.month_name[day.month]} {day.year} {day.month:02} {day.day:02}"


def match_terms(query: str) -> list[str]:
    """Return the distinct words of a query as FTS5 terms; stop words only if it has no other words."""
    query_words = words(query)
    terms = [word for word in query_words if word not in _QUERY_STOP_WORDS] or query_words
    # A single character of an unspaced script matches the start of a bigram, or the last character of a run.
    return list(dict.fromkeys(map(_quote, terms)))[:_MAX_TERMS]


def day_terms(query: str) -> set[str]:
    """Return the terms of a query that form a date; empty unless the query names a month or a year."""
    query_words = words(query)
    date_words = [word for word in query_words if word in _MONTHS or _YEAR.fullmatch(word)]
    if date_words:
        date_words += filter(_DAY_PART.fullmatch, query_words)
    return set(map(_quote, date_words))


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


def _quote(term: str) -> str:
    if len(term) == 1 and _RUN.match(term):
        return f'"{term}"*'
    ordinal = _ORDINAL.fullmatch(term)
    return f'("{term}" OR "{ordinal[1]}")' if ordinal else f'"{term}"'


def _is_mark(letter: str) -> bool:
    """Return True if a character decomposes into combining marks only."""
    return letter > "\u02ff" and all(map(unicodedata.combining, unicodedata.normalize("NFKD", letter)))


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
