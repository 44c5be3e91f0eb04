"""KAgentBench's score: hand-made records in two languages, every formula against one written anew."""

import json
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.language.forms import Plan, read_answer, read_form, write_form
from scrubjay.experiments.language.scores import WEIGHTS, Result, arguments_score, score, score_record

SEARCH = {"name": "web_search", "parameters": {"properties": {"text": {}, "count": {}}}}
TIME = {"name": "time_delta", "parameters": {"properties": {"start": {}, "end": {}}}}
TREE = {"thought": "find the tallest tree", "tool_name": "web_search", "tool_args": {"text": "tallest tree"}}
GAP = {"thought": "算出年龄差", "tool_name": "time_delta", "tool_args": {"start": "1815", "end": "1912"}}


def record(kind, references, predicted, **more):
    return {
        "id": "q1",
        "type": kind,
        "golden_result_list": references,
        "funcs": [SEARCH, TIME],
        "model_predict": predicted,
        **more,
    }


def kuai(thought, tool, **arguments):
    return json.dumps({"task_name": thought, "command": {"name": tool, "args": arguments}})


HAND = [
    # 3 of 4 words in common: 2 * 3 / (4 + 3).
    (
        record(
            "plantooluse",
            [TREE],
            {"KuaiAgent": kuai("find the tree", "web_search", text="tallest tree")},
        ),
        {"plan": Fraction(6, 7), "tool": 1},
    ),
    # Another tool: nothing, whatever the words.
    (
        record("plantooluse", [TREE], {"KuaiAgent": kuai("find the tallest tree", "browse", text="tallest")}),
        {"plan": 0, "tool": 0},
    ),
    # Chinese by characters, 4 of 5 and 4; one argument of two is missing; the better one of two references.
    (
        record(
            "plantooluse",
            [TREE, GAP],
            {"AutoGPT": write_form("AutoGPT", Plan("算年龄差", "time_delta", {"end": "1912"}))},
        ),
        {"plan": Fraction(8, 9), "tool": Fraction(1, 2)},
    ),
    # The mean over templates: the second one cannot be read.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ToolLlama": "Thought: find the tallest tree\nAction: web_search\n"
                'Action Input: {"text": "tree"}',
                "KuaiAgent": "I do not know.",
            },
        ),
        {"plan": Fraction(1, 2), "tool": Fraction(2, 3) / 2},
    ),
    # ReACT's word Thought and its colon count as words of the thought; its input is the tool's first
    # argument.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ReACT": "Thought: find the tallest tree\nAction: web_search\nAction Input: tallest tree\n"
                "Observation"
            },
        ),
        {"plan": Fraction(8, 10), "tool": 1},
    ),
    # An empty reply earns nothing, not what the template before it earned.
    (
        record(
            "plantooluse",
            [TREE],
            {"KuaiAgent": kuai("find the tallest tree", "web_search", text="tallest tree"), "ReACT": ""},
        ),
        {"plan": Fraction(1, 2), "tool": Fraction(1, 2)},
    ),
    # ModelScope's form has no place for a thought.
    (
        record(
            "plantooluse",
            [TREE],
            {
                "ModelScope": write_form(
                    "ModelScope", Plan("find the tallest tree", "web_search", {"text": "tallest tree"})
                )
            },
        ),
        {"plan": 0, "tool": 1},
    ),
    # Nothing to give and nothing given is right; a reference without a tool does not count.
    (
        record(
            "plantooluse",
            [{**TREE, "tool_args": {}}, {**TREE, "tool_name": "None"}],
            {"KuaiAgent": kuai("x", "web_search")},
        ),
        {"plan": 0, "tool": 1},
    ),
    # 0.3 of the thought's 8/9 and 0.7 of the arguments' half.
    (
        record(
            "reflextion",
            [GAP],
            {"KuaiAgent": kuai("算年龄差", "time_delta", end="1912")},
            memory_last_task={"tool_name": "web_search", "tool_args": {"text": "x"}},
        ),
        {"reflection": Fraction(3, 10) * Fraction(8, 9) + Fraction(7, 10) * Fraction(1, 2)},
    ),
    # To do the last task again is no reflection, however alike.
    (
        record(
            "reflextion",
            [GAP],
            {"KuaiAgent": kuai(GAP["thought"], "time_delta", **GAP["tool_args"])},
            memory_last_task={"tool_name": "time_delta", "tool_args": GAP["tool_args"]},
        ),
        {"reflection": 0},
    ),
    (
        record(
            "conclusion",
            [{"golden_result": "六月最热"}, "It was June."],
            {"KuaiAgent": "六月", "AutoGPT": 'do_nothing(response="It was June.")'},
        ),
        {"concluding": (Fraction(4, 6) + 1) / 2},
    ),
    (
        record(
            "conclusion",
            ["It was June."],
            {"ToolLlama": 'Action Input: {"final_answer": "It was June."}', "ReACT": ""},
        ),
        {"concluding": Fraction(1, 2)},
    ),
    (
        record("profile", [{"golden_result": "我是小鸟"}, {"golden_result": "I am a jay"}], "I am a bird"),
        {"profile": Fraction(3, 4)},
    ),
    (record("profile", ["I am a jay"], ""), {"profile": 0}),
]


