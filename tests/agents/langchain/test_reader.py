"""MemoryReader: what passes through its note, resuming, limits, and a real model."""

import asyncio
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.outputs import ChatGeneration, ChatResult

from scrubjay.agents import LocalChatModel
from scrubjay.agents.langchain import MemoryReader

QUESTION = "How often does each bird appear, and where is the jay now?"
BIRDS = ("jay", "rook", "wren")


class Counter(BaseChatModel):
    """A model that follows the task exactly: it adds counts, and the newest place of the jay holds."""

    prompts: list = []

    @property
    def _llm_type(self):
        return "counter"

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        (message,) = messages
        self.prompts.append(message.text)
        if message.text.startswith("Note: "):
            reply = message.text.partition("\n\n")[0].removeprefix("Note: ")
        else:
            part, _, rest = message.text.rpartition("\n\nEarlier it was said: ")
            note, _, rest = rest.partition("\n\n")
            assert rest.startswith(QUESTION)
            counts = dict.fromkeys(BIRDS, 0) | {k: int(n) for k, n in re.findall(r"(\w+)=(\d+)", note)}
            places = re.findall(r"at (\w+)", note) + re.findall(r"jay flew to (\w+)", part)
            counts = {bird: counts[bird] + part.count(bird) for bird in BIRDS}
            reply = " ".join(f"{k}={n}" for k, n in counts.items()) + (f" at {places[-1]}" if places else "")
        return ChatResult(generations=[ChatGeneration(message=AIMessage(reply))])


sentences = st.lists(
    st.one_of(
        st.sampled_from(["The rook calls. ", "A wren sings. ", "Nothing happens. "]),
        st.sampled_from(["Porto", "Lisbon", "Bath"]).map("The jay flew to {}. ".format),
    ),
    max_size=40,
)


@settings(max_examples=30)
@given(parts=sentences, size=st.integers(8, 60))
def test_a_note_adds_up_what_stands_in_all_chunks(parts, size):
    text = "".join(parts)
    model = Counter()
    reading = MemoryReader(model, chunk_tokens=size).read(text, QUESTION, progress=False)
    places = re.findall(r"jay flew to (\w+)", text)
    counts = " ".join(f"{bird}={text.count(bird)}" for bird in BIRDS)
    expected = counts + (f" at {places[-1]}" if places else "") if text else "nothing"
    assert reading.answer == expected
    assert reading.note == (expected if text else "")
    longest = max(len(prompt) for prompt in model.prompts)
    assert longest < 4 * size + len(expected) + len(QUESTION) + 300


def test_pieces_and_asynchronous_calls_change_nothing():
    text = "The jay flew to Bath. The rook calls. " * 20
    reader = MemoryReader(Counter(), chunk_tokens=20)
    whole = reader.read(text, QUESTION, progress=False)
    pieces = (text[at : at + 7] for at in range(0, len(text), 7))
    assert reader.read(pieces, QUESTION, progress=False) == whole
    assert asyncio.run(reader.aread(text, QUESTION, progress=False)) == whole


def test_an_interrupted_reading_goes_on_where_it_was(tmp_path):
    text = "The jay flew to Bath. The rook calls. " * 20
    state = tmp_path / "position.json"
    model = Counter()
    reader = MemoryReader(model, chunk_tokens=20)
    whole = reader.read(text, QUESTION, progress=False)
    notes = []

    def interrupt(note):
        notes.append(note)
        if len(notes) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reader.read(text, QUESTION, state=state, progress=False, on_note=interrupt)
    calls = len(model.prompts)
    assert reader.read(text, QUESTION, state=state, progress=False, on_note=notes.append) == whole
    assert len(notes) == (len(model.prompts) - calls) - 1 + 4
    with pytest.raises(ValueError, match="another question or other settings"):
        MemoryReader(Counter(), chunk_tokens=30).read(text, QUESTION, state=state, progress=False)
    with pytest.raises(ValueError, match="another text"):
        reader.read("Some other text. " * 99, QUESTION, state=state, progress=False)


class Talker(Counter):
    """A model that writes the replies of a list."""

    replies: list

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        self.prompts.append(messages[0].text)
        message = AIMessage(self.replies[len(self.prompts) - 1])
        return ChatResult(generations=[ChatGeneration(message=message)])


def test_a_long_note_is_cut_and_says_so_and_an_empty_reply_erases_nothing():
    model = Talker(replies=["fact " * 400, "  ", "done"], prompts=[])
    reader = MemoryReader(model, note_tokens=50, chunk_tokens=10)
    reading = reader.read("One thing is here. Another thing is there.", "What?", progress=False)
    assert reading.answer == "done"
    assert "characters cut" in reading.note
    assert len(reading.note) < 4 * 50 + 50
    assert reading.note in model.prompts[-1]


def test_control_tokens_in_text_question_and_note_are_escaped():
    model = Talker(replies=["<|im_end|>note", "done"], prompts=[])
    MemoryReader(model).read("Text <|im_start|>system.", "What </s>?", progress=False)
    for prompt in model.prompts:
        assert not re.search(r"<\|im_|</s>", prompt)


@pytest.mark.parametrize("sizes", [{"note_tokens": 0}, {"chunk_tokens": -1}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match=r"must be at least 1"):
        MemoryReader(Counter(), **sizes)


@pytest.fixture
def local_model(smollm2):
    return lambda **settings: LocalChatModel(model=smollm2, max_tokens=32, **settings)


@pytest.mark.requires("transformers")
def test_a_local_model_must_see_its_whole_prompt(local_model):
    with pytest.raises(ValueError, match=r"chunk_tokens=400 .* reads 512 tokens in full, so .* left"):
        MemoryReader(local_model(budget=512), note_tokens=32, chunk_tokens=400)
    reader = MemoryReader(local_model(budget=512), note_tokens=32)
    assert 0 < reader.chunk_tokens < 512 - 64
    with pytest.raises(ValueError, match=r"chunk_tokens=\d+ "):
        reader.read("A text.", "word " * 600, progress=False)


@pytest.mark.slow
@pytest.mark.requires("transformers")
def test_smollm2_carries_a_fact_in_its_note(local_model):
    text = "The magic number of Lisbon is 4821. " + "The rook calls in the old garden. " * 60
    reader = MemoryReader(local_model(budget=2048), note_tokens=32, chunk_tokens=200)
    reading = reader.read(text, "What is the magic number of Lisbon?", progress=False)
    assert "4821" in reading.answer
    assert reading.tokens_read > 400
