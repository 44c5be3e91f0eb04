"""RULER's tasks: a reader that only matches patterns solves every one, so each answer is in its text."""

import collections
import re

import pytest

from scrubjay.experiments.lm.needles import split_sentences, string_match_all
from scrubjay.experiments.lm.ruler import list_tasks, make_example

pytestmark = pytest.mark.requires("wonderwords")

SENTENCES = split_sentences("It rained. The heron, as ever, stood!\nDid it\nmove? " * 3 + "No.")


def count(example):
    """One token a word, number or mark."""
    return len(re.findall(r"\w+|[^\w\s]", example.prompt + example.answer_prefix)) + example.new_tokens


def solve(task, example):
    """Answer from context and question alone."""
    if task == "variable_tracking":
        (value,) = re.findall(r"value (\d{5})", example.question)
        names = re.findall(rf"VAR (\w+) = {value}", example.context)
        while follower := re.findall(rf"VAR (\w+) = VAR {names[-1]}\b", example.context):
            names += follower
        return " ".join(names)
    if task == "common_words":
        entries = collections.Counter(re.findall(r"\d+\. (\S+)", example.context))
        return " ".join(word for word, _ in entries.most_common(10))
    if task == "frequent_words":
        return " ".join(word for word, _ in collections.Counter(example.context.split()).most_common(4))
    values = collections.defaultdict(list)
    for key, value in re.findall(r"The secret \w+ of (\S+) is (\S+)\.", example.context):
        values[key].append(value)
    (keys,) = re.findall(r"of (\S+(?:, \S+)*(?: and \S+)?), as told", example.question)
    return " ".join(value for key in re.split(r", | and ", keys) for value in values[key])


@pytest.mark.parametrize("task", list_tasks())
@pytest.mark.parametrize("length", [1024, 6000])
def test_every_task_fits_its_length_and_can_be_solved(task, length):
    for seed in range(3):
        example = make_example(task, length, count, SENTENCES, seed)
        answer = solve(task, example)
        assert string_match_all(answer, example.references) == 1
        # And nothing but the references, or asking for everything would do as well.
        extra = ["..."] if task == "frequent_words" else []
        assert sorted(answer.split()) == sorted([*example.references, *extra])
        assert 0.9 * length <= count(example) <= length
        assert example == make_example(task, length, count, SENTENCES, seed)
    assert make_example(task, length, count, SENTENCES, 7).references != example.references


def test_tasks_have_the_sizes_of_the_paper():
    def count_matches(task, pattern, length=6000):
        return len(re.findall(pattern, make_example(task, length, count, SENTENCES, 0).context))

    needle = r"The secret number of \S+ is \d{7}\."
    tasks = ("single_1", "single_2", "multikey_1", "multivalue", "multiquery")
    assert [count_matches(task, needle) for task in tasks] == [1, 1, 4, 4, 4]
    assert count_matches("single_3", r"is [0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.") == 1
    assert count_matches("variable_tracking", r"VAR [A-Z]{5} = ") == 5
    for length, often, seldom in ((6000, 30, 3), (2000, 6, 1)):
        example = make_example("common_words", length, count, SENTENCES, 0)
        counts = collections.Counter(re.findall(r"\d+\. (\S+)", example.context))
        assert {counts[word] for word in example.references} == {often}
        assert {counts[word] for word in counts if word not in example.references} == {seldom}
    example = make_example("frequent_words", 6000, count, SENTENCES, 0)
    counts = collections.Counter(example.context.split())
    rates = [counts[word] / counts["..."] * rank**2 for rank, word in enumerate(example.references, start=2)]
    assert rates == pytest.approx([1, 1, 1], rel=0.05)


def test_a_length_without_room_and_an_unknown_task_are_refused():
    with pytest.raises(ValueError, match="length=60: must be at least"):
        make_example("single_2", 60, count, SENTENCES, 0)
    with pytest.raises(ValueError, match="unknown task"):
        make_example("qa_1", 2000, count, SENTENCES, 0)
