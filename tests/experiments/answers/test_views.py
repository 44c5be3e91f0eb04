"""Tests of the views: turns shown by each method for one text of facts, within the token limit."""

import json

import pytest

from scrubjay.experiments.answers.agentbench import read_agentbench
from scrubjay.experiments.answers.facts import make_rows
from scrubjay.experiments.answers.views import LABELS, fit, open_view


@pytest.fixture(scope="module")
def facts(tmp_path_factory):
    """Return a text of facts, each question of which needs one."""
    path = tmp_path_factory.mktemp("facts") / "facts.jsonl"
    path.write_text(json.dumps(make_rows(4, 120, 12)[0]))
    (conversation,) = read_agentbench(path)
    return conversation


@pytest.mark.parametrize("name", LABELS)
def test_places_are_turns_the_best_first_and_each_once(facts, name):
    recall = open_view(name, facts, 5)
    for question in facts.questions:
        places = list(recall(question.text))
        assert len(set(places)) == len(places)
        assert set(places) <= set(range(len(facts.turns)))
        assert len(places) == (len(facts.turns) if name == "full" else 5)
        assert places == list(recall(question.text))


def test_what_was_replaced_is_not_shown_by_who_is_told_or_finds_it(facts):
    recalls = {name: open_view(name, facts, 10) for name in LABELS}
    stale = {
        name: sum(
            bool(question.outdated_answers & set(recall(question.text))) for question in facts.questions
        )
        for name, recall in recalls.items()
    }
    assert stale["supersedes"] == 0
    assert stale["consolidated"] <= 1 < stale["bank"]
    assert stale["full"] == len(facts.questions)
    for name in ("supersedes", "consolidated"):
        complete = [question.answers <= set(recalls[name](question.text)) for question in facts.questions]
        assert sum(complete) >= len(complete) - 1


@pytest.mark.parametrize("contiguous", [True, False])
def test_what_fits_is_shown_the_best_first(contiguous):
    costs = {7: 4, 2: 9, 5: 3}
    view = fit([7, 2, 5], costs.__getitem__, 8, contiguous)
    assert view == (((7,), 4, True) if contiguous else ((7, 5), 7, True))
    assert fit([7, 2, 5], costs.__getitem__, 16, contiguous) == ((7, 2, 5), 16, False)
    assert fit([], costs.__getitem__, 8, contiguous) == ((), 0, False)
