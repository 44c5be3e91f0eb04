"""Page of a bank in a real browser: list, filters, histories and the reasons of searches."""

import json
import re

import pytest

import scrubjay
from scrubjay.experiments.cli.failures import UsageError
from scrubjay.experiments.commands import memory as command
from scrubjay.experiments.viz.bank_page import view_bank
from scrubjay.memory import MemoryBank

from .test_page import HOSTILE


@pytest.fixture
def bank(tmp_path):
    with MemoryBank(tmp_path / "facts.db") as bank:
        yield bank


@pytest.fixture
def view(bank):
    """Three records of one fact, of which the last one is current, and others."""
    lisbon = bank.add("Vera lives in Lisbon.", observed="2025-01-01", namespace=("user", "vera"))
    porto = bank.add(
        "Vera lives in Porto.", observed="2025-02-01", namespace=("user", "vera"), supersedes=lisbon
    )
    bank.add("Vera moved to Faro.", observed="2025-03-01", namespace=("user", "vera"), supersedes=porto)
    kettle = bank.add("The kettle is blue.", kind="task", observed="2024-05-05", page=3)
    bank.update(kettle, "The kettle is green.")
    bank.add("A page says hello.", trust="tool", observed="2024-06-06", namespace=("team",))
    return view_bank(bank, "facts.db", queries=("Where does Vera live?", "zebra"))


def texts(tab, where="#records"):
    return tab.evaluate(f"[...document.querySelectorAll('{where} .entry .text')].map(e => e.textContent)")


def test_the_list_has_filters_that_combine(open_page, view):
    tab = open_page(view.render())
    assert texts(tab)[:2] == ["The kettle is green.", "Vera moved to Faro."]  # the update is the newest
    assert tab.inner_text("#count") == "5 of 5 records"
    for filters, expected in (
        ({"#state": "current"}, ["The kettle is green.", "Vera moved to Faro.", "A page says hello."]),
        ({"#state": "replaced", "#order": "oldest first"}, ["Vera lives in Lisbon.", "Vera lives in Porto."]),
        ({"#kind": "task"}, ["The kettle is green."]),
        ({"#namespace": "user"}, ["Vera moved to Faro.", "Vera lives in Porto.", "Vera lives in Lisbon."]),
        (
            {"#namespace": "user/vera", "#since": "2025-02-01", "#until": "2025-02-28"},
            ["Vera lives in Porto."],
        ),
        ({"#author": "tool"}, ["A page says hello."]),
        ({"#words": "LIVES porto"}, ["Vera lives in Porto."]),
        ({"#words": "blue"}, ["The kettle is green."]),  # an earlier text
        ({"#words": "porto", "#kind": "task"}, []),
    ):
        for field, value in filters.items():
            (tab.fill if field in ("#words", "#since", "#until") else tab.select_option)(field, value)
        assert texts(tab) == expected
        for field in filters:
            if field in ("#words", "#since", "#until"):
                tab.fill(field, "")
            else:
                tab.select_option(field, index=0)
    assert len(texts(tab)) == 5


def test_a_record_has_its_fields_earlier_texts_and_other_values(open_page, view):
    tab = open_page(view.render())
    tab.click("#records >> text=The kettle is green.")
    record = tab.inner_text("#record")
    for part in (
        "The kettle is green.",
        "Earlier texts",
        "The kettle is blue.",
        "2024-05-05",
        "page\t3",
        "task",
    ):
        assert part in record
    tab.click("#records >> text=Vera lives in Porto.")
    assert "Values of this fact, oldest first" in tab.inner_text("#record")
    values = ["Vera lives in Lisbon.", "Vera lives in Porto.", "Vera moved to Faro."]
    assert texts(tab, "#record") == values
    tab.click("#record >> text=Vera lives in Lisbon.")
    assert tab.inner_text("#record .text >> nth=0") == values[0]
    assert "valid until" in tab.inner_text("#record")
    assert tab.evaluate("document.querySelectorAll('.entry.selected').length") == 2  # in both lists


def test_a_search_has_its_hits_in_order_with_the_parts_of_their_scores(open_page, bank, view):
    tab = open_page(view.render())
    hits = bank.search("Where does Vera live?", explain=True)
    assert texts(tab, "#hits") == [hit.text for hit in hits]
    notes = tab.evaluate("[...document.querySelectorAll('#hits .note')].map(e => e.textContent)")
    for rank, (hit, note) in enumerate(zip(hits, notes, strict=True), 1):
        head, parts = note.split(": ", 1)
        numbers = [float(number) for number in re.findall(r"-?[\d.]+", parts.split(" · ")[0])]
        assert head.startswith(f"{rank}. score {float(f'{hit.score:.3g}'):g}")
        assert sum(numbers) == pytest.approx(hit.score, abs=0.02)
    tab.select_option("#question", label="zebra")
    assert tab.inner_text("#key") == "No record was found."
    assert "rank 1" in tab.inner_text("#record")