@pytest.mark.parametrize(("made", "expected"), HAND)
def test_records_made_by_hand(made, expected):
    assert score_record(made) == pytest.approx({name: float(value) for name, value in expected.items()})


def likeness(left, right):
    """Return ROUGE-L of single-letter words, by the table of the recurrence."""
    left, right = left.split(), right.split()
    if not left or not right:
        return 0.0
    table = [[0] * (len(right) + 1) for _ in range(len(left) + 1)]
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    common = table[-1][-1]
    precision, recall = common / len(right), common / len(left)
    return 2 * precision * recall / (precision + recall) if common else 0.0


def by_the_book(references, plans, last):
    """Return plan, tool and reflection as KAgentBench's description has them."""
    sums = [0.0, 0.0, 0.0]
    for plan in plans:
        best = [0.0, 0.0, 0.0]
        for reference in references:
            exact = 1 if plan.tool == reference["tool_name"] else 0
            wanted = reference["tool_args"]
            if wanted == {} and plan.arguments == {}:
                arguments = 1.0
            elif plan.arguments == {} or wanted == {}:
                arguments = 0.0
            else:
                arguments = 0.0
                for name in wanted:
                    if name in plan.arguments:
                        arguments += likeness(wanted[name], plan.arguments[name])
                arguments /= len(wanted)
            thought = likeness(reference["thought"], plan.thought)
            penalty = 1 if (reference["tool_name"], wanted) == (last["tool_name"], last["tool_args"]) else 0
            values = (
                exact * thought,
                exact * arguments,
                (1 - penalty) * exact * (0.3 * thought + 0.7 * arguments),
            )
            best = [max(old, new) for old, new in zip(best, values, strict=True)]
        sums = [total + value / len(plans) for total, value in zip(sums, best, strict=True)]
    return sums


words = st.lists(st.sampled_from("abcd"), max_size=5).map(" ".join)
arguments = st.dictionaries(st.sampled_from(["x", "y", "z"]), words, max_size=3)
tool_names = st.sampled_from(["look", "ask"])
golden = st.fixed_dictionaries({"thought": words, "tool_name": tool_names, "tool_args": arguments})
plans = st.builds(Plan, words, tool_names, arguments)


@settings(max_examples=150)
@given(st.lists(golden, min_size=1, max_size=3), plans, plans, golden)
def test_plan_tool_and_reflection_are_by_the_book(references, first, second, last):
    predicted = {"KuaiAgent": write_form("KuaiAgent", first), "AutoGPT": write_form("AutoGPT", second)}
    expected = by_the_book(references, [first, second], last)
    planned = score_record(record("plantooluse", references, predicted))
    reflected = score_record(record("reflextion", references, predicted, memory_last_task=last))
    assert [planned["plan"], planned["tool"], reflected["reflection"]] == pytest.approx(expected)


@given(arguments, arguments)
def test_arguments_count_by_those_of_the_reference(reference, given_ones):
    only_known = {name: value for name, value in given_ones.items() if name in reference}
    if only_known:
        assert arguments_score(reference, given_ones) == arguments_score(reference, only_known)


# Published rows, abilities and overall, in per cent.
@pytest.mark.parametrize(
    ("row", "overall"),
    [
        ((18.55, 26.26, 8.06, 37.26, 35.42), 25.63),
        ((0.15, 0.44, 0.14, 16.60, 17.73), 5.30),
        ((31.64, 43.30, 33.34, 44.85, 44.78), 39.85),
        ((43.17, 63.78, 32.14, 45.47, 45.22), 49.94),
        ((42.42, 64.62, 30.58, 46.51, 45.95), 50.18),
    ],
)
def test_the_weights_give_the_published_overall_scores(row, overall):
    result = Result(dict(zip(WEIGHTS, row, strict=True)), {})
    assert result.overall == pytest.approx(overall, abs=0.01)


