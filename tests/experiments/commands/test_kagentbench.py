"""`scrubjay kagentbench`: scores, or one line on an invalid file."""

import json

import pytest

from scrubjay.experiments.lm.kagentbench import WEIGHTS

from ..lm.records import HAND, TREE, record


def complete(tmp_path, name="bench.jsonl"):
    kinds = {"plantooluse": 0, "reflextion": 8, "conclusion": 10, "profile": 12}
    records = [{**HAND[place][0], "id": kind, "type": kind} for kind, place in kinds.items()]
    (tmp_path / name).write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in records) + "\n")
    return records, {place: HAND[place][1] for place in kinds.values()}


def test_a_file_is_scored_by_the_command(here, tmp_path):
    _, expected = complete(tmp_path)
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
    records, _ = complete(tmp_path)
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
