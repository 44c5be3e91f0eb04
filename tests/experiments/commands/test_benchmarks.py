"""`scrubjay memory bench` and `facts` on the command line."""

import json
import signal
import time

import pytest

from scrubjay.experiments.lm.kagentbench import WEIGHTS

from ..lm.records import HAND, TREE, record

FEW = ("memory", "facts", "facts.jsonl", "--seeds", "3", "--facts", "120", "--questions", "8")


def rows(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def test_facts_are_written_and_measured_and_not_measured_again(here, tmp_path):
    assert here(*FEW)[:2] == (0, "facts.jsonl: 2 texts, 16 questions\n")
    words = ("memory", "bench", "facts.jsonl", "--arms", "bank", "supersedes", "--out", "out")
    code, out, err = here(*words)
    assert (code, err) == (0, "")
    *lines, blank, path = out.splitlines()
    assert (blank, path) == ("", "out/table.md")
    assert lines[0].startswith(
        "| arm | question type | questions | needed | answer held | outdated first | exact |"
    )
    assert "| bank with annotated replacements, first fact | all | 16 |" in out
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.startswith(f"`scrubjay {' '.join(words)}`\n")
    assert table.endswith("\n".join(lines) + "\n")
    answers = (tmp_path / "out" / "answers.jsonl").read_bytes()
    assert len(rows(tmp_path / "out")) == 16 * 4
    assert here(*words)[1] == out
    assert (tmp_path / "out" / "answers.jsonl").read_bytes() == answers


def test_parts_have_seeds_of_their_own(here, tmp_path):
    seeds = {}
    for part in ("development", "test"):
        here("memory", "facts", f"{part}.jsonl", "--part", part, "--facts", "60", "--questions", "2")
        lines = (tmp_path / f"{part}.jsonl").read_text().splitlines()
        seeds[part] = {json.loads(line)["metadata"]["seed"] for line in lines}
    assert len(seeds["development"]) == len(seeds["test"]) == 3
    assert not seeds["development"] & seeds["test"]


def test_a_set_with_evidence_is_measured_without_answers(here, tmp_path):
    turn = {"speaker": "Ada", "dia_id": "D1:1", "text": "I fly a red kite."}
    talk = {"session_1_date_time": "1:30 pm on 8 May, 2023", "session_1": [turn]}
    question = {"question": "What does she fly?", "evidence": ["D1:1"], "category": 4, "answer": "a red kite"}
    (tmp_path / "locomo10.json").write_text(
        json.dumps([{"sample_id": "conv-1", "conversation": talk, "qa": [question]}])
    )
    code, out, _ = here("memory", "bench", "locomo10.json", "--out", "out")
    assert code == 0
    assert out.splitlines()[0] == "| arm | question type | questions | needed | answer held | tokens |"
    # No record supersedes another there.
    assert [row["arm"] for row in rows(tmp_path / "out")] == ["bank", "files", "full"]
    assert {row["recall"] for row in rows(tmp_path / "out")} == {1}


def test_a_local_model_answers(here, tmp_path, tiny_chat):
    for part in tiny_chat:
        part.save_pretrained(tmp_path / "model")
    here(*FEW)
    words = [
        "--model",
        "model",
        "--judge",
        "model",
        "--questions",
        "1",
        "--arms",
        "bank",
        "full",
        "--max-tokens",
        "4",
    ]
    code, out, _ = here("memory", "bench", "facts.jsonl", *words, "--window", "3000", "--out", "out")
    assert code == 0
    assert [row["arm"] for row in rows(tmp_path / "out")] == ["bank", "full"] * 2
    # One token per byte: about 3,000 bytes of 120 facts fit.
    assert all(row["cut"] == (row["arm"] == "full") for row in rows(tmp_path / "out"))
    assert all(row["answer"] for row in rows(tmp_path / "out"))
    assert "| full context, cut for 2 of 2 | all | 2 |" in out
    table = (tmp_path / "out" / "table.md").read_text()
    assert "Answers by model, with this prompt:" in table
    assert "Judged by model, with this prompt:" in table
    assert {row["judged"] for row in rows(tmp_path / "out")} <= {0, 1}
    assert "Where two of these say what cannot both be true, the later one holds." in table


@pytest.mark.slow
def test_stopped_it_goes_on(start, scrubjay, tmp_path):
    scrubjay("memory", "facts", "facts.jsonl", "--seeds", "3", "--facts", "600", "--questions", "200")
    words = ("memory", "bench", "facts.jsonl", "--arms", "bank", "--out", "out")
    process, path = start(*words), tmp_path / "out" / "answers.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert err.splitlines()[-1].startswith("stopped after ")
    assert "run the same command to resume" in err
    before = path.read_bytes()
    assert 0 < len(rows(tmp_path / "out")) < 800
    assert f"| {len({(row['text'], row['question']) for row in rows(tmp_path / 'out')})} |" in out
    assert scrubjay(*words)[0] == 0
    assert path.read_bytes().startswith(before)
    assert len(rows(tmp_path / "out")) == 800


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["bench"], "bench needs the files of a data set"),
        (["bench", "no.json"], "no.json: No such file or directory"),
        (["bench", "/dev/null"], "/dev/null is not a regular file"),
        (["bench", "no.json", "--format", "beam"], "give the path of BEAM"),
        (["bench", "no.json", "--arms", "birds"], "birds"),
        (["bench", "no.json", "--k", "0"], "k=0"),
        (["bench", "no.json", "--judge", "smollm2"], "no answers to judge"),
        (["bench", "no.json", "--questions", "0"], "questions=0"),
        (["bench", "no.json", "--window", "-1"], "window=-1"),
        (["facts", "f.jsonl", "--facts", "7"], "facts=7"),
        (["facts", "f.jsonl", "--facts", "100", "--questions", "101"], "questions=101"),
        (["facts", "no/f.jsonl"], "folder no for f.jsonl does not exist"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(usage_error, words, message):
    assert message in usage_error("memory", *words)


def write_records(tmp_path, name="bench.jsonl"):
    kinds = {"plantooluse": 0, "reflextion": 8, "conclusion": 10, "profile": 12}
    records = [{**HAND[place][0], "id": kind, "type": kind} for kind, place in kinds.items()]
    (tmp_path / name).write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n")
    return records, {place: HAND[place][1] for place in kinds.values()}


def test_a_file_is_scored_by_the_command(here, tmp_path):
    _, expected = write_records(tmp_path)
    code, out, _ = here("kagentbench", "bench.jsonl")
    assert code == 0
    printed_scores = {line.split()[0]: line.split()[-1] for line in out.splitlines()}
    values = {name: float(value) for scores in expected.values() for name, value in scores.items()}
    assert printed_scores == {
        "ability": "score",
        **{name: f"{100 * values[name]:.2f}" for name in WEIGHTS},
        "overall": f"{100 * sum(WEIGHTS[name] * values[name] for name in WEIGHTS):.2f}",
    }
    message = json.loads(here("kagentbench", "bench.jsonl", "--json")[1])
    assert message["scores"] == pytest.approx({name: 100 * value for name, value in values.items()})
    assert message["queries"] == dict.fromkeys(WEIGHTS, 1)


def test_predictions_may_be_in_a_file_of_their_own(here, tmp_path):
    records, _ = write_records(tmp_path)
    whole = here("kagentbench", "bench.jsonl")
    guesses = [{"id": one["id"], "model_predict": one.pop("model_predict")} for one in records]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "guesses.jsonl").write_text("\n".join(map(json.dumps, reversed(guesses))))
    assert here("kagentbench", "bench.jsonl", "guesses.jsonl") == whole
    (tmp_path / "guesses.jsonl").write_text("\n".join(map(json.dumps, guesses[1:])))
    code, _, err = here("kagentbench", "bench.jsonl", "guesses.jsonl")
    assert code == 2
    assert "1 ids have no prediction, such as 'plantooluse'" in err


def test_a_part_of_the_benchmark_has_no_overall_score(here, tmp_path):
    (tmp_path / "part.jsonl").write_text(json.dumps(HAND[12][0]))
    out = here("kagentbench", "part.jsonl")[1]
    assert out.splitlines()[-1].split() == ["overall", "1", "1.00", "-"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1: not a valid record"),
        ("", "no records"),
        (json.dumps(record("plans", [], {})), "'q1' has unknown type 'plans'"),
        (json.dumps(record("conclusion", [], "x")), "'q1' has no predictions"),
        (json.dumps(record("plantooluse", [{}], {"KuaiAgent": "x"})), "'q1' lacks 'thought'"),
        (json.dumps(record("plantooluse", [TREE], {"MyOwn": "x"})), "prompt template 'MyOwn'"),
    ],
)
def test_what_cannot_be_scored_is_named(here, tmp_path, line, message):
    (tmp_path / "bad.jsonl").write_text(line)
    code, out, err = here("kagentbench", "bad.jsonl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err
