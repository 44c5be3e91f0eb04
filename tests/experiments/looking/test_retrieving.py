"""InfiniRetri's reading as a trace: what it kept is what is shown, at every chunk and at the end."""

import pytest

pytest.importorskip("transformers")

from scrubjay.experiments.looking.page import page
from scrubjay.experiments.looking.retrieving import Retrieving
from scrubjay.experiments.looking.trace import from_json, to_json
from scrubjay.memory.reading.infiniretri import InfiniRetri

TEXT = " ".join(f"Jay {number} hid <b>worm {number}</b> here." for number in range(30))


@pytest.fixture
def read(tiny_chat):
    reader = InfiniRetri(*tiny_chat, chunk_tokens=48, top_k=6, phrase=4, layer=0, heads=[0])
    noted, told = Retrieving(reader, "Where?"), []

    def note(judged):
        told.append(judged)
        noted.note(judged)

    found = reader.read(TEXT, "Where?", progress=False, max_new_tokens=3, on_chunk=note)
    return noted, told, found


def test_what_is_shown_is_what_was_kept(read):
    noted, told, found = read
    trace = noted.trace("a text", found)
    assert from_json(to_json(trace)) == trace
    assert "".join(step.text for step in trace.steps) == TEXT
    moments = [step for step in trace.steps if step.recalled]
    assert len(moments) == len(told) > 2
    for step, judged in zip(moments, told, strict=True):
        (kept,) = step.recalled
        assert kept.name == "kept"
        sentences = [judged.sentences[at] for at in judged.kept]
        assert [trace.steps[at].text for at in kept.steps] == [one.text for one in sentences]
        # The best that is kept shows most.
        best = max(judged.scores[at] for at in judged.kept)
        assert kept.most == pytest.approx(best)
    last = moments[-1].recalled[0].steps
    assert tuple(trace.steps[at].text.strip() for at in last) == found.sentences
    assert trace.about["answer"] == found.answer


def test_stopped_it_shows_what_was_read_by_then(read):
    noted, told, _ = read
    half = Retrieving(noted._reader, "Where?")
    assert not half
    for judged in told[:2]:
        half.note(judged)
    trace = half.trace("a text")
    assert TEXT.startswith("".join(step.text for step in trace.steps))
    assert "answer" not in trace.about


def test_a_browser_shows_it(read, opened):
    noted, _, found = read
    shown = opened(page(noted.trace("a text", found)))
    assert shown.evaluate("document.querySelectorAll('b').length") == 0
    classes = shown.evaluate("[...document.querySelectorAll('#said .word')].map((word) => word.className)")
    kept = sum("dropped" not in names for names in classes)
    assert kept == len(found.sentences)
    assert "kept no more" in shown.inner_text("#legend")
