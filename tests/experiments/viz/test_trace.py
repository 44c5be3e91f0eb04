"""Trace format: written traces are read back, and invalid files are rejected."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scrubjay.experiments.viz.trace import (
    KINDS,
    Recall,
    Step,
    Trace,
    from_json,
    read_trace,
    to_json,
    write_trace,
)

PICTURE = "data:image/png;base64,iVBORw0KGgo="


def small() -> Trace:
    """A trace that uses all of the format."""
    recalls = (
        Recall.from_weights("chunks, layer 0", [0, 1], [0.25, 0.75]),
        Recall.from_weights("density", [1], [1.0]),
    )
    steps = (
        Step(0, 0, "a card", "1", {"0": 0.1, "1": 0.9}),
        Step(1.5, None, "", "0", {}, recalls),
    )
    tracks = {"reward": (0.0, 1.0), "surprise": (None, 0.5)}
    tables = {"kept": {"layer 0": (1.0, 2.0), "layer 1": (3.0,)}}
    return Trace("policy", "one", steps, {"memory": "hcam"}, "seconds", 8.0, (PICTURE,), tracks, tables)


def test_what_is_written_is_read(tmp_path):
    path = write_trace(small(), tmp_path / "new" / "trace.json")
    assert read_trace(path) == small()
    value = json.loads(path.read_text())
    assert (value["format"], value["version"]) == ("scrubjay-trace", 1)
    assert value["steps"][1]["recalls"][0] == {
        "name": "chunks, layer 0",
        "runs": [[0, 2]],
        "most": 0.75,
        "levels": "Vf8=",
    }


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_weights_keep_their_steps_and_eight_bits(data):
    steps = data.draw(st.lists(st.integers(-1, 60), unique=True, max_size=30))
    chances = st.floats(0, 1, allow_subnormal=False)
    weights = data.draw(st.lists(chances, min_size=len(steps), max_size=len(steps)))
    recall = Recall.from_weights("read", steps, weights)
    positive_weights = {
        step: weight for step, weight in zip(steps, weights, strict=True) if step >= 0 and weight > 0
    }
    assert recall.steps.tolist() == sorted(positive_weights)
    expected = np.array([positive_weights[step] for step in sorted(positive_weights)])
    assert np.abs(recall.weights - expected).max(initial=0) <= recall.most / 255 + 1e-12
    assert recall.most == max(positive_weights.values(), default=0)
    assert all(a + n < b for (a, n), (b, _) in zip(recall.runs, recall.runs[1:], strict=False))


@settings(max_examples=40, deadline=None)
@given(
    st.text(max_size=20),
    st.lists(st.tuples(st.text(max_size=5), st.floats(allow_nan=False, allow_infinity=False)), max_size=5),
    st.sampled_from(KINDS),
)
def test_any_text_and_number_survives(text, rows, kind):
    steps = tuple(Step(time, text=message, choice=text) for time, (message, _) in enumerate(rows))
    trace = Trace(kind, text, steps, {text: text}, tracks={text: tuple(number for _, number in rows)})
    assert from_json(to_json(trace)) == trace


def change_json(change):
    value = json.loads(to_json(small()))
    change(value)
    return json.dumps(value)


def put(*path):
    """Return a function that sets the item at a path to the last argument."""
    *places, name, new = path

    def change(value):
        for place in places:
            value = value[place]
        value[name] = new

    return change


RECALL = ("steps", 1, "recalls", 0)
DAMAGED = {
    "is not a Scrubjay trace": put("format", "tensorboard"),
    "of version 2": put("version", 2),
    "of version '1'": put("version", "1"),
    "kind='robot'": put("kind", "robot"),
    "title is 3": put("title", 3),
    "has the unknown field 'script'": put("script", "alert(1)"),
    "about 'memory' is \\['hcam'\\]": put("about", "memory", ["hcam"]),
    "rate=0": put("rate", 0),
    "rate=nan": put("rate", math.nan),
    "picture 0 is 'https": put("pictures", 0, "https://example.org/x.png"),
    "picture 0 is 'data:image/svg.*; it must be a base64 data": put("pictures", 0, "data:image/svg+xml,x"),
    "picture 0 is 'data:image/png": put("pictures", 0, PICTURE + '" onerror="alert(1)'),
    "steps: 7 is not a list": put("steps", 7),
    "step 0: 7 is not an object": put("steps", 0, 7),
    "step 0 has the unknown field 'more'": put("steps", 0, "more", 1),
    "step 0 has time=inf": put("steps", 0, "time", math.inf),
    "step 1 has time=-1": put("steps", 1, "time", -1),
    "step 1 has picture=1": put("steps", 1, "picture", 1),
    "step 1 has picture=True": put("steps", 1, "picture", True),
    "'0' is 1.5": put("steps", 0, "options", "0", 1.5),
    "track 'reward' holds nan": put("tracks", "reward", 0, math.nan),
    "track 'reward' holds 1000": put("tracks", "reward", 0, 10**400),
    "track 'reward' has 1 values": put("tracks", "reward", [1]),
    "tracks: \\[\\] is not an object": put("tracks", []),
    "most=-1": put(*RECALL, "most", -1),
    "the run \\[0, 3\\]": put(*RECALL, "runs", [[0, 3]]),
    "the run \\[2, 1\\]": put(*RECALL, "runs", [[2, 1]]),
    "the run \\[0, 1\\]": put(*RECALL, "runs", [[1, 1], [0, 1]]),
    "the run \\[0\\]": put(*RECALL, "runs", [[0]]),
    "runs of recalls of step 1: 5 is not a list": put(*RECALL, "runs", [5]),
    "2 levels for 1 steps": put(*RECALL, "runs", [[0, 1]]),
    "are not valid base64": put(*RECALL, "levels", "?"),
    "are not valid base64: 5": put(*RECALL, "levels", 5),
    "name of recalls of step 1 is None": put(*RECALL, "name", None),
}


@pytest.mark.parametrize("message", DAMAGED)
def test_what_is_no_trace_is_refused_in_a_line(message):
    with pytest.raises(ValueError, match=message) as error_info:
        from_json(change_json(DAMAGED[message]), "look.json")
    assert "\n" not in str(error_info.value)
    assert str(error_info.value).startswith("look.json")
    assert len(str(error_info.value)) < 300


@pytest.mark.parametrize("missing", ["kind", "steps", "tracks", "pictures"])
def test_what_lacks_a_part_is_refused(missing):
    with pytest.raises(ValueError, match=missing):
        from_json(change_json(lambda value: value.pop(missing)))


@pytest.mark.parametrize("text", ["", "[]", "7", "{", "[" * 100_000, '{"format": "scrubjay-trace"}'])
def test_what_is_no_object_is_refused(text):
    with pytest.raises(ValueError, match="the trace"):
        from_json(text)


def test_files_that_are_huge_or_none_are_refused(tmp_path):
    with (tmp_path / "huge.json").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(ValueError, match="bytes"):
        read_trace(tmp_path / "huge.json")
    with pytest.raises(OSError, match=r"nowhere"):
        read_trace(tmp_path / "nowhere.json")
