"""`scrubjay inspect` with a question: invalid options, and retrieval by the real model."""

import pytest

from scrubjay.experiments.commands.main import main
from scrubjay.experiments.viz.trace import read_trace

pytestmark = pytest.mark.requires("transformers")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--question", "Who?"], "question='Who?': has an effect only with --look"),
        (["--question", "Who?", "--policy", "sinks", "--look", "a.html"], "cannot be combined"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_read(words, message, capsys):
    assert main(["inspect", "nowhere", "--text", "nowhere.txt", *words]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.matrix
def test_inspect_finds_the_sentence_and_shows_it(smollm2, tmp_path, capsys):
    hay = [f"The river number {number} runs slowly to the grey sea." for number in range(120)]
    hay.insert(40, "The secret word of the jay is marmalade.")
    (tmp_path / "text.txt").write_text(" ".join(hay))
    words = ["inspect", "smollm2", "--text", str(tmp_path / "text.txt"), "--tokens", "20"]
    words += ["--out", str(tmp_path / "maps.png"), "--look", str(tmp_path / "read.json")]
    assert main([*words, "--question", "What is the secret word of the jay?", "--chunk", "256"]) == 0
    trace = read_trace(tmp_path / "read.json")
    recall = trace.steps[-1].recalls[0]
    assert "marmalade" in trace.steps[recall.steps[recall.weights.argmax()]].text
    assert "marmalade" in capsys.readouterr().out.lower()
