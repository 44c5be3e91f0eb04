"""Words nominate few of the many records that hold them."""

from scrubjay.memory.bank.search import keyword


def texts(hits):
    return [hit.text for hit in hits]


def test_words_that_too_many_records_hold_choose_none_but_weigh(bank, monkeypatch):
    monkeypatch.setattr(keyword, "_MOST_MATCHES", 5)
    bank.add("a heron by the water", merge=False)
    bank.add("an early boat", merge=False)
    bank.add("a mill", merge=False)
    bank.add("another mill", merge=False)
    bank.add("a heron by the boat", merge=False)
    for n in range(40):
        bank.add(f"boat number {n}", kind="task")
    assert texts(bank.search("heron boat", kinds="conversation"))[0] == "a heron by the boat"
    found = texts(bank.search("heron boat", k=50))
    assert found[0] == "a heron by the boat"
    assert "a heron by the water" in found
    # The newest five, and the neighbour of the oldest of them.
    assert set(texts(bank.search("boat", k=50))) == {f"boat number {n}" for n in range(34, 40)}
