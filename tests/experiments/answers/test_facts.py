"""Made facts: what they say, what they contradict, and that a reader of MemoryAgentBench reads them so."""

import json
from dataclasses import replace

import pytest

from scrubjay.experiments.answers.agentbench import read_agentbench
from scrubjay.experiments.answers.datasets import PARTS, part_names
from scrubjay.experiments.answers.facts import make_rows
from scrubjay.experiments.cli.failures import UsageError


def put(path, rows):
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def rows():
    return make_rows(5, 400, 60)


def test_a_row_is_one_of_the_published_form(rows, tmp_path):
    single, several = read_agentbench(put(tmp_path / "facts.jsonl", rows))
    assert [one.name for one in (single, several)] == ["factconsolidation_sh 0", "factconsolidation_mh 1"]
    # Without what we tell beside it, the text is read all the same.
    plain = [{**row, "metadata": {"source": row["metadata"]["source"]}} for row in rows]
    read = read_agentbench(put(tmp_path / "plain.jsonl", plain))
    assert [turn.text for turn in read[0].turns] == [turn.text for turn in single.turns]
    assert [replace(turn, fact=None, replaces=None) for turn in single.turns] == list(read[0].turns)
    lines = rows[0]["context"].split("\n")[1:]
    assert [turn.text for turn in single.turns] == lines
    assert all(line.startswith(f"{number}. ") for number, line in enumerate(lines))


def test_facts_are_what_the_lines_say(rows):
    metadata = rows[0]["metadata"]
    for line, (subject, _, object) in zip(rows[0]["context"].split("\n")[1:], metadata["facts"], strict=True):
        assert subject in line
        assert object in line
    assert 0.8 * 400 < len(metadata["facts"]) < 1.2 * 400


def test_an_answer_follows_from_the_last_facts_and_from_no_earlier_ones(rows, tmp_path):
    for conversation, row in zip(read_agentbench(put(tmp_path / "facts.jsonl", rows)), rows, strict=True):
        last, before = {}, {}
        for subject, relation, object in row["metadata"]["facts"]:
            before.setdefault((subject, relation), []).append(last.get((subject, relation)))
            last[subject, relation] = object
        assert len(row["questions"]) == len(set(row["questions"])) == 60
        for question, (answer,), (subject, *relations) in zip(
            conversation.questions, row["answers"], row["metadata"]["hops"], strict=True
        ):
            slots, at = [], subject
            for relation in relations:
                slots.append((at, relation))
                at = last[at, relation]
            assert (at,) == (answer,) == question.references
            assert len(slots) == len(question.answers) == len(relations)
            assert question.outdated_answers  # something in the chain has changed
            facts = {conversation.turns[place].fact for place in question.answers}
            assert facts == {(*slot, last[slot]) for slot in slots}
            for place in question.outdated_answers:
                fact = conversation.turns[place].fact
                assert fact is not None
                assert fact[:2] in slots
                assert fact[2] != last[fact[:2]]
            assert subject in question.text
            assert answer not in question.text
        assert {len(words) for words in row["metadata"]["hops"]} == ({2} if row is rows[0] else {3, 4})


def test_what_replaces_what_is_a_chain_of_the_same_subject_and_relation(rows, tmp_path):
    (conversation, _) = read_agentbench(put(tmp_path / "facts.jsonl", rows))
    last_place = {}
    for place, turn in enumerate(conversation.turns):
        assert turn.fact is not None
        assert turn.replaces == last_place.get(turn.fact[:2])
        last_place[turn.fact[:2]] = place


def test_a_seed_is_always_the_same_and_parts_share_none(rows):
    assert make_rows(5, 400, 60) == rows
    assert make_rows(6, 400, 60)[0]["context"] != rows[0]["context"]
    development, test = (set(part_names("FactConsolidation", part)) for part in PARTS)
    assert not development & test


@pytest.mark.parametrize("sizes", [(59, 1), (100_001, 1), (100, 0), (100, 101)])
def test_sizes_that_cannot_be_are_refused(sizes):
    with pytest.raises(UsageError, match="must be from"):
        make_rows(0, *sizes)


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("facts", [["a", "b"]]),
        ("facts", []),
        ("hops", [["a"]]),
        ("hops", []),
        ("asked", []),
        ("asked", {"x": 1}),
    ],
)
def test_other_metadata_is_refused_in_a_line(rows, tmp_path, name, wrong):
    corrupt_row = {**rows[0], "metadata": {**rows[0]["metadata"], name: wrong}}
    with pytest.raises(UsageError, match=r"facts\.jsonl is not in the format of MemoryAgentBench"):
        read_agentbench(put(tmp_path / "facts.jsonl", [corrupt_row]))
