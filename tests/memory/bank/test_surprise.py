import contextlib
import hashlib

import numpy as np
import pytest

from scrubjay.memory import MemoryBank, SurpriseConfig

ON = SurpriseConfig()
SAVE_INTERVAL = 256  # records before the state is saved in the file


class TopicEmbeddings:
    """Embeddings with one direction for the first word of a text, and a small part for the whole text."""

    def embed_query(self, text):
        return (_direction(text.split()[0]) + 0.2 * _direction(text)).tolist()

    def embed_documents(self, texts):
        return [self.embed_query(text) for text in texts]


def _direction(text):
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    return np.random.default_rng(seed).standard_normal(16)


def open_bank(path, config=ON):
    return MemoryBank(path, TopicEmbeddings(), surprise=config)


def add(bank, *numbers):
    return [bank.add(f"weather {n}", merge=False) for n in numbers]


def importance(bank, id):
    record = bank.get(id)
    assert record is not None
    return record.importance


def learn_and_dump(bank):
    bank._embedding_index._surprise.catch_up()
    return bank._embedding_index._surprise.state_bytes()


def write_some(path, numbers):
    with open_bank(path) as bank:
        add(bank, *numbers)


def test_what_was_told_often_surprises_less_and_what_is_new_more(tmp_path):
    with open_bank(tmp_path / "bank.db") as bank:
        (first,) = add(bank, 0)
        assert importance(bank, first) == 0.5
        add(bank, *range(1, 80))
        (usual,) = add(bank, 80)
        new = bank.add("earthquake now")
        assert importance(bank, usual) < 0.5
        assert importance(bank, new) > 0.9
        assert importance(bank, bank.add("earthquake then", importance=0.3, merge=False)) == 0.3


@pytest.mark.slow
def test_what_was_learned_is_the_same_bits_after_restarts_and_with_several_writers(tmp_path):
    numbers = range(SAVE_INTERVAL + 40)
    with open_bank(tmp_path / "one.db") as bank:
        add(bank, *numbers)
        once = learn_and_dump(bank)
    for begin in range(0, len(numbers), 97):
        write_some(tmp_path / "restarted.db", numbers[begin : begin + 97])
    with open_bank(tmp_path / "restarted.db") as bank:
        bank.embed_drafts([bank.draft("weather")])
        assert learn_and_dump(bank) == once
    with open_bank(tmp_path / "both.db") as one, open_bank(tmp_path / "both.db") as other:
        for number in numbers:
            add((one, other)[number % 3 == 0], number)
        assert learn_and_dump(one) == learn_and_dump(other) == once


def test_what_is_forgotten_is_unlearned(tmp_path):
    path = tmp_path / "bank.db"
    with open_bank(path) as bank, open_bank(tmp_path / "without.db") as without:
        secret = bank.add("secret thing")
        for number in range(SAVE_INTERVAL + 16):
            add(bank, number)
            add(without, number)
        assert learn_and_dump(bank) != learn_and_dump(without)
        bank.forget(secret)
        with bank.store.reading() as connection:
            assert connection.execute("SELECT COUNT(*) FROM surprise").fetchone() == (0,)
        assert learn_and_dump(bank) == learn_and_dump(without)


def test_questions_are_searched_with_what_they_call_to_mind(tmp_path):
    config = SurpriseConfig(importance=False, recall_weight=0.5)
    with open_bank(tmp_path / "bank.db", config) as bank:
        (first, *_) = add(bank, *range(40))
        assert importance(bank, first) == 0.5
        (hit, *_) = bank.search("weather 3", explain=True)
        with MemoryBank(tmp_path / "bank.db", TopicEmbeddings()) as plain:
            other = {h.id: h for h in plain.search("weather 3", k=40, explain=True)}[hit.id]
        assert hit.text == "weather 3"
        assert hit.explanation is not None
        assert other.explanation is not None
        assert hit.explanation.cosine != pytest.approx(other.explanation.cosine, abs=1e-4)
        # A search by meaning uses the query's own vector.
        (nearest, *_) = bank.search("weather 3", by="meaning")
        assert nearest.score == pytest.approx(other.explanation.cosine)


def test_surprise_without_embeddings_is_refused():
    with pytest.raises(ValueError, match="pass an embedding model"):
        MemoryBank(":memory:", surprise=ON)


@pytest.mark.parametrize("num_before", [0, 20])
def test_what_was_rolled_back_was_never_learned(tmp_path, num_before):
    with open_bank(tmp_path / "bank.db") as bank:
        add(bank, *range(num_before))
        with contextlib.suppress(KeyError), bank.store.writing():
            add(bank, *range(100, 120))
            raise KeyError
        add(bank, *range(num_before, 50))
        with open_bank(tmp_path / "other.db") as other:
            add(other, *range(50))
            assert learn_and_dump(bank) == learn_and_dump(other)
