"""A request ends the validity of a record where a newer one starts, and an undo restores it."""

import pytest

from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.file.damage import DamagedBankError

QUERY = "Where does Vera live?"


def texts(records):
    return [record.text for record in records]


@pytest.fixture
def homes(bank):
    return [
        bank.add(f"Vera lives in {city}.", observed=f"2025-0{month}-01")
        for month, city in ((1, "Lisbon"), (4, "Porto"), (7, "Faro"))
    ]


def test_the_validity_of_the_old_record_ends_where_the_new_one_starts(bank, homes):
    before = list(bank.export())
    bank.supersede(homes[0], homes[1])
    bank.supersede(homes[1], homes[2])
    assert texts(bank.search(QUERY)) == ["Vera lives in Faro."]
    for at, city in (("2025-02-01", "Lisbon"), ("2025-05-01", "Porto"), ("2025-08-01", "Faro")):
        assert texts(bank.search(QUERY, at=at)) == [f"Vera lives in {city}."]
    assert bank.get(homes[0]).valid_to == bank.get(homes[1]).observed
    assert [bank.get(id).supersedes for id in homes] == [None, homes[0], homes[1]]
    bank.undo_supersede(homes[1], homes[2])
    bank.undo_supersede(homes[0], homes[1])
    assert list(bank.export()) == before


def test_the_start_of_validity_counts_before_the_time_of_the_statement(bank):
    new = bank.add("Vera lives in Porto.", observed="2025-01-01", valid_from="2024-01-01")
    old = bank.add("Vera lives in Lisbon.", observed="2025-02-01", valid_from="2020-01-01")
    bank.supersede(old, new)
    assert bank.get(old).valid_to == bank.get(new).valid_from
    with pytest.raises(ValueError, match="its validity ends already"):
        bank.supersede(old, new)


def test_a_supersession_of_add_can_be_undone(bank):
    old = bank.add("Vera lives in Lisbon.", observed="2025-01-01")
    new = bank.add("Vera lives in Porto.", observed="2025-04-01", supersedes=old)
    bank.undo_supersede(old, new)
    assert (bank.get(old).valid_to, bank.get(new).supersedes) == (None, None)
    assert len(bank.search(QUERY)) == 2


@pytest.mark.parametrize("foreign", [False, True])
def test_a_lower_trust_never_replaces_a_higher_one(clock, foreign):
    with MemoryBank(":memory:", clock=clock, foreign=foreign) as bank:
        ids = {
            trust: bank.add(f"Vera lives in {trust} town.", observed=f"2025-01-0{day}", trust=trust)
            for day, trust in enumerate(("user", "agent", "tool"), 1)
        }
        for old, new in (("user", "agent"), ("agent", "tool"), ("user", "tool")):
            if foreign:
                bank.supersede(ids[old], ids[new])  # all records have the trust "tool"
                bank.undo_supersede(ids[old], ids[new])
            else:
                with pytest.raises(
                    ValueError, match=f"trust '{new}' cannot replace a record of trust '{old}'"
                ):
                    bank.supersede(ids[old], ids[new])
        records = [bank.get(id) for id in ids.values()]
        assert all(record is not None and record.valid_to is None for record in records)


def test_requests_that_cannot_be_honoured_are_refused(bank, homes):
    before = list(bank.export())
    for old, new, message in (
        (homes[1], homes[0], "starts at 2025-01-01 00:00, no later"),
        (homes[0], homes[0], "no later"),
    ):
        with pytest.raises(ValueError, match=message):
            bank.supersede(old, new)
    for method in (bank.supersede, bank.undo_supersede):
        for pair in ((homes[0], "unknown"), ("unknown", homes[0])):
            with pytest.raises(KeyError, match="unknown"):
                method(*pair)
        with pytest.raises(TypeError, match="pass an id"):
            method(homes[0], 3)
    with pytest.raises(ValueError, match="does not supersede"):
        bank.undo_supersede(homes[0], homes[1])
    assert list(bank.export()) == before
    bank.supersede(homes[0], homes[2])
    with pytest.raises(ValueError, match=f"it supersedes {homes[0]!r} already"):
        bank.supersede(homes[1], homes[2])


def test_an_end_that_the_newer_record_did_not_set_stays(bank):
    old = bank.add("Vera lives in Lisbon.", observed="2025-01-01", valid_to="2025-02-01")
    new = bank.add("Vera lives in Porto.", observed="2025-04-01", supersedes=old)
    with pytest.raises(ValueError, match="another end, which stays"):
        bank.undo_supersede(old, new)
    assert texts(bank.search(QUERY, at="2025-02-01")) == []


def test_the_succession_of_each_record_is_the_whole_chain(bank, homes):
    bank.add("Bruno lives in Braga.", observed="2025-05-01")
    assert texts(bank.succession(homes[1])) == ["Vera lives in Porto."]
    bank.supersede(homes[0], homes[1])
    bank.supersede(homes[1], homes[2])
    for id in homes:
        chain = bank.succession(id)
        assert [record.id for record in chain] == homes
        assert [record.valid_to for record in chain[:-1]] == [record.observed for record in chain[1:]]
    bank.forget(homes[1])
    assert [record.id for record in bank.succession(homes[0])] == homes[:1]
    with pytest.raises(KeyError, match="no record has this id"):
        bank.succession(homes[1])


def test_a_circle_ends_and_a_damaged_time_is_reported(bank, homes):
    bank.supersede(homes[0], homes[1])
    with bank.store.writing() as connection:
        connection.execute("UPDATE records SET supersedes = ? WHERE id = ?", (homes[1], homes[0]))
    assert [record.id for record in bank.succession(homes[0])] == homes[:2]
    with bank.store.writing() as connection:
        connection.execute("UPDATE records SET valid_to = 'soon' WHERE id = ?", (homes[0],))
    for call in (lambda: bank.succession(homes[1]), lambda: bank.undo_supersede(homes[0], homes[1])):
        with pytest.raises(DamagedBankError):
            call()


def test_recent_records_are_those_of_the_time(bank, homes):
    bank.supersede(homes[0], homes[1])
    for at, cities in (
        ("2024-12-31", []),
        ("2025-02-01", ["Lisbon"]),
        ("2025-05-01", ["Porto"]),
        (None, ["Porto", "Faro"]),
    ):
        assert texts(bank.recent(9, at=at)) == [f"Vera lives in {city}." for city in cities]
    with pytest.raises(ValueError, match="at='noon'"):
        bank.recent(9, at="noon")
