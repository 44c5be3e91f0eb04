"""`scrubjay chat` with its input from a pipe."""

import io
import re
import shutil
import signal

import pytest
from rich.console import Console

from scrubjay.experiments.commands import main
from scrubjay.experiments.commands.chat import Chat, ChatOptions
from scrubjay.memory.context.layers.rotation import find_rotation

pytestmark = pytest.mark.requires("transformers")


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
        code = main.main(
            ["chat", "--model", folder, "--temperature", "0", "--max-tokens", "12", "--budget", "40", *flags]
        )
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return run


def answers(out):
    """Return the reply before each line of cost, and the numbers of that line."""
    matches = re.findall(r"(.*)\n(\d+) tokens \((\d+) read, (\d+) written\), cache ([\d.]+) MiB", out)
    return [reply for reply, *_ in matches], [tuple(map(float, numbers)) for _, *numbers in matches]


def test_turns_read_only_what_is_new_and_tell_their_cost(talk):
    code, out, _ = talk("Hello", "", "And now?", "On", "/reset", "Hello")
    assert code == 0
    replies, costs = answers(out)
    total, read, written_tokens, _ = zip(*costs, strict=True)
    assert replies[0] == replies[3]
    assert written_tokens == (12,) * 4
    # The last generated token is processed with the next turn.
    for turn in (1, 2):
        assert total[turn] - total[turn - 1] == read[turn] + written_tokens[turn] - 1
    assert costs[0] == costs[3]


def test_a_conversation_goes_on_from_disk(talk, tmp_path):
    _, out, _ = talk("Hello", f"/save {tmp_path}/kept", "And now?")
    code, second_out, _ = talk(f"/load {tmp_path}/kept", "And now?")
    assert code == 0
    assert answers(second_out)[0] == answers(out)[0][1:]
    assert answers(second_out)[1] == answers(out)[1][1:]


def test_the_name_of_a_strangers_folder_is_printed_as_text(folder, tmp_path, monkeypatch, capsys):
    name = "x\x1b]2;title\x07\u202e[/bold]"
    shutil.copytree(folder, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO("/quit\n"))
    assert main.main(["chat", "--model", name]) == 0
    out, err = capsys.readouterr()
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", out + err)
    assert "[/bold]" in out


def test_mistakes_are_told_and_end_nothing(talk, tmp_path):
    code, out, _ = talk(
        "/saves", "/save", "/policy sinkz", "/policy sinks x", f"/load {tmp_path}", "/help", "/quit", "no"
    )
    assert code == 0
    for message in (
        "did you mean '/save'",
        "/save FOLDER",
        "did you mean 'sinks'",
        "'x'",
        "no saved conversation",
    ):
        assert message in " ".join(out.split())
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


class InterruptingStream(io.StringIO):
    """Output stream that sends Ctrl-C at the fifth piece of text."""

    pieces = 0

    def write(self, text):
        if text and not text.isspace():
            self.pieces += 1
            if self.pieces == 5:
                signal.raise_signal(signal.SIGINT)
        return super().write(text)


def test_control_c_stops_the_answer_and_not_the_chat(folder):
    screen = InterruptingStream()
    options = ChatOptions(model=folder, temperature=0, max_tokens=50, policy="full")
    chat = Chat(options, Console(file=screen))
    before = signal.getsignal(signal.SIGINT)
    chat.answer("Hello")
    assert "stopped; cache" in screen.getvalue()
    assert signal.getsignal(signal.SIGINT) is before
    chat.answer("And now?")
    _, ((total, read, replies, _),) = answers(screen.getvalue())
    assert total > read + replies


def test_control_c_twice_stops_at_once_and_not_the_chat(folder, monkeypatch):
    screen = io.StringIO()
    chat = Chat(ChatOptions(model=folder, temperature=0, max_tokens=12), Console(file=screen))
    find_rotation(chat._chat.loaded_model.model)  # runs the model once, which must not be counted here
    layer = chat._chat.loaded_model.model.model.layers[1]
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
    assert "stopped; the next answer processes the conversation again" in screen.getvalue()
    replies, costs = answers(screen.getvalue())
    assert len(replies) == 2
    # The conversation is not lost but processed again.
    assert costs[1][0] - costs[1][2] == costs[1][1] > costs[0][0]


def test_dropped_tokens_are_told_with_their_cost(talk):
    _, out, _ = talk("Hello " * 60, "/policy chunks 40", "Hello " * 60)
    first, second = re.findall(r"written\), cache [\d.]+ MiB([^,\n]*)", " ".join(out.split()))
    assert re.search(r"\((\d+) tokens dropped; keep them with /policy chunks", first)
    assert "dropped" not in second


def test_defaults_are_those_of_the_chat_model(folder):
    from scrubjay.agents import LocalChatModel

    chat, model = (
        Chat(ChatOptions(model=folder), Console(file=io.StringIO()))._chat,
        LocalChatModel(model=folder),
    )
    for name in ("temperature", "top_p", "max_tokens", "budget", "seed", "policy"):
        assert getattr(chat, name) == getattr(model, name)
    assert model.temperature == 0  # greedy, as transformers generates by default
