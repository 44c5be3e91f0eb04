"""Rows and settings kept in a file, whole after a kill."""

import pytest

from scrubjay.experiments.runs.records import Records, settle


def test_a_line_cut_off_is_dropped(tmp_path):
    records = Records(tmp_path / "r.jsonl")
    records.append({"a": 1, "b": None})
    records.append({"a": 2, "b": 0.5})
    with records.path.open("a") as file:
        file.write('{"a": 3, ')
    again = Records(records.path)
    assert again.rows == records.rows
    assert again.find(b=None) == [{"a": 1, "b": None}]
    again.append({"a": 4})
    assert Records(records.path).rows == again.rows


def test_settings_are_kept_and_compared(tmp_path):
    settle(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    settle(tmp_path / "x", {"budget": 8, "lengths": (1, 2)})
    with pytest.raises(ValueError, match="budget=8, now 9"):
        settle(tmp_path / "x", {"budget": 9, "lengths": (1, 2)})
