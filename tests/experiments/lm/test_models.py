"""Banks and chat models that the subcommands open: what opens, and the one-line error of what does not."""

import pytest

from scrubjay.experiments.lm.models import open_bank, open_chat_model, open_for_recall, read_namespace
from scrubjay.memory import MemoryBank


def test_a_bank_is_made_only_on_demand_and_opened_again(tmp_path):
    path = tmp_path / "new.db"
    with pytest.raises(ValueError, match=r"new\.db does not exist; create it with: scrubjay memory add"):
        open_bank(path, create=False)
    assert not path.exists()
    with open_bank(path, create=True) as bank:
        bank.add("The heron nests at the weir.")
    with open_bank(path, create=False) as bank:
        (record,) = bank.search("heron")
        assert record.created.tzinfo is not None


def test_a_file_that_is_no_bank_is_refused_in_one_line_and_unchanged(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("buy milk")
    with pytest.raises(ValueError, match=r"notes\.txt") as refusal:
        open_bank(path, create=False)
    assert len(str(refusal.value).splitlines()) == 1
    assert path.read_text() == "buy milk"


def test_a_folder_that_does_not_exist_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"folder .*nowhere does not exist"):
        open_bank(tmp_path / "nowhere" / "new.db", create=True)


def test_recall_without_the_embeddings_of_a_bank_warns(tmp_path, capsys):
    path = tmp_path / "bank.db"
    with MemoryBank(path) as bank:
        bank.add("one")
    open_for_recall(path, create=False, embeddings=None, foreign=False).close()
    assert capsys.readouterr().err == ""


def test_a_namespace_is_split_at_slashes():
    assert [read_namespace(name) for name in (None, "", "ada", "user/ada")] == [
        None,
        (),
        ("ada",),
        ("user", "ada"),
    ]


def test_a_namespace_may_be_a_json_list():
    assert read_namespace('["user", "a/b"]') == ("user", "a/b")
    assert read_namespace("[user]/a") == ("[user]", "a")
    for text, message in (('["user", "a/b"', "is not JSON"), ('["user", 3]', "write a JSON list of names")):
        with pytest.raises(ValueError, match=message):
            read_namespace(text)


def test_a_provider_that_is_not_installed_is_named():
    with pytest.raises(ImportError, match="langchain-mistralai"):
        open_chat_model("mistralai:small", 1.0, None, None)
