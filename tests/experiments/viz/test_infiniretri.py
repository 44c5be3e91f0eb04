"""Trace of InfiniRetri: it shows the retained sentences after every chunk and at the end."""

import pytest

from scrubjay.experiments.viz.language_model import InfiniRetriRecorder
from scrubjay.experiments.viz.look import render_page
from scrubjay.experiments.viz.trace import from_json, to_json
from scrubjay.memory.context.infiniretri import InfiniRetri

pytestmark = pytest.mark.requires("transformers")

TEXT = " ".join(f"Jay {number} hid <b>worm {number}</b> here." for number in range(30))


@pytest.fixture
def read(tiny_chat):
    reader = InfiniRetri(*tiny_chat, chunk_tokens=48, top_k=6, phrase=4, layer=0, heads=[0])
    recorder, selections = InfiniRetriRecorder(reader, "Where?"), []

    def record(selection):
        selections.append(selection)
        recorder.record(selection)

    result = reader.read(TEXT, "Where?", progress=False, max_new_tokens=3, on_chunk=record)
    return recorder, selections, result


def test_what_is_shown_is_what_was_kept(read):
    recorder, selections, result = read
    trace = recorder.trace("a text", result)
    assert from_json(to_json(trace)) == trace
    assert "".join(step.text for step in trace.steps) == TEXT
    moments = [step for step in trace.steps if step.recalls]
    assert len(moments) == len(selections) > 2
    for step, selection in zip(moments, selections, strict=True):
        (recall,) = step.recalls
        assert recall.name == "kept"
        sentences = [selection.sentences[at] for at in selection.indices]
        assert [trace.steps[at].text for at in recall.steps] == [one.text for one in sentences]
        # The best retained sentence has the largest weight.
        best = max(selection.scores[at] for at in selection.indices)
        assert recall.most == pytest.approx(best)
    last = moments[-1].recalls[0].steps
    assert tuple(trace.steps[at].text.strip() for at in last) == result.sentences
    assert trace.about["answer"] == result.answer


def test_stopped_it_shows_what_was_read_by_then(read):
    recorder, selections, _ = read
    half = InfiniRetriRecorder(recorder._reader, "Where?")
    assert not half
    for selection in selections[:2]:
        half.record(selection)
    trace = half.trace("a text")
    assert TEXT.startswith("".join(step.text for step in trace.steps))
    assert "answer" not in trace.about


def test_a_browser_shows_it(read, open_page):
    recorder, _, result = read
    tab = open_page(render_page(recorder.trace("a text", result)))
    assert tab.evaluate("document.querySelectorAll('b').length") == 0
    classes = tab.evaluate("[...document.querySelectorAll('#said .word')].map((word) => word.className)")
    recall = sum("dropped" not in names for names in classes)
    assert recall == len(result.sentences)
    assert "evicted" in tab.inner_text("#legend")
