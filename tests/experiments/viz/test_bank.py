"""Trace of a bank: records in writing order, each with the record it superseded."""

import pytest

import scrubjay
from scrubjay.experiments.commands import memory as command
from scrubjay.experiments.viz.agent import trace_bank
from scrubjay.experiments.viz.trace import from_json, read_trace, to_json
from scrubjay.memory import MemoryBank


@pytest.fixture
def bank(tmp_path):
    times = iter([100.0, 90.0, 200.0, 300.0, 400.0])  # the clock is set back once
    with MemoryBank(tmp_path / "facts.db", clock=lambda: next(times, 500.0)) as bank:
        yield bank


def test_a_record_leads_back_to_what_it_replaced(bank):
    first = bank.add("Vera lives in Lisbon.")
    bank.add("The kettle is blue.", kind="task", namespace=("user", "vera"))
    second = bank.add("Vera moved to Porto.", supersedes=first)
    bank.add("Vera moved to Faro.", supersedes=second, importance=0.9)
    trace = trace_bank(bank, "facts.db")
    assert from_json(to_json(trace)) == trace
    assert [step.time for step in trace.steps] == [0, 0, 100, 200]
    recalled_steps = [[one.steps.tolist() for one in step.recalls] for step in trace.steps]
    assert recalled_steps == [[], [], [[0]], [[2]]]
    assert trace.steps[0].text.splitlines()[0] == "Vera lives in Lisbon."
    assert trace.steps[0].text.endswith("see step 2")
    assert "see step 3" in trace.steps[2].text
    assert "valid until" not in trace.steps[3].text
    assert "task of user/vera, source: user" in trace.steps[1].choice
    assert trace.tracks["importance"] == (0.5, 0.5, 0.5, 0.9)


def test_a_notebook_shows_a_bank(bank):
    bank.add("The kettle is blue.")
    view = scrubjay.look(bank)
    assert [step.text for step in view.trace.steps] == [
        step.text for step in trace_bank(bank, "the same").steps
    ]
    assert "The kettle is blue." in view._repr_html_()


def test_who_looks_at_a_bank_s_file_is_told_how(bank, tmp_path):
    bank.add("The kettle is blue.")
    with pytest.raises(ValueError, match=r"show a memory bank with `scrubjay memory page .*facts\.db`"):
        scrubjay.look(tmp_path / "facts.db")


def test_all_wordings_of_a_record_are_shown(bank):
    bank.add("The kettle is blue.")
    bank.add("the kettle is blue")
    (step,) = trace_bank(bank, "facts.db").steps
    assert "other wording: the kettle is blue" in step.text


def test_of_many_records_the_newest_are_shown(bank):
    first = bank.add("Vera lives in Lisbon.")
    for place in ("Porto", "Faro"):
        first = bank.add(f"Vera moved to {place}.", supersedes=first)
    trace = trace_bank(bank, "facts.db", most=2)
    assert trace.about["records"] == "latest 2 of 3"
    assert [len(step.recalls) for step in trace.steps] == [
        0,
        1,
    ]  # a superseded record outside the trace is not recalled
    with pytest.raises(ValueError, match="most=0: must be at least 1"):
        trace_bank(bank, "facts.db", most=0)


def test_records_are_shown_in_writing_order_whatever_their_conversation(bank):
    updated_id = bank.add("Vera lives in Lisbon.", kind="conversation", merge=False)
    for number in range(3):  # two conversations by turns
        for kind in ("task", "conversation"):
            bank.add(f"{kind} {number}", kind=kind, merge=False)
    bank.update(updated_id, "Vera lives in Porto.")
    texts = [step.text.splitlines()[0] for step in trace_bank(bank, "facts.db", most=4).steps]
    assert texts == ["conversation 1", "task 2", "conversation 2", "Vera lives in Porto."]


def test_a_question_tells_why_each_record_came(bank):
    bank.add("Vera lives in Lisbon.")
    bank.add("The kettle is blue.")
    bank.add("Vera has a kettle.")
    trace = trace_bank(bank, "facts.db", query="Vera's kettle")
    assert from_json(to_json(trace)) == trace
    *_, query_step = trace.steps
    hits = bank.search("Vera's kettle", explain=True)
    hit_lines = query_step.text.splitlines()[1:]
    texts = [step.text.splitlines()[0] for step in trace.steps]
    assert [line.split(",")[0] for line in hit_lines] == [f"step {texts.index(hit.text)}" for hit in hits]
    assert all(hit.explanation.summary in line for hit, line in zip(hits, hit_lines, strict=True))
    (recalled_steps,) = query_step.recalls
    scores = {texts.index(hit.text): hit.score for hit in hits}
    assert dict(zip(recalled_steps.steps.tolist(), recalled_steps.weights, strict=True)) == pytest.approx(
        scores, abs=recalled_steps.most / 255
    )
    assert trace.tracks["importance"][-1] is None
    older = trace_bank(bank, "facts.db", most=1, query="Lisbon").steps[-1]
    assert "an older record, not shown" in older.text
    assert "no results" in trace_bank(bank, "facts.db", query="zebra").steps[-1].text


def test_the_command_writes_a_page_beside_the_bank(bank, tmp_path, capsys):
    with pytest.raises(ValueError, match=r"facts\.db has no records"):
        trace_bank(bank, "facts.db")
    bank.add("<script>alert(1)</script>")
    assert command.run(["page", str(tmp_path / "facts.db")]) == 0
    assert "<script>alert" not in (tmp_path / "facts.html").read_text()
    assert command.run(["page", str(tmp_path / "facts.db"), "--out", str(tmp_path / "facts.json")]) == 0
    assert read_trace(tmp_path / "facts.json").steps[0].text.startswith("<script>alert(1)</script>")
    assert "facts.json: 1 records" in capsys.readouterr().out
