"""Texts that are worth storing in a memory, and recalled records that are worth reading."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from scrubjay.agents.language.text import is_question

_MARK = re.compile(r"<<<(?P<kind>DATA|END)\b[^<>\n]*?(?P<number>[0-9a-f]{0,8})(?:>{1,3}|$)", re.MULTILINE)
_MARK_NUMBER = re.compile(r"<<<END ([0-9a-f]{8})>>>")
_CUT_MARK = re.compile(r"^<<<[A-Z]{0,4}\Z", re.MULTILINE)
_MAX_SMALL_TALK = 100  # characters
_GREETING = (
    r"(?:(?:hi|hello|hey|good (?:morning|afternoon|evening|night|day)|thanks|thank you|many thanks|thx|bye"
    r"|goodbye|see you(?: later| soon)?|how are you(?: doing)?(?: today)?|how do you do|nice to meet you"
    r"|you(?:'re|’re| are) welcome|my pleasure|no problem|how (?:can|may) i (?:help|assist) you)\b"
    r"|[你您]好[吗啊呀]?|嗨|早上好|下午好|晚上好|晚安|谢谢[你您]?|多谢|再见)"
)
# Alone, such a word can be the answer to a question.
_BESIDE = (
    r"(?:(?:there|everyone|all|again|so much|very much|a lot|dear|today|ok|okay|nice|great|cool|alright"
    r"|got it|i see|understood|that helps)\b)"
)
_SMALL_TALK = re.compile(
    rf"\W*(?:{_BESIDE}\W*)*{_GREETING}(?:\W*(?:{_GREETING}|{_BESIDE}))*\W*", re.IGNORECASE
)


def is_small_talk(text: str) -> bool:
    """Return True if `text` consists of greetings and thanks, in English or Chinese."""
    return len(text) <= _MAX_SMALL_TALK and _SMALL_TALK.fullmatch(text) is not None


def find_mark_numbers(texts: Iterable[str]) -> frozenset[str]:
    """Return the numbers of the marks by `fence` in the texts of a prompt."""
    return frozenset(number for text in texts for number in _MARK_NUMBER.findall(text))


def remove_copies(
    answer: str, mark_numbers: Collection[str], shown_texts: Iterable[str] = (), heading: str = ""
) -> str:
    """Return a model's answer without the marks that it copied from its prompt, nor the data between them.

    Small models copy the marks of `fence`, and the data between them. Marks with other numbers stay. A mark
    at the end of the answer may be incomplete, because the answer reached its token limit.

    Args:
        answer: Text of the answer.
        mark_numbers: Numbers of the marks in the prompt, from `find_mark_numbers`.
        shown_texts: Data between the marks. If each line that is left is a line of these texts, the whole
            answer is a copy, and the result is empty.
        heading: Line above the marks. It is removed, too.
    """
    lines = answer.splitlines()
    has_heading = bool(heading) and heading in map(str.strip, lines)
    if has_heading:
        answer = "\n".join(line for line in lines if line.strip() != heading).strip()
    parts, place, number = [], 0, None
    for mark in _MARK.finditer(answer):
        is_last = mark.end() == len(answer)
        if not any(one.startswith(mark["number"]) for one in mark_numbers if mark["number"] or is_last):
            continue
        if mark["kind"] == "DATA" or mark["number"] != number:
            parts.append(answer[place : mark.start()])
        number, place = mark["number"] if mark["kind"] == "DATA" else None, mark.end()
    if not place and not has_heading:
        return answer
    rest = _CUT_MARK.sub("", "".join([*parts, answer[place:]]).rstrip()).strip()
    shown_lines = {line.strip() for text in shown_texts for line in text.splitlines()}
    is_copy = all(line.strip() in shown_lines for line in rest.splitlines() if line.strip())
    return "" if is_copy else rest


def is_outdated(record: Any) -> bool:
    """Return True if a search has found a newer record that says what is true now."""
    return getattr(record, "superseded_by", None) is not None


def to_state(record: Any) -> dict[str, str]:
    """Return the fields of a record that an agent shows to its model, as JSON values."""
    fields = {name: getattr(record, name) for name in ("id", "kind", "trust", "text")}
    return fields | ({"outdated": "yes"} if is_outdated(record) else {})


def label(fields: Mapping[str, str]) -> str:
    """Return the label of a record's text for `fence`. `fields` comes from `to_state`."""
    return f"{'outdated ' if 'outdated' in fields else ''}memory {fields['kind']} {fields['id']}"


def select_records(hits: Iterable[Any], limit: int) -> list[Any]:
    """Return the first `limit` hits, with few earlier questions and answers among them.

    Earlier questions and earlier answers with `trust="agent"` together fill at most a third of the results
    (one such record is always allowed). These answers only repeat other records. Earlier questions are
    similar to the current question but contain no information.
    """
    selection: list[Any] = []
    uninformative_count = 0
    for hit in hits:
        if len(selection) == limit:
            break
        if hit.kind == "conversation" and (hit.trust == "agent" or is_question(hit.text)):
            uninformative_count += 1
            if uninformative_count > max(1, limit // 3):
                continue
        selection.append(hit)
    return selection
