"""Tests of the data set readers: published formats, and one-line errors on malformed files."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from scrubjay.experiments.answers.agentbench import read_agentbench
from scrubjay.experiments.answers.datasets import with_evidence
from scrubjay.experiments.answers.dialogues import (
    read_beam,
    read_locomo,
    read_longmemeval,
    read_memdaily,
    read_realtalk,
)
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.memory import MemoryBank


def turn(number, text, key="text", **more):
    return {"dia_id": f"D1:{number}", "speaker": "Ada", key: text, **more}


QA = [
    {"question": "What flew?", "evidence": ["D1:2; D9:9"], "category": 4},
    {"question": "When?", "evidence": ["D1:1", "D1:2"], "category": 2},
    {"question": "Nobody said?", "evidence": ["D1:1"], "category": 5},
    {"question": "No evidence?", "category": 1},
]
LOCOMO = [
    {
        "sample_id": "conv-7",
        "conversation": {
            "session_1_date_time": "1:30 pm on 8 May, 2023",
            "session_1": [turn(1, "Hello."), turn(2, "Look!", blip_caption="a red kite")],
        },
        "qa": QA,
    }
]
REALTALK = {
    "name": {"speaker_1": "Ada", "speaker_2": "Ben"},
    "session_10": [turn(3, "Bye.", "clean_text", date_time="30.12.2023, 10:00:00")],
    "session_1": [
        turn(1, "Hello.", "clean_text", date_time="29.12.2023, 00:51:12"),
        turn(2, "Look!", "clean_text", date_time="29.12.2023, 00:52:00", blip_caption="a red kite"),
    ],
    "session_1_date_time": "29.12.2023",
    "events_session_1": {"agent_a": []},
    "qa": QA,
}
LONGMEMEVAL = {
    "question_id": "q1",
    "question_type": "multi-session",
    "question": "Which two?",
    "question_date": "2023/05/30 (Tue) 23:40",
    "answer": "a and b",
    "haystack_session_ids": ["later", "earlier"],
    "haystack_dates": ["2023/05/20 (Sat) 02:21", "2023/05/10 (Wed) 10:00"],
    "haystack_sessions": [
        [
            {"role": "user", "content": "I like a.", "has_answer": True},
            {"role": "assistant", "content": "Nice."},
        ],
        [{"role": "user", "content": "I like b.", "has_answer": True}],
    ],
}
BEAM = [
    {
        "batch_number": 1,
        "time_anchor": None,
        "turns": [
            [
                {"role": "user", "id": 0, "content": "Plan it. ->-> 1,1", "time_anchor": "March-15-2024"},
                {"role": "assistant", "id": 1, "content": "Here ->-> is\na plan."},
            ],
            [{"role": "user", "id": 2, "content": "And now? ->-> 1,N/A"}],
        ],
    }
]
PROBES = {
    "abstention": [{"question": "Nothing?", "rubric": []}],
    "knowledge_update": [
        {"question": "How long?", "source_chat_ids": {"original_info": [0], "updated_info": [2, 99]}}
    ],
    "information_extraction": [{"question": "Which plan?", "source_chat_ids": [1]}],
}
FACTS = "Here is a list of facts:\n" + "\n".join(
    f"{n}. The river of land {n} is called r{n}." for n in range(20)
)
AGENTBENCH = {
    "context": FACTS,
    "questions": ["Which river has land 3?", "What is it called?", "Which has land 90?"],
    "answers": [["R3", "three"], ["called"], ["r90"]],
    "metadata": {"source": "factconsolidation_sh_6k"},
}
TRAJECTORIES = [
    {
        "message_list": [
            {"message": f"{number}: {word}", "time": "2024年07月05日 周五 08:30"} for word in "ab"
        ],
        "question_list": [{"question": f"{number}?", "target_step_id": [1, 7]}],
    }
    for number in range(4)
]


def put(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def put_beam(folder, chat=BEAM, probes=PROBES, name="chat.json"):
    put(folder / "3" / name, chat)
    put(folder / "3" / "probing_questions" / "probing_questions.json", probes)
    return folder


def list_questions(conversation):
    return [(one.text, one.answers, one.ability) for one in conversation.questions]


def texts(conversation):
    return [one.text for one in conversation.turns]


def test_locomo_leaves_out_what_has_no_answer_or_evidence(tmp_path):
    (conversation,) = read_locomo(put(tmp_path / "locomo.json", LOCOMO))
    assert conversation.name == "conv-7"
    assert texts(conversation) == ["Ada: Hello.", "Ada: Look! [a red kite]"]
    began = datetime(2023, 5, 8, 13, 30, tzinfo=UTC)
    assert [one.observed for one in conversation.turns] == [began, began + timedelta(seconds=30)]
    assert list_questions(conversation) == [("What flew?", {1}, "single-hop"), ("When?", {0, 1}, "temporal")]


def test_realtalk_is_read_in_the_order_of_its_sessions_with_its_own_moments(tmp_path):
    put(tmp_path / "Chat_1_Ada_Ben.json", REALTALK)
    (conversation,) = read_realtalk(tmp_path)
    assert conversation.name == "Chat_1_Ada_Ben"
    assert texts(conversation) == ["Ada: Hello.", "Ada: Look! [a red kite]", "Ada: Bye."]
    assert conversation.turns[1].observed == datetime(2023, 12, 29, 0, 52, tzinfo=UTC)
    assert list_questions(conversation) == [("What flew?", {1}, "single-hop"), ("When?", {0, 1}, "temporal")]


def test_longmemeval_puts_sessions_in_the_order_of_their_dates(tmp_path):
    silent = {**LONGMEMEVAL, "question_id": "q2_abs"}
    (conversation,) = read_longmemeval(put(tmp_path / "s.json", [LONGMEMEVAL, silent]))
    assert conversation.name == "q1"
    assert texts(conversation) == ["I like b.", "I like a.", "Nice."]
    assert list_questions(conversation) == [("Which two?", {0, 1}, "multi-session")]
    assert conversation.questions[0].at == datetime(2023, 5, 30, 23, 40, tzinfo=UTC)
    moments = [one.observed for one in conversation.turns]
    assert moments == sorted(moments)


def test_beam_knows_sources_in_any_list_and_loses_the_places_of_its_plan(tmp_path):
    (conversation,) = read_beam(put_beam(tmp_path))
    assert conversation.name == "3"
    assert texts(conversation) == ["Plan it.", "Here ->-> is\na plan.", "And now?"]
    assert list_questions(conversation) == [
        ("How long?", {0, 2}, "knowledge_update"),
        ("Which plan?", {1}, "information_extraction"),
    ]
    first, second, third = (one.observed for one in conversation.turns)
    assert first.date() == datetime(2024, 3, 15, tzinfo=UTC).date()
    assert second - first < timedelta(hours=1) < third - second


def test_of_a_chat_that_was_shortened_the_short_one_is_read(tmp_path):
    put_beam(tmp_path)
    put_beam(tmp_path, [{"turns": BEAM[0]["turns"][:1]}], name="chat_trunecated.json")
    (conversation,) = read_beam(tmp_path)
    assert len(conversation.turns) == 2
    assert list_questions(conversation)[0] == ("How long?", {0}, "knowledge_update")


@pytest.mark.parametrize(
    "suffix", [".json", ".jsonl", pytest.param(".parquet", marks=pytest.mark.requires("pyarrow"))]
)
def test_agentbench_knows_an_answer_by_its_words(tmp_path, suffix):
    path = tmp_path / f"conflict{suffix}"
    if suffix == ".parquet":
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([AGENTBENCH]), path)
    else:
        put(path, AGENTBENCH if suffix == ".jsonl" else [AGENTBENCH])
    (conversation,) = with_evidence(read_agentbench(path))
    assert texts(conversation) == FACTS.split("\n")[1:]
    # "called" stands in all facts and "r90" in none.
    assert list_questions(conversation) == [("Which river has land 3?", {3}, "factconsolidation_sh_6k")]


def test_agentbench_reads_a_text_by_passages(tmp_path):
    prose = "\n\n".join(f"Chapter {n} is long. " + "And so on. " * 40 for n in range(12))
    row = {"context": prose, "questions": ["Which?"], "answers": ["chapter 7"], "metadata": None}
    (conversation,) = read_agentbench(put(tmp_path / "text.json", [row]))
    assert max(map(len, texts(conversation))) <= 600
    ((_, places, _),) = list_questions(conversation)
    assert {"Chapter 7" in texts(conversation)[place] for place in places} == {True}


def test_memdaily_pools_the_trajectories_that_are_named(tmp_path):
    put(tmp_path / "01_simple_events.json", TRAJECTORIES)
    pools = [["01_simple_events/2", "01_simple_events/0"], ["01_simple_events/3"]]
    conversations = read_memdaily(tmp_path, pools)
    assert [texts(one) for one in conversations] == [["2: a", "2: b", "0: a", "0: b"], ["3: a", "3: b"]]
    assert list_questions(conversations[0]) == [
        ("2?", {1}, "01_simple_events"),
        ("0?", {3}, "01_simple_events"),
    ]


FOLDERS = ("REALTALK", "BEAM", "MemDaily")
READERS = {
    "LoCoMo": read_locomo,
    "REALTALK": read_realtalk,
    "LongMemEval": read_longmemeval,
    "MemoryAgentBench": read_agentbench,
    "BEAM": read_beam,
    "MemDaily": lambda path: read_memdaily(path, [["set/0"]]),
}


def read_all(folder, name, value):
    """Read a JSON value as a file of the named data set."""
    if name == "BEAM":
        return read_beam(put_beam(folder, value))
    path = put(folder / "set.json", value)
    if name == "MemDaily":
        return read_memdaily(folder, [["set/0"]])
    if name == "REALTALK":
        return read_realtalk(folder)
    return {"LoCoMo": read_locomo, "LongMemEval": read_longmemeval, "MemoryAgentBench": read_agentbench}[
        name
    ](path)


WHOLE = {
    "LoCoMo": LOCOMO,
    "REALTALK": REALTALK,
    "LongMemEval": [LONGMEMEVAL],
    "MemoryAgentBench": [AGENTBENCH],
    "BEAM": BEAM,
    "MemDaily": TRAJECTORIES,
}


def corrupt(value):
    """Yield copies of a value with one part of another type, or missing."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        for wrong in (None, 7, "x", [], {}, ["y"], {"z": 1}, "\ud800", -(10**30)):
            copy = value.copy()
            copy[key] = wrong
            yield copy
        if isinstance(value, dict):
            yield {name: one for name, one in value.items() if name != key}
        for inner in corrupt(part):
            copy = value.copy()
            copy[key] = inner
            yield copy


