"""Words of a text as the keyword index sees them.

Latin words by Porter stems, Chinese, Japanese, Korean by pairs. The day of a record is among its words, so
that a question that names a day, a month or a year finds what was said then.

SQLite's tokenizer takes a run of Chinese for one word and so finds nothing in it. Pairs of neighbouring
characters need no dictionary and recall more than a dictionary's words do.
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
_MOST_TERMS = 48
_MONTHS = frozenset(name.lower() for name in calendar.month_name if name)
_YEAR = re.compile(r"(?:19|20)\d\d")
_OF_DAYS = re.compile(r"\d{1,2}(?:st|nd|rd|th)?|[年月日]")

_STOP_WORDS = """
a about after all also am an and any are as at be been before being but by can could d did do does
doing down for from had has have having he her here hers him his how i if in into is it its just ll
m may me might more most my no nor not now o of off on once only or other our ours out over own re s
same shall she should so some such t than that the their theirs them then there these they this
those through to too under until up us ve very was we were what when where which while who whom
whose why will with would you your yours
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
"""Words too common to search for."""
_UNASKED = STOP_WORDS - {"may"}  # more often the month, in a question


def index_text(text: str) -> str:
    """Return the text to index: unspaced script as pairs of characters, and the run's last one alone."""
    return _RUN.sub(lambda run: f" {' '.join(_pairs(run[0]))} {run[0][-1]} ", normalise(text))


def day_words(text: str, observed: float, zone: tzinfo = UTC) -> str:
    """Return the day on which a text was observed as the index reads it, "7 May 2023 05 07".

    In unspaced script where the text is; nothing where no calendar has the moment.
    """
    try:
        day = datetime.fromtimestamp(observed, zone)
    except (ValueError, OverflowError, OSError):
        return ""
    if _RUN.search(text):
        return index_text(f"{day.year}年{day.month}月{day.day}日")
    return f"{day.day} {calendar.month_name[day.month]} {day.year} {day.month:02} {day.day:02}"


def match_terms(query: str, alone: bool = True) -> list[str]:
    """Return the words of a query, each once and as FTS5 wants them.

    Stop words are among them only where there is nothing else, and the query is searched for `alone`.
    """
    terms = [word for word in words(query) if word not in _UNASKED] or (words(query) if alone else [])
    # A lone character of an unspaced script is the beginning of a pair, or the last one of a run.
    return list(dict.fromkeys(map(_quoted, terms)))[:_MOST_TERMS]


def day_terms(query: str) -> set[str]:
    """Return those of a query's terms that name a day, if it names a month or a year."""
    asked = words(query)
    named = [word for word in asked if word in _MONTHS or _YEAR.fullmatch(word)]
    return {*map(_quoted, named + [word for word in asked if _OF_DAYS.fullmatch(word)])} if named else set()


def words(text: str) -> list[str]:
    """Return the words of a text in order, lower-cased; pairs of characters in unspaced script."""
    found: list[str] = []
    for word in _WORD.findall(normalise(text).lower()):
        position = 0
        for run in _RUN.finditer(word):
            if run.start() > position:
                found.append(word[position : run.start()])
            found += _pairs(run[0])
            position = run.end()
        if position < len(word):
            found.append(word[position:])
    return found


def normalise(text: str) -> str:
    """Return the text with wide, narrow and composed forms made one.

    Of more than 30 marks on one letter those after are marks on nothing, as Unicode's stream-safe text (UAX
    15) has it: to order a run of marks takes the square of its length.
    """
    if not text.isascii():
        marks = "".join(map(re.escape, filter(_is_mark, set(text))))
        if marks:
            text = re.sub(f"[{marks}]{{30}}(?=[{marks}])", "\\g<0>\u034f", text)
    return unicodedata.normalize("NFKC", text)


def _quoted(term: str) -> str:
    if len(term) == 1 and _RUN.match(term):
        return f'"{term}"*'
    ordinal = _ORDINAL.fullmatch(term)
    return f'("{term}" OR "{ordinal[1]}")' if ordinal else f'"{term}"'


def _is_mark(letter: str) -> bool:
    """Return whether a character is nothing but marks on the one before it, once it is taken apart."""
    return letter > "\u02ff" and all(map(unicodedata.combining, unicodedata.normalize("NFKD", letter)))


def _pairs(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)] or [run]
