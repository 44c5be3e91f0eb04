"""`scrubjay chat` with its input from a pipe."""

import io
import re
import signal

import pytest

pytest.importorskip("transformers")

from rich.console import Console

from scrubjay.experiments import cli
from scrubjay.experiments.commands.chat import Chat, ChatOptions
from scrubjay.memory.context.layers.turned import turns_of


@pytest.fixture(scope="module")
def folder(tiny_chat, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for part in tiny_chat:
        part.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def talk(folder, monkeypatch, capsys):
    def run(*lines, flags=()):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
        code = cli.main(
            ["chat", "--model", folder, "--temperature", "0", "--max-tokens", "12", "--budget", "40", *flags]
        )
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def answers(out):
    """Return what was said before each line of cost, and the numbers of that line."""
    found = re.findall(r"(.*)\n(\d+) tokens \((\d+) read, (\d+) said\), cache ([\d.]+) MiB", out)
    return [said for said, *_ in found], [tuple(map(float, numbers)) for _, *numbers in found]


def test_turns_read_only_what_is_new_and_tell_their_cost(talk):
    code, out, _ = talk("Hello", "", "And now?", "On", "/reset", "Hello")
    assert code == 0
    said, costs = answers(out)
    total, read, told, _ = zip(*costs, strict=True)
    assert said[0] == said[3]
    assert told == (12,) * 4
    # The last token said is read with the next turn.
    for turn in (1, 2):
        assert total[turn] - total[turn - 1] == read[turn] + told[turn] - 1
    assert costs[0] == costs[3]


def test_a_conversation_goes_on_from_disk(talk, tmp_path):
    _, out, _ = talk("Hello", f"/save {tmp_path}/kept", "And now?")
    code, resumed, _ = talk(f"/load {tmp_path}/kept", "And now?")
    assert code == 0
    assert answers(resumed)[0] == answers(out)[0][1:]
    assert answers(resumed)[1] == answers(out)[1][1:]


def test_mistakes_are_told_and_end_nothing(talk, tmp_path):
    code, out, _ = talk(
        "/saves", "/save", "/policy sinkz", "/policy sinks x", f"/load {tmp_path}", "/help", "/quit", "no"
    )
    assert code == 0
    for told in (
        "did you mean '/save'",
        "/save FOLDER",
        "did you mean 'sinks'",
        "'x'",
        "no saved conversation",
    ):
        assert told in " ".join(out.split())
    assert not answers(out)[0]


def test_another_policy_reads_the_conversation_again(talk):
    _, out, _ = talk("Hello", "/policy full", "And now?", "/policy sinks 30", "/policy")
    _, costs = answers(out)
    assert costs[1][1] > costs[0][0]
    assert out.count("policy sinks (budget 30, num_sinks 4)") == 2


def test_what_cannot_begin_is_one_line(talk):
    code, _, err = talk(flags=["--model", "/no/such/folder"])
    assert (code, err.count("\n")) == (2, 1)
    assert "no model at '/no/such/folder'" in err
    code, _, err = talk(flags=["--top-p", "0"])
    assert (code, err) == (2, "scrubjay: top_p=0.0: must be above 0 and at most 1\n")


class Interrupted(io.StringIO):
    """A screen in front of which somebody presses Ctrl-C as the fifth piece appears."""

    pieces = 0

    def write(self, text):
        if text and not text.isspace():
            self.pieces += 1
            if self.pieces == 5:
                signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_control_c_stops_the_answer_and_not_the_chat(folder):
    screen = Interrupted()
    options = ChatOptions(model=folder, temperature=0, max_tokens=50, policy="full")
    chat = Chat(options, Console(file=screen))
    before = signal.getsignal(signal.SIGINT)
    chat.answer("Hello")
    assert "stopped; cache" in screen.getvalue()
    assert signal.getsignal(signal.SIGINT) is before
    chat.answer("And now?")
    _, ((total, read, said, _),) = answers(screen.getvalue())
    assert total > read + said


def test_control_c_twice_stops_at_once_and_not_the_chat(folder, monkeypatch):
    screen = io.StringIO()
    chat = Chat(ChatOptions(model=folder, temperature=0, max_tokens=12), Console(file=screen))
    turns_of(chat._chat.loaded.model)  # it is tried once, and not to be counted here
    layer = chat._chat.loaded.model.model.layers[1]
    calls = []

    def press_twice(*_):
        calls.append(1)
        if len(calls) == 14:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    hook = layer.register_forward_pre_hook(press_twice)
    monkeypatch.setattr("sys.stdin", io.StringIO("Hello\nAnd now?\nAnd now?"))
    assert chat.run() == 0
    hook.remove()
    assert "stopped at once" in screen.getvalue()
    said, costs = answers(screen.getvalue())
    assert len(said) == 2
    # Nothing of the conversation is lost: it is read again.
    assert costs[1][0] - costs[1][2] == costs[1][1] > costs[0][0]