def test_a_hit_that_is_outdated_names_the_newer_one(open_page, bank):
    bank.add("Vera works at Acme.", observed="2024-02-01")
    bank.add("Vera works at Globex.", observed="2025-02-01")
    tab = open_page(view_bank(bank, "facts.db", queries=("Where does Vera work?",)).render())
    assert texts(tab, "#hits") == ["Vera works at Globex.", "Vera works at Acme."]
    assert "outdated: result 1 is newer" in tab.inner_text("#hits li >> nth=1")
    assert "outdated" not in tab.inner_text("#hits li >> nth=0")


def test_long_lists_open_by_the_hundred(open_page, bank):
    for number in range(150):
        bank.add(f"Note {number}.", kind="task", merge=False)
    tab = open_page(view_bank(bank, "facts.db").render())
    assert len(texts(tab)) == 100
    tab.click("#more")
    assert len(texts(tab)) == 150
    assert not tab.is_visible("#more")
    assert not tab.is_visible("#questions")
    id = tab.get_attribute("#records .entry >> nth=3", "data-id")
    tab.fill("#words", id[:12])
    assert texts(tab) == ["Note 146."]
    tab.fill("#words", "note 14")
    assert len(texts(tab)) == 12  # 14, 114 and 140 to 149


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.parametrize("text", [text for text in HOSTILE if text.isprintable()])
def test_text_of_other_people_is_shown_and_runs_nothing(open_page, bank, text):
    bank.add(text, namespace=(text,), **{f"x{text}": text, "list": [text]}, merge=False)
    bank.add(f"{text} again", merge=False)
    view = view_bank(bank, text, queries=(text,))
    page = view.render()
    tab = open_page(page)
    assert tab.evaluate("document.getElementById('title').textContent") == text
    assert sorted(texts(tab)) == sorted([text, f"{text} again"])
    tab.click("#records .entry >> nth=1")
    wild = "script:not(#data), iframe, object, a, svg, link, base, details, [onerror], [onload]"
    assert tab.evaluate(f"document.querySelectorAll({wild!r}).length") == 1
    assert tab.url.startswith("file:")
    data = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert data
    assert not set(data[1]) & set("<>&'")
    assert json.loads(data[1]) == view.data


def test_a_notebook_shows_a_bank(bank, tmp_path):
    with pytest.raises(ValueError, match=r"a memory bank has no records"):
        scrubjay.look(bank)
    bank.add("The kettle is blue.")
    view = scrubjay.look(bank)
    assert "The kettle is blue." in view._repr_html_()
    assert view.save(tmp_path / "new" / "facts.html").read_text().startswith("<!doctype html>")
    with pytest.raises(ValueError, match=r"the page of a bank is HTML; name it facts\.html"):
        view.save("facts.png")


def test_who_looks_at_a_bank_s_file_is_told_how(bank, tmp_path):
    bank.add("The kettle is blue.")
    with pytest.raises(ValueError, match=r"show a memory bank with `scrubjay memory page .*facts\.db`"):
        scrubjay.look(tmp_path / "facts.db")


def test_of_many_records_the_latest_and_the_hits_are_shown(bank):
    first = bank.add("Vera lives in Lisbon.", kind="conversation", merge=False)
    for number in range(3):
        bank.add(f"task {number}", kind="task", merge=False)
    bank.add("vera has a task", ttl=60)
    data = view_bank(bank, "facts.db", max_records=2, queries=("Lisbon",)).data
    assert [row["text"] for row in data["records"]] == ["vera has a task", "task 2", "Vera lives in Lisbon."]
    assert data["about"][0] == ["records", "3 of 5"]
    assert data["queries"][0]["hits"][0]["id"] == first
    days = (data["records"][0]["expires"] - data["records"][0]["created"]) / 86_400
    assert days == pytest.approx(60)
    with bank.store.writing() as connection:
        connection.execute("UPDATE expiries SET time = 'never'")
    assert view_bank(bank, "facts.db").data["records"][0]["expires"] is None
    with pytest.raises(ValueError, match="max_records=0: must be at least 1"):
        view_bank(bank, "facts.db", max_records=0)
    with pytest.raises(ValueError, match="k=0"):
        view_bank(bank, "facts.db", queries=("Lisbon",), k=0)


def test_other_wordings_are_shown(open_page, bank):
    bank.add("The kettle is blue.")
    bank.add("the kettle is blue")
    tab = open_page(view_bank(bank, "facts.db").render())
    assert "Other wordings" in tab.inner_text("#record")
    assert "the kettle is blue" in tab.inner_text("#record")


def test_the_command_writes_a_page_beside_the_bank(bank, tmp_path, capsys):
    bank.add("<script>alert(1)</script>")
    assert command.run(["page", str(tmp_path / "facts.db"), "--query", "alert", "--query", "script"]) == 0
    assert "facts.html: 1 records" in capsys.readouterr().out
    page = (tmp_path / "facts.html").read_text()
    assert "<script>alert" not in page
    assert json.loads(re.search(r'id="data">(.*?)</script>', page)[1])["queries"][1]["text"] == "script"  # pyright: ignore[reportOptionalSubscript]
    with pytest.raises(UsageError, match=r"name it facts\.html"):
        command.run(["page", str(tmp_path / "facts.db"), "--out", str(tmp_path / "facts.json")])