@pytest.mark.one_in(3, rest="slow")
@pytest.mark.parametrize("name", WHOLE)
def test_what_a_stranger_wrote_is_read_or_refused_in_one_line(tmp_path, name):
    num_read, errors = 0, []
    for value in [None, 7, "x", [], {}, *corrupt(WHOLE[name])]:
        try:
            conversations = read_all(tmp_path, name, value)
        except UsageError as error:
            errors.append(str(error))
        else:
            num_read += 1
            bank = MemoryBank(":memory:")
            for one in conversations:
                assert all(0 <= place < len(one.turns) for q in one.questions for place in q.answers)
                for record in one.turns:
                    bank.add(record.text, observed=record.observed)
                for question in one.questions:
                    bank.search(question.text)
    assert num_read > 0
    assert len(errors) > 20
    assert all(str(tmp_path) in line and name in line and "\n" not in line for line in errors)


@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_not_there_or_no_json_is_named(tmp_path, name):
    folder = tmp_path / "none"
    with pytest.raises(UsageError, match=f"none.*{name}"):
        READERS[name](folder)
    read_all(tmp_path, name, WHOLE[name])
    for path in tmp_path.rglob("*.json"):
        path.write_bytes(b'{"cut of')
    with pytest.raises(UsageError, match="not JSON"):
        READERS[name](tmp_path if name in FOLDERS else tmp_path / "set.json")


@pytest.mark.requires("pyarrow")
@pytest.mark.requires("pyarrow")
def test_a_parquet_whose_text_is_not_utf_8_is_refused(tmp_path):
    import pyarrow.parquet

    path = tmp_path / "rows.parquet"
    row = AGENTBENCH | {"context": "Ada " * 20 + "lives in Q."}
    table = pyarrow.Table.from_pylist([row])
    pyarrow.parquet.write_table(table, path, compression="none", use_dictionary=False, write_statistics=False)
    data = path.read_bytes()
    assert b"lives in Q." in data
    path.write_bytes(data.replace(b"lives in Q.", b"lives in \xff."))
    with pytest.raises(UsageError, match=r"MemoryAgentBench: it is not UTF-8: invalid start byte"):
        read_agentbench(path)


def test_a_parquet_that_is_none_is_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1" + bytes(40) + b"PAR1")
    with pytest.raises(UsageError, match=r"rows\.parquet is not in the format of MemoryAgentBench"):
        read_agentbench(path)
