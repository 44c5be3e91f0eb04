"""What is shown to who answers: by each contestant, of one text of facts, and as far as there is room."""

import json

import pytest

from scrubjay.experiments.quality.answers.views import LABELS, fit, open_view
from scrubjay.experiments.quality.sets.agentbench import read_agentbench
from scrubjay.experiments.quality.sets.facts import make_rows


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
    shown = {name: open_view(name, facts, 10) for name in LABELS}
    stale = {
        name: sum(bool(question.outdated & set(recall(question.text))) for question in facts.questions)
        for name, recall in shown.items()
    }
    assert stale["supersedes"] == 0
    assert stale["consolidated"] <= 1 < stale["bank"]
    assert stale["full"] == len(facts.questions)
    for name in ("supersedes", "consolidated"):
        found = [question.answers <= set(shown[name](question.text)) for question in facts.questions]
        assert sum(found) >= len(found) - 1


@pytest.mark.parametrize("contiguous", [True, False])
def test_what_fits_is_shown_the_best_first(contiguous):
    costs = {7: 4, 2: 9, 5: 3}
    view = fit([7, 2, 5], costs.__getitem__, 8, contiguous)
    assert view == (((7,), 4, True) if contiguous else ((7, 5), 7, True))
    assert fit([7, 2, 5], costs.__getitem__, 16, contiguous) == ((7, 2, 5), 16, False)
    assert fit([], costs.__getitem__, 8, contiguous) == ((), 0, False)
