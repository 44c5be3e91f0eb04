"""Operations on a damaged bank file raise DamagedBankError or return undamaged records."""

import contextlib
import re
import shutil
import sqlite3

import numpy as np
import pytest

from scrubjay.memory import DamagedBankError, MemoryBank

# An index that lacks records is rebuilt.
pytestmark = pytest.mark.filterwarnings(
    "ignore:the index of .* lacks records", "ignore:.* has lost .* embeddings"
)
# A flipped bit may also look like another version, another model, or an unknown id.
OTHER_ERRORS = re.compile(
    "upgrade scrubjay|written with other embeddings|the bank's embeddings have|unknown record|cannot replace"
)


@pytest.fixture
def intact(tmp_path, letters):
    with MemoryBank(tmp_path / "whole.db", letters) as bank:
        ids = [
            bank.add(
                f"fact {number} of {'abcdefgh'[number % 8] * 5}", namespace=("ada",), source={"page": number}
            )
            for number in range(24)
        ]
        bank.add("fact 3 of ddddd", namespace=("ada",), source={"page": 99})
        bank.add_document("# Cats\nThey purr.\n\nThey sleep.\n# Dogs\nThey bark.")
        bank.forget(ids.pop(5))
    return tmp_path / "whole.db", ids


def drive(path, ids, embeddings):
    """Call all operations of a bank; return the number of refusals, each of an expected error class."""
    refusals = 0

    @contextlib.contextmanager
    def counting_refusals():
        nonlocal refusals
        try:
            yield
        except DamagedBankError:
            refusals += 1
        except ValueError as error:
            if not OTHER_ERRORS.search(str(error)):
                raise
            refusals += 1

    with counting_refusals(), MemoryBank(path, embeddings) as bank:
        for act in (
            lambda: bank.search("fact 3 of ddddd", namespace=("ada",), explain=True),
            lambda: bank.search("who purrs on 3 May?", kinds="knowledge"),
            lambda: [bank.get(id) for id in ids],
            lambda: bank.recent(50),
            lambda: [bank.sayings(id) for id in ids],
            lambda: list(bank.export()),
            lambda: len(bank),
            lambda: bank.add("fact 3 of eeeee ddddd", namespace=("ada",)),
            lambda: bank.add("fact 4 of eeeee", namespace=("ada",), merge=False),
            lambda: bank.add("They purr.", "knowledge", supersedes=ids[-1]),
            lambda: [bank.forget(id) for id in ids[:4]],
            lambda: bank.search("fact of eeeee"),
        ):
            with counting_refusals():
                act()
    return refusals


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.one_in(2)
@pytest.mark.parametrize("with_embeddings", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_flipped_bytes_raise_the_expected_error_or_do_no_harm(
    intact, letters, tmp_path, with_embeddings, seed
):
    path, ids = intact
    content, random, refusals = path.read_bytes(), np.random.default_rng(seed), 0
    for trial in range(40):
        damaged_content = bytearray(content)
        for place in random.integers(0, len(content), 1 + 40 * (trial % 2)):
            damaged_content[place] ^= int(random.integers(1, 256))
        file = tmp_path / f"{trial}.db"
        file.write_bytes(damaged_content)
        refusals += drive(file, ids, letters if with_embeddings else None)
    assert refusals


@pytest.mark.parametrize("part", [0.0001, 0.01, 0.1, 0.3, 0.5, 0.9])
def test_a_truncated_file_raises_the_expected_error(intact, letters, tmp_path, part):
    path, ids = intact
    content = path.read_bytes()
    file = tmp_path / "short.db"
    file.write_bytes(content[: int(len(content) * part)])
    assert drive(file, ids, letters)


COLUMNS = {
    "records": "text kind namespace trust provenance created observed renewed valid_from valid_to "
    "importance supersedes sayings chunk place digest marks",
    "sayings": "text observed provenance",
    "vectors": "vector",
    "facts": "value",
}
VALUES = ("x", b"\xff\xfe", "", 10**18, -1.5e300, "[1]", "[" * 100_000, "{", b"\0" * 7)


@pytest.mark.one_in(4, rest="slow")
@pytest.mark.one_in(2)
@pytest.mark.parametrize(
    ("table", "column"), [(table, name) for table, names in COLUMNS.items() for name in names.split()]
)
def test_a_column_of_wrong_values_raises_the_expected_error_or_does_no_harm(
    intact, letters, tmp_path, table, column
):
    path, ids = intact
    for number, value in enumerate(VALUES):
        file = tmp_path / f"{number}.db"
        shutil.copy(path, file)
        with contextlib.closing(sqlite3.connect(file)) as connection, connection:
            some = "WHERE rowid % 2" if table != "facts" else ""
            connection.execute(f"UPDATE {table} SET {column} = ? {some}", (value,))
        drive(file, ids, letters)


@pytest.mark.parametrize("provenance", ["{", "[1]", "null", "", b"\0\1", "[" * 100_000])
def test_invalid_provenance_raises_an_error_that_names_the_file(intact, provenance):
    path, ids = intact
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE records SET provenance = ? WHERE id = ?", (provenance, ids[0]))
    with MemoryBank(path) as bank:
        for act in (lambda: bank.get(ids[0]), lambda: bank.recent(99), lambda: list(bank.export())):
            with pytest.raises(DamagedBankError, match=r"whole\.db' is damaged, .*provenance is not"):
                act()
        sound = bank.get(ids[1])
        assert sound is not None
        assert sound.provenance == {"source": {"page": 1}}


def test_errors_without_damage_keep_their_classes(intact):
    path, ids = intact
    with MemoryBank(path) as bank:
        with pytest.raises(ValueError, match="unknown record") as error:
            bank.add("x", supersedes="nobody")
        assert not isinstance(error.value, DamagedBankError)
        with pytest.raises(TypeError, match="id=<object"):
            bank.get(object())  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError), bank.store.writing():
            raise TypeError
    with pytest.raises(sqlite3.ProgrammingError):
        bank.get(ids[0])
