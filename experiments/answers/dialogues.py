"""Published dialogues with questions, one record per message.

- LoCoMo (Maharana et al. 2024, arXiv 2402.17753) and REALTALK (Lee et al. 2025, arXiv 2502.13270): chats of
  two people over weeks, written by language models in LoCoMo and by people in REALTALK.
- LongMemEval (Wu et al. 2025, arXiv 2410.10813): 500 questions, each about its own history.
- MemDaily (Zhang et al. 2024, arXiv 2409.20163): messages about daily life to an assistant, in Chinese.
- BEAM (Tavakoli et al. 2025, arXiv 2510.27246): chats of 128K tokens and more with an assistant, in JSON. The
  pickle files next to the JSON are never opened.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scrubjay.experiments.answers.parsing import (
    check_integer,
    expect_format,
    fields,
    items,
    json_files,
    make_conversation,
    read_json,
    references,
    text,
    to_record_text,
)
from scrubjay.experiments.lm.conversations import Conversation, Question, Turn

_LOCOMO_TIME = "%I:%M %p on %d %B, %Y"
_REALTALK_TIME = "%d.%m.%Y, %H:%M:%S"
_STEP = timedelta(seconds=30)
"""Time between two messages, where only their session has a time."""
_LONGMEMEVAL_TIME = "%Y/%m/%d (%a) %H:%M"
_ADVERSARIAL = 5
_ABILITIES = {1: "multi-hop", 2: "temporal", 3: "open-domain", 4: "single-hop"}
_BEAM_BEGIN = datetime(2024, 1, 1, 9, tzinfo=UTC)
_BEAM_DATE = "%B-%d-%Y"
_GROUP_GAP = timedelta(hours=2)
_BEAM_PLACE = re.compile(r"\s*->->[^\n]{0,16}$")
"""Position in the chat plan, which the data set appends to each message."""
_BEAM_ANSWERS = ("answer", "ideal_response", "ideal_answer", "ideal_summary")
"""Keys of the answer, which depend on the question type."""


def read_locomo(path: str | Path) -> list[Conversation]:
    """Read the conversations of a `locomo10.json`; each turn is a record, with captions for pictures.

    Questions of category 5, which have no answer, are omitted. Raises UsageError on another format.
    """
    path = Path(path)
    with expect_format("LoCoMo", path):
        return [_locomo(fields(sample)) for sample in items(read_json(path))]


def read_realtalk(folder: str | Path) -> list[Conversation]:
    """Read the chats in REALTALK's folder `data`; each message is a record, with captions for pictures.

    Chats are named by their files. Questions of category 5 are omitted. Raises UsageError on another format.
    """
    folder = Path(folder)
    with expect_format("REALTALK", folder):
        return [_realtalk(path) for path in json_files(folder)]


def _locomo(sample: dict[str, Any]) -> Conversation:
    turns, ids = [], []
    talk = fields(sample["conversation"])
    for name in _sessions(talk):
        begin = datetime.strptime(text(talk[f"{name}_date_time"]), _LOCOMO_TIME).replace(tzinfo=UTC)
        for number, turn in enumerate(items(talk[name])):
            ids.append(text(turn["dia_id"]))
            turns.append(Turn(_format_turn(turn, "text"), begin + number * _STEP))
    return make_conversation(turns, _read_questions(sample, ids), text(sample["sample_id"]))


def _realtalk(path: Path) -> Conversation:
    with expect_format("REALTALK", path):
        chat, turns, ids = fields(read_json(path)), [], []
        for turn in (turn for name in _sessions(chat) for turn in items(chat[name])):
            ids.append(text(turn["dia_id"]))
            moment = datetime.strptime(text(turn["date_time"]), _REALTALK_TIME).replace(tzinfo=UTC)
            turns.append(Turn(_format_turn(turn, "clean_text"), moment))
        return make_conversation(turns, _read_questions(chat, ids), path.stem)


def _sessions(talk: dict[str, Any]) -> list[str]:
    numbers = [int(name[8:]) for name in talk if re.fullmatch(r"session_[0-9]{1,4}", name)]
    return [f"session_{number}" for number in sorted(numbers)]


def _format_turn(turn: Any, key: str) -> str:
    caption = f" [{turn['blip_caption']}]" if fields(turn).get("blip_caption") else ""
    return to_record_text(f"{text(turn['speaker'])}: {text(turn[key])}{caption}")


def _read_questions(sample: dict[str, Any], ids: list[str]) -> Iterator[Question]:
    place = {id: number for number, id in enumerate(ids)}
    for item in items(sample["qa"]):
        if item["category"] != _ADVERSARIAL:
            evidence = re.findall(r"D\d+:\d+", " ".join(map(text, items(item.get("evidence", [])))))
            yield Question(
                text(item["question"]),
                frozenset(place[i] for i in evidence if i in place),
                _ABILITIES[item["category"]],
                references=references(item.get("answer")),
            )


def read_longmemeval(path: str | Path) -> list[Conversation]:
    """Read the histories in a `longmemeval_*.json`; each message is a record.

    A history has the id of its question as its name. Messages marked `has_answer` are the evidence.
    Abstention questions are omitted. Sessions are sorted by date. Raises UsageError on another format.
    """
    path = Path(path)
    with expect_format("LongMemEval", path):
        conversations = [_history(fields(one)) for one in items(read_json(path))]
    return [one for one in conversations if one.questions]


def _history(one: dict[str, Any]) -> Conversation:
    turns, answers = [], set()
    dates = map(_history_time, items(one["haystack_dates"]))
    sessions = list(zip(dates, items(one["haystack_sessions"]), strict=True))
    for begin, session in sorted(sessions, key=lambda pair: pair[0]):
        for number, message in enumerate(items(session)):
            if fields(message).get("has_answer"):
                answers.add(len(turns))
            turns.append(Turn(to_record_text(message["content"]), begin + number * _STEP))
    name = text(one["question_id"])
    question = Question(
        text(one["question"]),
        frozenset(answers),
        text(one["question_type"]),
        _history_time(one["question_date"]),
        references=references(one.get("answer")),
    )
    return make_conversation(turns, [] if name.endswith("_abs") else [question], name)


def _history_time(date: Any) -> datetime:
    return datetime.strptime(text(date), _LONGMEMEVAL_TIME).replace(tzinfo=UTC)


def read_memdaily(folder: str | Path, pools: Iterable[Iterable[str]] | None = None) -> list[Conversation]:
    """Read MemSim's folder `messages_and_QAs`; each pool of trajectories becomes one conversation.

    A pool is a list of trajectory names. A trajectory's name consists of a file name and a number, e.g.
    "01_simple_events/12". Without pools, each trajectory is a conversation. A question's ability is the file
    name, e.g. "01_simple_events". Raises UsageError on another format or an unknown trajectory.
    """
    folder = Path(folder)
    with expect_format("MemDaily", folder):
        trajectories: dict[str, Any] = {}
        for path in json_files(folder):
            with expect_format("MemDaily", path):
                entries = items(read_json(path))
                trajectories.update((f"{path.stem}/{number}", one) for number, one in enumerate(entries))
        name_lists = [[name] for name in trajectories] if pools is None else map(list, pools)
        return [_pool(names, trajectories) for names in name_lists]


def _pool(names: list[str], trajectories: dict[str, Any]) -> Conversation:
    turns: list[Turn] = []
    questions = []
    for name in names:
        trajectory, begin = fields(trajectories[name]), len(turns)
        messages = items(trajectory["message_list"])
        for message in messages:
            year, month, day, hour, minute = map(int, re.findall(r"\d+", text(message["time"]))[:5])
            turns.append(
                Turn(to_record_text(message["message"]), datetime(year, month, day, hour, minute, tzinfo=UTC))
            )
        for item in items(trajectory["question_list"]):
            steps = map(check_integer, items(item["target_step_id"]))
            places = frozenset(begin + step for step in steps if 0 <= step < len(messages))
            if places:
                ability, answers = name.partition("/")[0], references(item.get("answer"))
                questions.append(Question(text(item["question"]), places, ability, references=answers))
    return make_conversation(turns, questions, names[0])


def read_beam(folder: str | Path) -> list[Conversation]:
    """Read the chats in a folder such as `chats/100K`; each message is a record.

    A chat has the name of its folder. If a folder also has a shortened chat, the full chat is ignored, as in
    the authors' evaluation. Only some groups of messages have a date in the files. Any other group begins two
    hours after the previous group. Raises UsageError on another format.
    """
    folder = Path(folder)
    with expect_format("BEAM", folder):
        chats = sorted((path for path in folder.iterdir() if path.is_dir()), key=_by_number)
        if not chats:
            raise ValueError("the folder contains no chat folders")
        return [_beam(path) for path in chats]


def _beam(folder: Path) -> Conversation:
    short_path = folder / "chat_trunecated.json"
    path = short_path if short_path.exists() else folder / "chat.json"
    with expect_format("BEAM", path):
        turns, place = _beam_messages(read_json(path))
    path = folder / "probing_questions" / "probing_questions.json"
    with expect_format("BEAM", path):
        questions = [
            Question(
                text(probe["question"]),
                frozenset(place[i] for i in _numbers(fields(probe).get("source_chat_ids")) if i in place),
                ability,
                references=references(next((probe[name] for name in _BEAM_ANSWERS if name in probe), None)),
            )
            for ability, probes in fields(read_json(path)).items()
            for probe in items(probes)
        ]
    return make_conversation(turns, questions, folder.name)


def _beam_messages(batches: Any) -> tuple[list[Turn], dict[int, int]]:
    """Return the messages of a chat, and the index of each message by its id."""
    turns: list[Turn] = []
    place: dict[int, int] = {}
    now = _BEAM_BEGIN
    for group in itertools.chain.from_iterable(items(fields(batch)["turns"]) for batch in items(batches)):
        for message in items(group):
            anchor = fields(message).get("time_anchor")
            if anchor is not None:
                # Dates of a plan may be in another order than the messages.
                now = max(now, datetime.strptime(text(anchor), _BEAM_DATE).replace(hour=9, tzinfo=UTC))
            place[check_integer(message["id"])] = len(turns)
            turns.append(Turn(to_record_text(_BEAM_PLACE.sub("", text(message["content"]))), now))
            now += _STEP
        now += _GROUP_GAP
    return turns, place


def _numbers(value: Any) -> Iterator[int]:
    """Yield all integers in nested lists and objects."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _numbers(one)
    elif isinstance(value, int):
        yield value


def _by_number(path: Path) -> tuple[int, str]:
    return int(path.name) if path.name.isdecimal() else -1, path.name
