"""Rows and settings in files that stay complete after a kill."""

import pytest

from scrubjay.experiments.measurements import Records, prepare_results_dir


def test_a_line_cut_off_is_dropped(tmp_path):
    records = Records(tmp_path / "r.jsonl", {"a": int})
    records.append({"a": 1, "b": None})
    records.append({"a": 2, "b": 0.5})
    with records.path.open("a") as file:
        file.write('{"a": 3, ')
    again = Records(records.path, {"a": int})
    assert again.rows == records.rows
    assert again.find(b=None) == [{"a": 1, "b": None}]
    again.append({"a": 4})
    assert Records(records.path, {"a": int}).rows == again.rows


def test_settings_are_kept_and_compared(tmp_path):
    prepare_results_dir(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    (tmp_path / "x" / "sinks.jsonl").write_text("{}\n")
    prepare_results_dir(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    with pytest.raises(ValueError, match="budget=8, now 9"):
        prepare_results_dir(tmp_path / "x", {"budget": 9, "lengths": (1, 2)})


def test_settings_without_results_may_change(tmp_path):
    prepare_results_dir(tmp_path, {"model": "smolm2"})
    prepare_results_dir(tmp_path, {"model": "smollm2"})
    (tmp_path / "sinks.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match="model='smollm2', now 'smolm2'"):
        prepare_results_dir(tmp_path, {"model": "smolm2"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": "x", "b": 1}', "expected int"),
        ('{"b": 1}', "lacks a"),
        ("[1]", "instead of a JSON object"),
        ('{"a": 1', "is not JSON"),
        ("[" * 100_000, "too deep"),
        ('{"a": ' + "9" * 5000 + "}", "5000 digits"),
        ("\udcff", "not valid UTF-8"),
    ],
    ids=["kind", "lacking", "list", "cut", "deep", "long", "bytes"],
)
def test_a_damaged_row_is_named_and_kept(line, message, tmp_path):
    """A damaged row is an error for the user to resolve; no row is dropped."""
    path = tmp_path / "r.jsonl"
    path.write_bytes(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n'.encode(errors="surrogateescape"))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message) as error:
        Records(path, {"a": int})
    assert str(path) in str(error.value)
    assert path.read_bytes() == before
