"""Facts that change: a rule finds records whose fact a newer record replaces. It needs no model.

"Works at Acme" and later "works at Globex": the newer record supersedes the older one. The rule reads a
closed list of relations that have one value at a time, such as a home, an employer or a phone number. Both
texts must name the same subject and relation with different values. Two brothers in two cities therefore
both stay.

Any doubt stops the rule. It ignores questions, plans, hypotheses, reports, past tenses and negations. It
ignores words such as "also" and "second". It reads English, and a few Chinese sentences. It ignores texts of
more than `MAX_LENGTH` characters, because one sentence cannot supersede a long text.

The rule compares records of one namespace, kind and speaker. A record never supersedes one of higher trust.
Statements in the first person have the same trust. The rule only reorders and marks the hits of a search.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from scrubjay.memory.bank.record import TRUSTS, Record
from scrubjay.memory.bank.search.places import REGIONS

MAX_LENGTH = 500
"""Maximum characters of a text that the rule reads."""
SPARE = 10
"""Number of records after the first `k` that can supersede a hit."""

_OWN = frozenset(("i", "my", "我"))
_UNIQUE = "mother|mom|mum|father|dad|wife|husband|spouse|fiancée?|boyfriend|girlfriend|boss|manager|landlord|dentist"
_SIBLING = "brother|sister|son|daughter"
_NAME = r"[A-Z][\w'-]*(?: [A-Z][\w'-]*){0,2}"
_SUBJECT = (
    rf"(?P<subject>I|[Tt]he user|User|[Mm]y (?:(?:older|younger|eldest|big|little) )?(?:{_UNIQUE}|{_SIBLING})"
    rf"(?: {_NAME})?|(?:[Mm]y (?:uncle|aunt|cousin|friend|colleague|neighbou?r) )?{_NAME}|(?=[Ww]orks |[Ll]ives ))"
)
_START = (
    r"^(?:(?:oh|hey|hi|well|so|and|yes|yeah|actually|update|today|by the way|btw|fyi|good news"
    r"|(?:since|last|this) \w+),? ){0,3}"
)
_ADVERBS = r"(?:(?:now|currently|just|recently|finally|still|already|has|have|am|is|been|be) )*"
_MONTH = r"January|February|March|April|May|June|July|August|September|October|November|December"
_TAIL = (
    r"(?=$|, (?!I\b)[^A-Z]|, I\b|!| (?:now|currently|these days|nowadays|at the moment|instead|with|as|but"
    rf"|since|because|last|this|and (?:I\b|[^A-Z])|in (?:{_MONTH})$|on \w+day$)|[,;] (?:and|but)\b)"
)
_WORD = r"(?:[A-Z][\w&'-]*|\d[\w&'-]*)"
_PROPER = rf"(?P<value>{_WORD}(?: (?:of |de |the |& )?{_WORD}){{0,4}})"
_PLACE = rf"(?P<value>[A-Z][\w'-]*(?: [A-Z][\w'-]*){{0,2}}(?:, [A-Z][\w'-]*(?: [A-Z][\w'-]*)?)?)"
_THING = r"(?P<value>(?:an?|the) [\w' -]+?)"
_CODE = r"(?P<value>(?=\S*[\d@])[\w@+().#/-][\w@+().#/ -]*?)"
_CODES = (
    r"(?:tele)?phone number|mobile number|cell number|landline number|e-?mail(?: address)?|password|passcode"
    r"|pin|username|ip address|api key|zip code|postal code|(?:locker|door|gate) code"
)
_PEOPLE = (
    r"boss|manager|supervisor|team lead|landlord|landlady|dentist|doctor|therapist|roommate|flatmate"
    r"|boyfriend|girlfriend|best friend|CEO|vet"
)
_DATES = r"deadline|due date|release date|price|budget|default branch|job|car|gym|wake-up time"
_OWNER = rf"(?P<subject>[Mm]y|[Oo]ur|[Tt]he user's|User's|[Tt]he|[Mm]y {_UNIQUE}'s|{_NAME}'s)"
_NOUN = rf"(?P<noun>(?:[\w'-]+ ){{0,2}}?(?i:{{}}))"
_IS = r"(?: is| changed to| has changed to)(?: now| currently)? "


class _Relation(NamedTuple):
    """Relation that has one value at a time."""

    name: str
    pattern: re.Pattern[str]
    needs_change: bool = False
    """The newer text must have a word of change, such as "now"."""


def _relation(name: str, pattern: str, needs_change: bool = False) -> _Relation:
    return _Relation(name, re.compile(pattern), needs_change)


def _attribute(nouns: str, value: str, needs_change: bool = False) -> _Relation:
    return _relation(
        "", rf"{_START_ANY}{_OWNER} {_NOUN.format(nouns)}{_IS}{value}{_TAIL}", needs_change
    )


_START_ANY = _START.replace("^(?:(?:", "^(?:(?i:").replace(r"\w+),? )", r"\w+),? )")
_END = r"(?:at|for|in) "
_RELATIONS = (
    _relation("home", rf"{_START_ANY}{_SUBJECT} ?{_ADVERBS}(?:[Ll]ives?|living|based|resides?)(?: now)? in {_PLACE}{_TAIL}"),
    _relation(
        "home",
        rf"{_START_ANY}{_SUBJECT} ?{_ADVERBS}(?:moved|relocated)(?: back| here)?(?: from {_NAME})? to {_PLACE}{_TAIL}",
    ),
    _relation(
        "employer",
        rf"{_START_ANY}{_SUBJECT} ?{_ADVERBS}(?:[Ww]orks?|working|employed)(?: now)? (?:at|for|by) {_PROPER}{_TAIL}",
    ),
    _relation(
        "employer",
        rf"{_START_ANY}{_SUBJECT} ?{_ADVERBS}(?:[Ww]orks?|working|employed)(?: now)? (?:at|for|by) {_THING}{_TAIL}",
        True,
    ),
    _relation(
        "employer",
        rf"{_START_ANY}{_SUBJECT} {_ADVERBS}(?:started|began|got)"
        rf"(?: working| an?(?: new)? (?:job|position|role)) (?:at|for|with) {_PROPER}{_TAIL}",
    ),
    _relation("job", rf"{_START_ANY}{_SUBJECT} ?{_ADVERBS}(?:[Ww]orks?|working)(?: now)? as (?P<value>an? [\w -]+?){_TAIL}"),
    _relation("age", rf"{_START_ANY}{_SUBJECT} {_ADVERBS}(?P<value>\d{{1,3}}) years old"),
    _relation(
        "status",
        rf"{_START_ANY}{_SUBJECT} {_ADVERBS}(?P<value>single|divorced|widowed|(?:engaged|married)(?: to {_NAME})?){_TAIL}",
    ),
    _relation("preference", rf"{_START_ANY}{_SUBJECT} {_ADVERBS}prefers? (?P<value>[\w'-]+(?: [\w'-]+)?){_TAIL}", True),
    _attribute(_CODES, _CODE),
    _attribute("address", r"(?P<value>\d[\w' -]*?)"),
    _attribute(_PEOPLE, rf"(?P<value>(?:Dr |Mrs? |Ms )?{_NAME})"),
    _attribute("employer", _PROPER),
    _attribute("favou?rite [\\w'-]+", r"(?P<value>[\w'][\w' -]*?)"),
    _attribute(_DATES, r"(?P<value>[\w' :$€£.-]+?)", True),
    _relation(
        "name",
        rf"{_START_ANY}(?P<subject>[Mm]y \w+|[Tt]he \w+|[Oo]ur \w+) {_ADVERBS}(?:called|named) {_PROPER}{_TAIL}",
        True,
    ),
)
_ENDED = (
    _relation(
        "employer",
        rf"{_START_ANY}{_SUBJECT} (?:no longer works?|do(?:es)? not work) (?:at|for) {_PROPER}{_TAIL[:-1]}| any ?more)",
    ),
    _relation(
        "home",
        rf"{_START_ANY}{_SUBJECT} (?:no longer lives?|do(?:es)? not live) in {_PLACE}{_TAIL[:-1]}| any ?more)",
    ),
)
_CHINESE_SUBJECT = r"^(?P<subject>我(?:妈妈|爸爸|妻子|丈夫|老婆|老公|妹妹|姐姐|哥哥|弟弟)?|[小老][一-龥])"
_CHINESE = (
    _relation("home", rf"{_CHINESE_SUBJECT}(?:现在|目前)?(?:住在|搬到了)(?P<value>[一-龥]{{2,6}})$", True),
    _relation("employer", rf"{_CHINESE_SUBJECT}(?:现在|目前)?在(?P<value>[一-龥A-Za-z]{{2,8}})(?:工作|上班)$", True),
    _relation("age", rf"{_CHINESE_SUBJECT}(?:今年|现在)(?P<value>\d{{1,3}})岁$"),
    _relation("", r"^(?P<subject>我)的(?P<noun>手机号码?|电话号码?|邮箱|密码|微信号)(?:现在|改)?[是成为](?P<value>[\w@.+-]+)$"),
    _relation("", r"^(?P<subject>我)(?P<noun>最喜欢的[一-龥]{2,4}?)(?:现在)?是(?P<value>[一-龥]{1,6})$"),
)
_HAS_RELATION = re.compile(
    r"[Ll]ives?\b|\bliving\b|\bbased\b|\breside|\bmoved\b|\brelocated\b|[Ww]ork|\bemploye|\b(?:job|position|role) (?:at|for|with)\b"
    rf"|years old|\b(?:single|divorced|widowed|engaged|married|called|named)\b|\bprefers?\b|\bfavou?rite |\baddress\b"
    rf"|(?i:\b(?:{_CODES}|{_PEOPLE}|{_DATES})) (?:is|has|changed)\b|[住搬岁]|工作|上班|我的|最喜欢"
)
_SENTENCE = re.compile(r"(?<=[.!?])\s+|(?<=[。！？；])|[\n;]+")
_DOUBT = re.compile(
    r"\b(?:if|when|whenever|whether|might|may|maybe|perhaps|probably|would|could|should|will|shall|must|want|wants|wanted"
    r"|plan|plans|planned|planning|hopes?|wish|wishes|think|thinking|considering|imagine|pretend|suppose|assume|let's|let us"
    r"|dream|almost|nearly|said|says|told|tells|asked|heard|claims|apparently|never|not|ever|either|part-time"
    r"|freelance|weekends?|sometimes|often|usually|mostly|temporarily|temporary|used to|previously|formerly"
    r"|former|ago|while|during|until|before|after|once|except|than|half|like|kind of|character|novel|film|story)\b"
    r"|\bin (?:19|20)\d\d\b|[\"“”«»]|[想打]算|[想要会]搬|如果|可能|也许|以前|曾|听说|不|没|吗|也|还",
    re.IGNORECASE,
)
_ADDITION = re.compile(r"\b(?:also|too|another|second|other|both|as well|besides|additional|in addition|one of)\b|也|还|另|第二", re.I)
_CHANGE = re.compile(
    r"\b(?:now|currently|these days|nowadays|no longer|moved|relocated|switched|changed|instead|started|got|began"
    r"|any ?more)\b|现在|目前|搬到|改",
    re.I,
)
_NO_NAME = frozenset(
    "a an the this that these those it he she they we you i who what which there here everyone everybody "
    "someone somebody nobody people one some many most all each no mine yours my our his her their its and but "
    "or so then also just still now today yes not never if when where how why while user".split()
)
_CONTRACTIONS = (
    (re.compile(r"[’`]"), "'"),
    (re.compile(r"\b([IWw]e?)'m\b"), r"\1 am"),
    (re.compile(r"\b(I)'ve\b"), r"\1 have"),
    (re.compile(r"\b(do|does|did|is|are|was|has|have|ca|wo|would|could|should)n't\b"), r"\1 not"),
    (re.compile(r"\b(Dr|Mr|Mrs|Ms|St)\. "), r"\1 "),
)


class Fact(NamedTuple):
    """Statement about one subject."""

    subject: str
    relation: str
    value: str
    has_change: bool
    """The text has a word of change, such as "now"."""
    needs_change: bool
    """A text needs a word of change to supersede another one with this relation."""
    is_end: bool
    """The text says that the value is no longer true."""


def read_facts(text: str) -> list[Fact]:
    """Return the facts in a text that the rule understands. A relation with two values is left out."""
    if len(text) > MAX_LENGTH or not _HAS_RELATION.search(text):
        return []
    for pattern, replacement in _CONTRACTIONS:
        text = pattern.sub(replacement, text)
    if _ADDITION.search(text):
        return []
    facts: dict[tuple[str, str, bool], Fact | None] = {}
    for sentence in _SENTENCE.split(text):
        sentence = sentence.strip()
        if not sentence or sentence[-1] in "?？":
            continue
        for fact in _read_sentence(sentence.rstrip(".!。！；, ")):
            key = fact.subject, fact.relation, fact.is_end
            known = facts.setdefault(key, fact)
            if known is not None and known.value != fact.value:
                facts[key] = None
    return [fact for fact in facts.values() if fact is not None]


def _read_sentence(sentence: str) -> list[Fact]:
    ends = [fact for one in _ENDED if (fact := _read_fact(one, sentence, True)) is not None]
    if ends or _DOUBT.search(sentence):
        return ends
    relations = _RELATIONS if sentence.isascii() or not re.search("[一-龥]", sentence) else _CHINESE
    return [fact for one in relations if (fact := _read_fact(one, sentence, False)) is not None]


def _read_fact(relation: _Relation, sentence: str, is_end: bool) -> Fact | None:
    match = relation.pattern.search(sentence)
    if match is None:
        return None
    groups = match.groupdict()
    subject, noun = groups["subject"] or "", groups.get("noun") or ""
    if subject.split(" ")[0].lower().removesuffix("'s") in _NO_NAME - _OWN - {"the", "our", "user"}:
        return None
    subject, noun = subject.lower(), noun.lower().replace("favour", "favor")
    if subject == "user":
        subject = "the user"
    words = noun.split(" ")
    has_change = _CHANGE.search(sentence) is not None or "new" in words
    if {"old", "first", "last", "previous", "next", "ex"} & set(words):
        return None
    noun = " ".join(word for word in words if word not in ("new", "current"))
    needs_change = relation.needs_change or subject.split(" ")[0] in ("the", "our")
    last = subject.split(" ")[-1]
    if last in _SIBLING.split("|") or subject[1:] in ("妹妹", "姐姐", "哥哥", "弟弟"):
        needs_change = True  # a person may have two brothers
    value = re.sub(r"\b(?:now|these days|nowadays|currently)$", "", groups["value"].lower()).strip(" .")
    return Fact(subject, relation.name or noun, value, has_change, needs_change, is_end) if value else None


def supersedes(newer: Fact, older: Fact) -> bool:
    """Return True if the newer fact replaces the older one."""
    if (newer.subject, newer.relation) != (older.subject, older.relation) or older.is_end:
        return False
    if newer.is_end:
        return newer.value == older.value
    if is_same(newer.value, older.value):
        return False
    if newer.relation == "age":
        return int(newer.value) > int(older.value)
    if newer.relation == "status":
        return newer.value.split(" ")[0] != older.value.split(" ")[0] or " to " in newer.value and " to " in older.value
    if (newer.needs_change or older.needs_change) and not newer.has_change:
        return False
    if newer.relation == "preference":
        return newer.value.split(" ")[-1] == older.value.split(" ")[-1]
    if newer.relation == "home" and not newer.has_change:
        return (newer.value in REGIONS) == (older.value in REGIONS)
    return True


def is_same(value: str, other: str) -> bool:
    """Return True if one value has all words of the other one, or its initials."""
    words, other_words = (re.findall(r"[^\W_]+", one.removesuffix("'s")) for one in (value, other))
    if set(words) <= set(other_words) or set(other_words) <= set(words):
        return True
    return any(
        len(a) == 1 and len(b) > 1 and a[0] == "".join(word[0] for word in b)
        for a, b in ((words, other_words), (other_words, words))
    )