def test_queries_count_alike_however_many_templates_they_have():
    right = kuai("find the tallest tree", "web_search", text="tallest tree")
    one = record("plantooluse", [TREE], {"KuaiAgent": right})
    two = record("plantooluse", [TREE], {"KuaiAgent": "no", "AutoGPT": "no", "ToolLlama": "no"})
    assert score([one, two]).scores == {"plan": 0.5, "tool": 0.5}
    assert score([one, two]).overall is None


@pytest.mark.parametrize("form", ["AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"])
@given(
    thought=words,
    arguments=st.dictionaries(words, st.integers() | words | st.lists(words, max_size=2), max_size=3),
)
def test_a_form_reads_what_it_wrote(form, thought, arguments):
    plan = Plan(thought, "look_up", arguments)
    read = read_form(form, write_form(form, plan))
    assert (read.tool, read.arguments) == ("look_up", arguments)
    assert read.thought == ("" if form == "ModelScope" else thought)


@settings(max_examples=60)
@given(st.text() | st.text('{}[]":,<|startofthink|>Action Input:Thought\n', max_size=60))
def test_any_reply_is_read_as_something(text):
    for form in ("ReACT", "AutoGPT", "ToolLlama", "ModelScope", "KuaiAgent"):
        plan = read_form(form, text, [SEARCH])
        assert isinstance(plan.arguments, dict)
        assert isinstance(read_answer(form, text), str)


def test_broken_json_is_mended():
    text = "Sure: {'task_name': 'look', 'command': {'name': 'web_search', 'args': {'text': 'tree'}"
    assert read_form("KuaiAgent", text) == Plan("look", "web_search", {"text": "tree"})


def complete(tmp_path, name="bench.jsonl"):
    kinds = {"plantooluse": 0, "reflextion": 8, "conclusion": 10, "profile": 12}
    made = [{**HAND[place][0], "id": kind, "type": kind} for kind, place in kinds.items()]
    (tmp_path / name).write_text("\n".join(json.dumps(one, ensure_ascii=False) for one in made) + "\n")
    return made, {place: HAND[place][1] for place in kinds.values()}


def test_a_file_is_scored_by_the_command(here, tmp_path):
    _, expected = complete(tmp_path)
    code, out, _ = here("kagentbench", "bench.jsonl")
    assert code == 0
    shown = {line.split()[0]: line.split()[-1] for line in out.splitlines()}
    values = {name: float(value) for scores in expected.values() for name, value in scores.items()}
    assert shown == {
        "ability": "score",
        **{name: f"{100 * values[name]:.2f}" for name in WEIGHTS},
        "overall": f"{100 * sum(WEIGHTS[name] * values[name] for name in WEIGHTS):.2f}",
    }
    told = json.loads(here("kagentbench", "bench.jsonl", "--json")[1])
    assert told["scores"] == pytest.approx({name: 100 * value for name, value in values.items()})
    assert told["queries"] == dict.fromkeys(WEIGHTS, 1)


def test_predictions_may_be_in_a_file_of_their_own(here, tmp_path):
    made, _ = complete(tmp_path)
    whole = here("kagentbench", "bench.jsonl")
    guesses = [{"id": one["id"], "model_predict": one.pop("model_predict")} for one in made]
    (tmp_path / "bench.jsonl").write_text("\n".join(map(json.dumps, made)))
    (tmp_path / "guesses.jsonl").write_text("\n".join(map(json.dumps, reversed(guesses))))
    assert here("kagentbench", "bench.jsonl", "guesses.jsonl") == whole
    (tmp_path / "guesses.jsonl").write_text("\n".join(map(json.dumps, guesses[1:])))
    code, _, err = here("kagentbench", "bench.jsonl", "guesses.jsonl")
    assert code == 2
    assert "1 ids have no prediction, 'plantooluse' first" in err


def test_a_part_of_the_benchmark_has_no_overall_score(here, tmp_path):
    (tmp_path / "part.jsonl").write_text(json.dumps(HAND[12][0]))
    out = here("kagentbench", "part.jsonl")[1]
    assert out.splitlines()[-1].split() == ["overall", "1", "1.00", "-"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 1 is not JSON"),
        ("[]", "line 1 is no record"),
        ("", "no records"),
        (json.dumps(record("plans", [], {})), "'q1' has type 'plans'"),
        (json.dumps(record("conclusion", [], "x")), "'q1' has no predictions"),
        (json.dumps(record("plantooluse", [{}], {"KuaiAgent": "x"})), "'q1' lacks 'thought'"),
        (json.dumps(record("plantooluse", [TREE], {"MyOwn": "x"})), "prompt template 'MyOwn'"),
    ],
)
def test_what_cannot_be_scored_is_named(here, tmp_path, line, told):
    (tmp_path / "bad.jsonl").write_text(line)
    code, out, err = here("kagentbench", "bad.jsonl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert told in err
