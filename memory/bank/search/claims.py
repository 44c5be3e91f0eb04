"""Claims of short texts: subject, attribute and value, read with a closed list of patterns.

`memory/bank/search/changes.py` compares claims and describes the rule.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from scrubjay.memory.bank.search.places import REGIONS

MAX_LENGTH = 600
"""Characters of the longest text that is read. Longer texts report or explain, and make no claim."""

_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_UNIQUE = (
    "mother|mom|mum|father|dad|husband|wife|spouse|partner|girlfriend|boyfriend|fiancée|fiancé|fiance|boss"
)
_RELATIVE = (
    f"{_UNIQUE}|brother|sister|son|daughter|cousin|uncle|aunt|nephew|niece|friend|best friend|colleague|"
    "coworker|neighbor|neighbour|roommate|flatmate|manager|twin|grandmother|grandfather|grandma|grandpa"
)
_NAME = r"(?:Dr\.? |Mr\.? |Ms\.? |Mrs\.? )?[A-Z][\w'’-]*\w(?: [A-Z][\w'’-]*\w){0,2}"
_WORD = r"[A-Z][\w.'’&-]*"
_LINK = r"(?:,? | (?:of|de|del|la|le|am|an der|and Co|&) )"
_PROPER = rf"(?:(?:the |St\.? )?{_WORD}(?:{_LINK}{_WORD}){{0,4}})"
_NOW = (
    r"(?:,? (?:now|currently|these days|nowadays|at the moment|right now|instead|today|yesterday|recently"
    r"|again|already|from now on|for good|for work|full[- ]time|last (?:week|month|\w+day)"
    r"|this (?:week|month|year)|on \w+day"
    rf"|in (?:{_MONTHS.title()})"
    r"|(?:now )?with my (?:wife|husband|family|partner|girlfriend|boyfriend|parents|kids|children)"
    rf"|since (?:(?:{_MONTHS.title()})|last \w+|\d{{4}})))*"
)
_LEAD = re.compile(
    r"(?:(?i:well|hey|hi|so|and|yes|yeah|ok|okay|oh|actually|currently|now|today|these days"
    r"|nowadays|as of today|as of now|right now|at the moment|by the way|btw|fyi|big news"
    r"|good news|update|news|remember|please note|note|finally|recently"
    r"|remember that|note that|guess what)[,:!]? )*"
)
_ADVERB = r"(?:(?:now|currently|just|recently|finally|actually|already|still) )*"
_HAVE = r"(?:(?:have|has|['’]ve|['’]s) )?"
_BE = r"(?:am|is|are)"
# A sentence with one of these makes no claim, or not one about the present and the whole.
_DOUBTS = """
also too another second additionally besides other others both either neither half part-time weekend
weekends weekday weekdays summer summers winter winters evening evenings night nights morning mornings
sometimes often usually occasionally mostly during temporarily until while if unless would will might may
could should shall can must want wish hope hoping plan plans planning gonna maybe perhaps probably
possibly almost nearly say says said told tells think thinks thought believe believes heard dream dreamed
dreamt imagine suppose pretend novel game story character kidding joking once when ago then least never
next tomorrow soon considering thinking fake hypothetical side interview offer apply applied team
department role
"""
_DOUBT_WORDS = frozenset(_DOUBTS.split())
_DOUBT_PHRASE = re.compile(
    r"\b(?:as well|part time|going to|about to|one of|not sure|in \d{4}|last (?:year|night|summer|winter)"
    r"|years? back)\b"
)
_SENTENCE_END = re.compile(r"[.!?]+(?=\s|$)|[。！？]+|\n+")
_ABBREVIATIONS = (" Dr", " Mr", " Mrs", " Ms", " St")
_PREFIX = re.compile(r"([^\W\d_][\w .-]{0,29}): (?=\S)")

_SUBJECT = (
    r"(?:(?P<i>I)|(?P<user>(?:[Tt]he )?(?:user|User))"
    rf"|[Mm]y (?P<kin>{_RELATIVE})(?:,? (?P<kinname>{_NAME}),?)?|(?P<name>{_NAME}))"
)
_OWNER = (
    r"(?:(?P<i>[Mm]y)|(?P<user>(?:[Tt]he )?(?:user|User))['’]s"
    rf"|[Mm]y (?P<kin>{_RELATIVE})(?: (?P<kinname>{_NAME}))?['’]s|(?P<name>{_NAME})['’]s)"
)
_COLORS = (
    "colou?r|food|drink|meal|dish|dessert|fruit|vegetable|snack|coffee|tea|beer|wine|animal|season|sport"
)
_TASTES = (
    f"{_COLORS}|book|author|writer|movie|film|show|series|song|band|singer|artist|album|game"
    r"|restaurant|café|cafe"
    r"|bar|place|city|country|team|(?:football|soccer|basketball|baseball|hockey) team|player|subject|number"
    "|flower|holiday|hobby|genre|brand|actor|actress|ice cream|flavou?r|pizza|cuisine|month|day of the week"
)
_ENDING = rf"(?P<tail>{_NOW})"


class _Clause(NamedTuple):
    attribute: str
    pattern: re.Pattern[str]
    is_end: bool
    words: frozenset[str]
    """Words of which each match contains at least one."""


def _clause(attribute: str, words: str, pattern: str, is_end: bool = False) -> _Clause:
    return _Clause(attribute, re.compile(pattern + _ENDING), is_end, frozenset(re.findall(r"[\w-]+", words)))


_SUBJECT_OR_NONE = rf"(?:{_SUBJECT}(?: |(?=['’])))?"
_S = _SUBJECT_OR_NONE + _HAVE + _ADVERB
_ING = rf"(?:{_BE} |['’]m |['’]s )?{_ADVERB}"
_AM = rf"(?:{_BE} |['’]m |['’]s )"
_STATUS = "single|engaged|married|divorced|separated|widowed"
_NOT = r"(?:no longer|don['’]t|do not|doesn['’]t|does not)"
_POSSESSIVE = r"(?:my|his|her|their)"
_NEW = r"(?: (?:new|current))?"
_KINDS_OF_NUMBER = r"(?:(?:work|home|office|mobile|cell|private) )?(?:phone |telephone |mobile )?number"
_KINDS_OF_EMAIL = r"(?:(?:work|home|school|private|personal) )?e-?mail"
_KINDS_OF_SECRET = r"(?:(?:[Ww]i-?[Ff]i|door|gate|alarm) )?(?:password|PIN|pin|code|passcode)"
_OWN = "gym|dentist|doctor|therapist|bank|job|employer|school|major|username|car"
_TWO = r"[\w'’-]+(?: [\w'’-]+)?"
_CLAUSES = [
    _clause(
        "home", "live lives living", rf"{_S}(?:[Ll]ives?|{_ING}[Ll]iving) {_ADVERB}in (?P<value>{_PROPER})"
    ),
    _clause("home", "based", rf"{_S}{_ING}[Bb]ased in (?P<value>{_PROPER})"),
    _clause(
        "home",
        "moved relocated",
        rf"{_S}(?:left {_PROPER} and )?(?:[Mm]oved|[Rr]elocated) (?:back )?(?:from {_PROPER} )?to "
        rf"(?P<value>{_PROPER})",
    ),
    _clause("home", "live lives", rf"{_S}{_NOT} lives? in (?P<value>{_PROPER})(?: any ?more)?", True),
    _clause("home", "live", rf"{_S}[Uu]sed to live in (?P<value>{_PROPER})", True),
    _clause(
        "work",
        "work works working teach teaches",
        rf"{_S}(?:[Ww]orks?|{_ING}[Ww]orking|[Tt]each(?:es)?|[Ss]tarted working) {_ADVERB}(?:at|for) "
        rf"(?P<value>{_PROPER})",
    ),
    _clause("work", "employed", rf"{_S}{_ING}[Ee]mployed (?:at|by) (?P<value>{_PROPER})"),
    _clause(
        "work",
        "job",
        rf"{_S}(?:(?:got|Got)|[Ss]tarted|[Tt]ook|[Ll]anded) (?:a|{_POSSESSIVE}) (?:new )?job (?:at|with) "
        rf"(?P<value>{_PROPER})",
    ),
    _clause("work", "work works", rf"{_S}{_NOT} works? (?:at|for) (?P<value>{_PROPER})(?: any ?more)?", True),
    _clause(
        "work",
        "work job retired quit left fired laid",
        rf"{_S}(?:[Uu]sed to work (?:at|for)|(?:[Qq]uit|[Ll]eft) (?:{_POSSESSIVE}|the) job at|[Rr]etired from"
        r"|[Qq]uit"
        rf"|[Ll]eft|(?:got|Got) (?:fired|laid off) (?:from|by)) (?P<value>{_PROPER})",
        True,
    ),
    _clause("work", "job", rf"{_S}(?:[Qq]uit|[Ll]eft|[Ll]ost) {_POSSESSIVE} job(?P<value>)", True),
    _clause(
        "job", "work works working", rf"{_S}(?:[Ww]orks?|{_ING}[Ww]orking) {_ADVERB}as an? (?P<value>{_TWO})"
    ),
    _clause(
        "school",
        "study studies studying transferred",
        rf"{_S}(?:(?:[Ss]tud(?:y|ies)|{_ING}[Ss]tudying) at|[Tt]ransferred to) (?P<value>{_PROPER})",
    ),
    _clause("status", _STATUS, rf"{_S}(?:{_AM}|(?:got|Got) ){_ADVERB}(?P<value>{_STATUS})(?: to {_NAME})?"),
    _clause(
        "age",
        "old turned",
        rf"{_S}(?:{_AM}{_ADVERB}(?P<value>\d{{1,3}}) years old|[Tt]urned (?P<value2>\d{{1,3}}))",
    ),
    _clause("name", "name", rf"{_OWNER} (?:(?:new|full) )?name is {_ADVERB}(?P<value>{_NAME})"),
    _clause("name", "name", rf"{_S}[Cc]hanged {_POSSESSIVE} name to (?P<value>{_NAME})"),
    _clause(
        "chief",
        "boss landlord landlady",
        rf"{_OWNER}{_NEW} (?P<thing>boss|landlord|landlady) is {_ADVERB}(?P<value>{_NAME})",
    ),
    _clause(
        "favorite",
        "favorite favourite",
        rf"{_OWNER}{_NEW} favou?rite (?P<thing>{_TASTES}) is {_ADVERB}"
        r"(?P<value>[\w'’&-]+(?: [\w'’&-]+){0,4}?)",
    ),
    _clause(
        "contact",
        "number",
        rf"{_OWNER}{_NEW} (?P<thing>{_KINDS_OF_NUMBER}) is {_ADVERB}(?P<value>\+?\d[\d ()-]{{2,20}}\d)",
    ),
    _clause(
        "contact",
        "email e-mail",
        rf"{_OWNER}{_NEW} (?P<thing>{_KINDS_OF_EMAIL})(?: address)? is {_ADVERB}"
        r"(?P<value>[\w.+-]+@[\w.-]*\w)",
    ),
    _clause(
        "address",
        "address",
        rf"{_OWNER}{_NEW} (?P<thing>(?:(?:home|work|office|postal|mailing) )?address) is {_ADVERB}"
        r"(?P<value>\d+[\w ,.'’-]{3,50}?)",
    ),
    _clause(
        "secret",
        "password passcode pin code",
        rf"(?:{_OWNER}|[Tt]he){_NEW} (?P<thing>{_KINDS_OF_SECRET}) is {_ADVERB}(?P<value>\S*\d\S*)",
    ),
    _clause(
        "own",
        _OWN,
        rf"{_OWNER}{_NEW} (?P<thing>{_OWN}) is {_ADVERB}(?:an? |the )?(?P<value>{_TWO}|{_NAME})",
    ),
    _clause("choice", "prefer prefers", rf"{_S}[Pp]refers? (?P<value>{_TWO} (?:to|over) {_TWO})"),
]
_CHINESE = [
    _Clause(
        attribute,
        re.compile(f"(?P<lead>我现在|现在我|我)(?P<kin>妈妈|爸爸|妻子|丈夫|老婆|老公)?{pattern}"),
        False,
        frozenset(),
    )
    for attribute, pattern in [
        ("home", r"(?:现在|目前)?(?:住在|搬到|搬去)了?(?P<value>[^\W\d_]{2,8}?)了?"),
        ("work", r"(?:现在|目前)?在(?P<value>[^\W\d_]{2,8}?)(?:工作|上班)了?"),
        ("contact number", r"的?新?(?:手机号|电话|手机号码)(?:现在)?是(?P<value>\d{5,15})"),
        ("contact email", r"的?新?(?:邮箱|邮箱地址)(?:现在)?是(?P<value>[\w.+-]+@[a-zA-Z0-9.-]+)"),
    ]
]
_HAN = re.compile(r"[\u4e00-\u9fff]")
_CHINESE_DOUBT = re.compile("也|还|想|要|会|可能|如果|吗|过|曾|以前|周末|另|说|觉得|打算|准备")
# A sentence without one of these words makes no claim.
_HINTS = frozenset().union(*(clause.words for clause in _CLAUSES))
_CHINESE_HINTS = frozenset("住搬班作机话箱")
_NOW_WORDS = frozenset(("now", "new", "currently", "nowadays", "instead"))
_MAY = re.compile(r"(?<=[a-z] )May\b")
_PART = re.compile(r"(?:;|,? but|,? so|,? and|,) (?=I(?: |['’]))|,? (?:but|because|since I|as I) |; ")
_MARKS = str.maketrans(dict.fromkeys(".,!?;:()\n\t", " "))
_OTHER_WORDS = """
My Our Which Grandma Grandpa Grandmother Grandfather Uncle Aunt Brother Sister He She They We You It This
That There Here What Who Where Everyone Someone Nobody People Each Both Also Never Please And But So Yes
No Not Then Now Today Finally Currently Actually Recently Just Lives Works Moved
"""
_NO_NAMES = frozenset(_OTHER_WORDS.split())
_CHINESE_REGIONS = """
中国 美国 日本 英国 法国 德国 韩国 广东 江苏 浙江 山东 四川 湖南 湖北 河南 河北 福建 安徽 云南
"""
_PROVINCES = frozenset(_CHINESE_REGIONS.split())
_OPEN_ATTRIBUTES = ("job", "own")
"""Attributes of which a person may have several, so that only a text with "now" replaces another one."""


class Claim(NamedTuple):
    """Claim of a text about a subject."""

    subject: str
    attribute: str
    """Attribute, with its kind where it has several, such as "favorite color"."""
    value: tuple[str, ...]
    """Words of the value in lower case; empty if the claim ends every value."""
    is_end: bool
    """The text says that the value no longer holds."""
    is_first_person: bool
    has_now: bool
    """The sentence has a word such as "now" or "new"."""
    is_bare: bool
    """The claim has no subject, as "Lives in Lyon". It is then about the user."""


def read_claims(text: str) -> tuple[Claim, ...]:
    """Return the claims of a text, at most one with a value and one end per subject and attribute."""
    if not may_claim(text):
        return ()
    prefix = ""
    if match := _PREFIX.match(text):
        prefix, text = match[1].casefold(), text[match.end() :]
    claims: dict[tuple[str, str, bool], Claim | None] = {}
    for place, (sentence, end) in enumerate(_sentences(text)):
        if "?" in end or "？" in end:
            continue
        for claim in _read_sentence(sentence, prefix):
            if claim.is_bare and place:  # its subject is in the sentence before
                continue
            key = (claim.subject, claim.attribute, claim.is_end)
            claims[key] = claim if claims.get(key, claim) == claim else None
    return tuple(claim for claim in claims.values() if claim is not None)


def contradicts(old: Claim, new: Claim) -> bool | None:
    """Return whether a newer claim with the same subject and attribute replaces an older one.

    None means that the newer claim says nothing about the older value.
    """
    if new.is_end:
        return True if not new.value or new.value == old.value else None
    if old.value == new.value:
        return False
    if new.attribute == "age":
        return int(new.value[0]) > int(old.value[0])
    if new.attribute == "choice":
        return True if _reverse(old.value) == new.value else None
    if new.attribute.startswith(_OPEN_ATTRIBUTES) and not new.has_now:
        return None
    if new.attribute.startswith(("secret", "contact")):
        return True
    if set(old.value) <= set(new.value) or set(new.value) <= set(old.value):
        return False
    if _HAN.match(new.value[0]) and (old.value[0] in new.value[0] or new.value[0] in old.value[0]):
        return False
    if _is_acronym(old.value, new.value) or _is_acronym(new.value, old.value):
        return False
    return new.attribute != "home" or _is_region(old.value) == _is_region(new.value)


def _reverse(value: tuple[str, ...]) -> tuple[str, ...]:
    word = "to" if "to" in value else "over"
    place = value.index(word)
    return (*value[place + 1 :], word, *value[:place])


def _is_acronym(short: tuple[str, ...], long: tuple[str, ...]) -> bool:
    first = short[0].replace(".", "")
    initials = "".join(word[0] for word in long)
    return len(short) == 1 and len(long) > 1 and (first == initials or first == initials[:-1])


def _is_region(value: tuple[str, ...]) -> bool:
    place = " ".join(value).removeprefix("the ")
    return place in REGIONS or place in _PROVINCES


def _sentences(text: str) -> list[tuple[str, str]]:
    """Return the sentences of a text, each with its punctuation mark."""
    sentences, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if match[0] == "." and f" {text[start : match.start()]}".endswith(_ABBREVIATIONS):
            continue
        sentences.append((text[start : match.start()].strip(), match[0]))
        start = match.end()
    return [*sentences, (text[start:].strip(), "")]


def may_claim(text: str) -> bool:
    """Return False for a text without a claim. This is a quick test."""
    if len(text) > MAX_LENGTH:
        return False
    if not text.isascii() and not _CHINESE_HINTS.isdisjoint(text):
        return True
    return not _HINTS.isdisjoint(_words(text))


def _words(text: str) -> list[str]:
    return text.lower().translate(_MARKS).split()


def _read_sentence(sentence: str, prefix: str) -> list[Claim]:
    if _HAN.search(sentence):
        return [] if _CHINESE_DOUBT.search(sentence) else _match(sentence, _CHINESE, prefix)
    words = _words(_MAY.sub("", sentence))
    if _HINTS.isdisjoint(words) or not _DOUBT_WORDS.isdisjoint(words):
        return []
    if _DOUBT_PHRASE.search(sentence.lower()):
        return []
    clauses = [clause for clause in _CLAUSES if not clause.words.isdisjoint(words)]
    claims: list[Claim] = []
    for place, part in enumerate(_PART.split(sentence)):
        lead = _LEAD.match(part)
        matches = _match(part[lead.end() :] if lead else part, clauses, prefix)
        claims += [claim for claim in matches if place == 0 or not claim.is_bare]
    return claims


def _match(sentence: str, clauses: list[_Clause], prefix: str) -> list[Claim]:
    for attribute, pattern, is_end, _ in clauses:
        if (match := pattern.fullmatch(sentence)) is None:
            continue
        groups = match.groupdict()
        subject, is_first_person = _subject(groups)
        if subject is None:
            return []
        value = _words(groups.get("value") or groups.get("value2") or "")
        if (not value and not is_end) or not {"and", "or", "not"}.isdisjoint(value):
            return []
        has_now = not _NOW_WORDS.isdisjoint(_words(sentence))
        if groups.get("thing"):
            thing = groups["thing"].casefold().replace("-", "").replace("our", "or")
            attribute = f"{attribute} {thing}"
        subject = f"{prefix}:{subject}"
        is_bare = subject == f"{prefix}:user" and not groups.get("user")
        return [Claim(subject, attribute, tuple(value), is_end, is_first_person, has_now, is_bare)]
    return []


def _subject(groups: dict[str, str | None]) -> tuple[str | None, bool]:
    """Return the key of a subject, and whether it is or belongs to the speaker; None for an unclear one."""
    if groups.get("lead"):
        return f"i {groups['kin'] or ''}", True
    if groups.get("i"):
        return "i ", True
    if groups.get("user"):
        return "user", False
    if kin := groups.get("kin"):
        name = groups.get("kinname")
        if name is None and kin not in _UNIQUE.split("|"):
            return None, True
        return f"i {kin} {(name or '').casefold()}", True
    if name := groups.get("name"):
        return (None, False) if name.split()[0] in _NO_NAMES else (f"name {name.casefold()}", False)
    return "user", False
