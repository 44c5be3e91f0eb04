"""KAgentBench's score: hand-made records, and every formula against one written down anew."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.lm.kagentbench import WEIGHTS, Result, arguments_score, score, score_record
from scrubjay.experiments.lm.prompt_formats import StepPlan, format_plan

from .records import HAND, TREE, kuai, record


@pytest.mark.parametrize(("example", "expected"), HAND)
def test_records_made_by_hand(example, expected):
    assert score_record(example) == pytest.approx({name: float(value) for name, value in expected.items()})


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
            target_arguments = reference["tool_args"]
            if target_arguments == {} and plan.arguments == {}:
                arguments = 1.0
            elif plan.arguments == {} or target_arguments == {}:
                arguments = 0.0
            else:
                arguments = 0.0
                for name in target_arguments:
                    if name in plan.arguments:
                        arguments += likeness(target_arguments[name], plan.arguments[name])
                arguments /= len(target_arguments)
            thought_score = likeness(reference["thought"], plan.thought)
            penalty = (
                1
                if (reference["tool_name"], target_arguments) == (last["tool_name"], last["tool_args"])
                else 0
            )
            values = (
                exact * thought_score,
                exact * arguments,
                (1 - penalty) * exact * (0.3 * thought_score + 0.7 * arguments),
            )
            best = [max(old, new) for old, new in zip(best, values, strict=True)]
        sums = [total + value / len(plans) for total, value in zip(sums, best, strict=True)]
    return sums


words = st.lists(st.sampled_from("abcd"), max_size=5).map(" ".join)
arguments = st.dictionaries(st.sampled_from(["x", "y", "z"]), words, max_size=3)
tool_names = st.sampled_from(["look", "ask"])
golden = st.fixed_dictionaries({"thought": words, "tool_name": tool_names, "tool_args": arguments})
plans = st.builds(StepPlan, words, tool_names, arguments)


@settings(max_examples=150)
@given(st.lists(golden, min_size=1, max_size=3), plans, plans, golden)
def test_plan_tool_and_reflection_are_by_the_book(references, first, second, last):
    predictions = {"KuaiAgent": format_plan("KuaiAgent", first), "AutoGPT": format_plan("AutoGPT", second)}
    expected = by_the_book(references, [first, second], last)
    plan_scores = score_record(record("plantooluse", references, predictions))
    reflection_scores = score_record(record("reflextion", references, predictions, memory_last_task=last))
    assert [plan_scores["plan"], plan_scores["tool"], reflection_scores["reflection"]] == pytest.approx(
        expected
    )


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
