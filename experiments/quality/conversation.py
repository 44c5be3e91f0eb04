"""Cost and recall of conversations of hundreds of turns with a small model.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.conversation --out runs/conversation

The user states facts from turn 3 on and asks for them as late as turn 200, between small talk and facts about
other people. Methods: `bank` is the agent with a memory bank. `bank-alone` shows recalled records but no
earlier turns in the prompt, and `words-alone` does so without embeddings. `sinks` and `full` are the model
itself with the whole conversation as input. The cache of `full` has the whole conversation, and the cache of
`sinks` its beginning and end. The same command resumes an interrupted run. Run each method in its own process
to measure its memory separately. Writes a table and a plot. Options: `--help`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any, Literal

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage
from langchain_core.runnables import RunnableConfig

from scrubjay.agents import LocalChatModel
from scrubjay.agents.kwai import KwaiAgent, Limits
from scrubjay.agents.language.provenance import mark
from scrubjay.agents.language.text import is_question
from scrubjay.experiments.lm.conversations import Conversation, Reminder, generate_reminders
from scrubjay.experiments.measurements import Records, markdown
from scrubjay.experiments.progress import GracefulInterrupt, ProgressDisplay, StopRequest
from scrubjay.experiments.quality.probe import prepare_out, run_probe, write_report
from scrubjay.experiments.resources import resident_bytes, stopwatch
from scrubjay.experiments.viz.curves import make_figure, place_legend, save_figure
from scrubjay.experiments.viz.style import assign_styles
from scrubjay.memory import MemoryBank

Method = Literal["bank", "bank-alone", "words-alone", "sinks", "full"]
_THREAD = "conversation"
_EDGE = 20
_SINKS = 4
_MAX_RANK = 100
_RANK_LIMITS = (1, 4, 6, 10)
_BANKS: dict[Method, str] = {"bank-alone": "with embeddings", "words-alone": "words alone"}


@dataclass(frozen=True, kw_only=True)
class ConversationBench:
    """Options of the benchmark."""

    methods: tuple[Method, ...] = ("bank", "bank-alone", "words-alone", "sinks", "full")
    """Methods to run."""
    model: str = "smollm2"
    """Model name, folder, or GGUF file."""
    dtype: str = "bfloat16"
    """Data type of the model."""
    budget: int = 1024
    """Tokens in the cache; `full` ignores this option."""
    prompt_tokens: int = 640
    """Maximum tokens of the agent's prompt; prompt and answer must fit in the cache."""
    max_tokens: int = 20
    """Maximum tokens of an answer."""
    recall_limit: int = 6
    """Maximum number of records shown with a question; the default is the same as in `KwaiAgent`."""
    turns: int = 200
    """Number of user turns."""
    first_fact_turn: int = 3
    """Turn that states the first fact, from 1; the other facts follow in the next turns."""
    question_turns: tuple[int, ...] = (10, 50, 100, 150, 200)
    """Turns that ask for a fact. The last of them asks for the first fact."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of the conversations."""
    recall_seeds: int = 10
    """Number of conversations in the recall test. The test searches a bank of user turns without a model and
    takes a few seconds per conversation."""
    save_every: int = 20
    """Turns between two checkpoints of the cache, from which an interrupted run resumes."""
    out: Path = Path("runs/conversation")
    """Output directory."""
    quiet: bool = False
    """Hide the progress display."""

    def script(self, seed: int) -> tuple[Conversation, tuple[Reminder, ...]]:
        """Return the conversation of a seed and its facts. Raises ValueError on invalid turns."""
        return generate_reminders(
            "en", seed, self.turns, self.first_fact_turn - 1, [turn - 1 for turn in self.question_turns]
        )


class _PromptRecorder(BaseCallbackHandler):
    """Callback that records the last prompt."""

    prompt = ""

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        self.prompt = "\n".join(message.text for message in messages[0])


class Speaker:
    """One method in one conversation: the messages so far, and the model or agent that answers."""

    def __init__(self, options: ConversationBench, method: Method, model: Any) -> None:
        self.model = LocalChatModel(
            model=model,
            dtype=options.dtype,
            policy="full" if method == "full" else "sinks",
            budget=options.budget,
            max_tokens=options.max_tokens,
        )
        self.messages: list[BaseMessage] = []
        self._recorder, self._now = _PromptRecorder(), datetime.now().astimezone()
        self._config: RunnableConfig = {
            "configurable": {"thread_id": _THREAD},
            "callbacks": [self._recorder],
        }
        self.bank: MemoryBank | None = None
        self._agent: KwaiAgent | None = None
        if method in ("bank", "bank-alone", "words-alone"):
            self.bank = MemoryBank(":memory:", _embeddings(method), clock=lambda: self._now)
            dialogue_tokens = options.prompt_tokens if method == "bank" else 1
            self._agent = KwaiAgent(
                self.model,
                memory=self.bank,
                recall_limit=options.recall_limit,
                limits=Limits(context_tokens=options.prompt_tokens, dialogue_tokens=dialogue_tokens),
                count_tokens=self.model.get_num_tokens,
                clock=lambda: self._now,
            )

    def say(self, text: str, moment: datetime) -> tuple[str, dict[str, Any]]:
        """Send a user turn; return the reply and its usage. `prompt` is then the text that the model read.

        Raises ValueError if the context length is exceeded.
        """
        self._now = moment
        messages = [*self.messages, HumanMessage(text)]
        if self._agent is None:
            answer = self.model.invoke(messages, self._config)
            usage: Any = answer.usage_metadata
        else:
            result = self._agent.invoke(messages, self._config)
            # It has the mark of an answer that was written before any untrusted text was read.
            answer, usage = result["messages"][-1], result["usage"]
        self.messages = [*messages, answer]
        return answer.text, usage

    @property
    def prompt(self) -> str:
        """Prompt of the last reply."""
        return self._recorder.prompt

    def restore(self, turns: Sequence[tuple[str, str, datetime]], folder: Path) -> None:
        """Restore the state after these turns, with the cache saved in `folder`."""
        for question, answer, moment in turns:
            self._now = moment
            self.messages += [HumanMessage(question), mark(AIMessage(answer), False)]
            if self.bank is not None:
                for text, trust, role in ((question, "user", "user"), (answer, "agent", "assistant")):
                    self.bank.add(text, trust=trust, merge=False, thread=_THREAD, role=role)
        self.model.load_conversation(folder, _THREAD)


def _embeddings(method: str) -> Any:
    from scrubjay.agents.langchain import MiniLMEmbeddings

    return None if method == "words-alone" else MiniLMEmbeddings()


def run_conversation(
    options: ConversationBench, method: Method, seed: int, model: Any, stop: StopRequest
) -> None:
    """Run or resume one conversation, saving one row per turn.

    Raises `GracefulInterrupt` on a stop signal.
    """
    conversation, reminders = options.script(seed)
    name = f"{method}-{seed}"
    records = Records(options.out / f"{name}.jsonl", {})
    if records.rows and (len(records.rows) == options.turns or "ended" in records.rows[-1]):
        return
    # A checkpoint is complete if it has this file, which is written last.
    checkpoints = sorted(options.out.glob(f"{name}-at-*/conversation.json"))
    done = int(checkpoints[-1].parent.name.rpartition("-")[2]) if checkpoints else 0
    records.keep(lambda row: row["turn"] <= done)
    speaker = Speaker(options, method, model)
    if done:
        rows = zip(records.rows, conversation.turns, strict=False)
        earlier_turns = [(row["question"], row["answer"], turn.observed) for row, turn in rows]
        speaker.restore(earlier_turns, checkpoints[-1].parent)
    with ProgressDisplay(name, options.turns, done, not options.quiet) as display:
        for place in range(done, options.turns):
            row = _turn(options, method, speaker, conversation, reminders, place, records)
            records.append(row)
            display.update(place + 1, {})
            if "ended" in row or place + 1 == options.turns:
                break
            if (place + 1) % options.save_every == 0 or stop.signal_number is not None:
                folder = options.out / f"{name}-at-{place + 1:06d}"
                speaker.model.save_conversation(folder, _THREAD)
                _delete_checkpoints(options.out, name, other_than=folder)
            if stop.signal_number is not None:
                raise GracefulInterrupt(stop.signal_number)
    if speaker.bank is not None:
        speaker.bank.close()
    _delete_checkpoints(options.out, name)


def _delete_checkpoints(out: Path, name: str, other_than: Path | None = None) -> None:
    for folder in out.glob(f"{name}-at-*"):
        if folder != other_than:
            shutil.rmtree(folder)


def _turn(
    options: ConversationBench,
    method: str,
    speaker: Speaker,
    conversation: Conversation,
    reminders: Sequence[Reminder],
    place: int,
    records: Records,
) -> dict[str, Any]:
    turn = conversation.turns[place]
    with stopwatch() as timer:
        try:
            answer, usage = speaker.say(turn.text, turn.observed)
        except ValueError as error:
            return {"turn": place + 1, "question": turn.text, "answer": "", "ended": str(error)}
    row: dict[str, Any] = {
        "turn": place + 1,
        "question": turn.text,
        "answer": answer,
        "cpu": round(timer.cpu, 3),
        "resident": resident_bytes(),
        "cache_bytes": speaker.model.cache_bytes(_THREAD),
        "prompt_tokens": usage["input_tokens"],
        "read_tokens": usage["input_tokens"] - usage["input_token_details"]["cache_read"],
        "written_tokens": usage["output_tokens"],
        "records": len(speaker.bank) if speaker.bank else 0,
    }
    for reminder in reminders:
        if reminder.question_turn == place:
            row["told"] = reminder.fact_turn + 1
            row["in_view"] = any(
                reminder.who in line and reminder.value in line for line in speaker.prompt.splitlines()
            )
            if method == "sinks":  # the prompt has the whole conversation, the cache its end
                since = row["prompt_tokens"] - records.rows[reminder.fact_turn]["prompt_tokens"]
                row["in_view"] = since < options.budget - _SINKS
            row["answered"] = names_value(answer, reminder.value)
    return row


def names_value(answer: str, value: str) -> bool:
    """Return True if an answer contains a value, ignoring case and the article of the value."""
    return re.sub(r"^(an?|the) ", "", value).lower() in answer.lower()


def run(options: ConversationBench, command: str, model: Any = None) -> list[Path]:
    """Run the missing conversations, write table and plot, and return their paths.

    `model` overrides the model of the options.
    """
    for seed in options.seeds:
        options.script(seed)
    prepare_out(options, free=("methods", "seeds", "recall_seeds", "save_every"))
    model = model or options.model
    # All conversations share the loaded model.
    resident_model = LocalChatModel(model=model, dtype=options.dtype).loaded_model
    with StopRequest() as stop:
        for method in options.methods:
            for seed in options.seeds:
                run_conversation(options, method, seed, model, stop)
    del resident_model
    results = {
        (method, seed): Records(options.out / f"{method}-{seed}.jsonl", {}).rows
        for method in options.methods
        for seed in options.seeds
    }
    table = write_report(options.out / "table.md", command, *_report(options, results))
    return [table, _plot(results, options.out / "conversation.png")]


def rank_facts(options: ConversationBench, method: Method, seed: int) -> dict[int, int]:
    """Return for each question turn the rank of its fact among the search hits; 100 if no hit is the fact.

    The bank contains the user turns before the question. Earlier questions among the hits are not counted in
    the rank, because the agent's prompt contains few of them.
    """
    conversation, reminders = options.script(seed)
    facts = {reminder.question_turn: conversation.turns[reminder.fact_turn].text for reminder in reminders}
    rank_by_turn, now = {}, conversation.turns[0].observed
    with MemoryBank(":memory:", _embeddings(method), clock=lambda: now) as bank:
        for place, turn in enumerate(conversation.turns):
            now = turn.observed
            if place in facts:
                hits = bank.search(turn.text, k=_MAX_RANK)
                texts = [hit.text for hit in hits if not is_question(hit.text)]
                rank_by_turn[place + 1] = (
                    texts.index(facts[place]) + 1 if facts[place] in texts else _MAX_RANK
                )
            bank.add(turn.text, merge=False)
    return rank_by_turn


def _recall(options: ConversationBench) -> list[str]:
    """Return a table that counts the conversations in which the needed fact is among a bank's first hits.

    A row is a bank and a number of first hits; a column is the turn of the question.
    """
    if not options.recall_seeds:
        return []
    rows = []
    for method, name in _BANKS.items():
        with ProgressDisplay(f"recall {method}", options.recall_seeds, 0, not options.quiet) as display:
            rankings = []
            for seed in range(options.recall_seeds):
                rankings.append(rank_facts(options, method, seed))
                display.update(seed + 1, {})
        for most in _RANK_LIMITS:
            counts = [sum(places[turn] <= most for places in rankings) for turn in options.question_turns]
            rows.append([f"{name}, first {most}", *counts])
    return [
        (
            f"Number of {options.recall_seeds} conversations with the fact among the first hits in a bank "
            "of user turns:"
        ),
        markdown(["bank", *(f"question at turn {turn}" for turn in options.question_turns)], rows),
    ]


ConversationRows = dict[tuple[str, int], list[dict[str, Any]]]
_COLUMNS: dict[str, tuple[str, Callable[[list[float]], str]]] = {
    "cpu": ("CPU s", lambda values: f"{median(values):.2f}"),
    "prompt_tokens": ("prompt tokens", lambda values: f"{fmean(values):,.0f}"),
    "read_tokens": ("uncached tokens", lambda values: f"{fmean(values):,.0f}"),
    "cache_bytes": ("cache MiB", lambda values: f"{fmean(values) / 2**20:.1f}"),
    "resident": ("process MiB", lambda values: f"{fmean(values) / 2**20:,.0f}"),
}


def _report(options: ConversationBench, results: ConversationRows) -> list[str]:
    costs, endings = [], []
    for (method, seed), rows in results.items():
        if "ended" in rows[-1]:
            *rows, end = rows
            endings.append(f"{method}, seed {seed}, ended at turn {end['turn']}: {end['ended']}")
        cells = [f"{method}, {seed}", len(rows)]
        for name, (_, form) in _COLUMNS.items():
            cells += [form([row[name] for row in part]) for part in (rows[:_EDGE], rows[-_EDGE:])]
        costs.append([*cells, f"{rows[-1]['records']:,}"])
    titles = [f"{title}, {when}" for title, _ in _COLUMNS.values() for when in ("first", "last")]
    answer_rows = []
    for turn in options.question_turns:
        first = options.first_fact_turn + sorted(options.question_turns, reverse=True).index(turn)
        cells = [f"{turn}, stated at {first}"]
        for method in options.methods:
            matches = [row for (who, _), rows in results.items() if who == method for row in rows]
            matches = [row for row in matches if row["turn"] == turn and "told" in row]
            in_view, correct = (sum(row[name] for row in matches) for name in ("in_view", "answered"))
            cells.append(f"{in_view}, {correct} of {len(matches)}" if matches else "ended")
        answer_rows.append(cells)
    return [
        (
            f'Means over the first and the last {_EDGE} turns (CPU seconds: medians). "Uncached" '
            "counts the prompt tokens that were not in the cache:"
        ),
        markdown(["method, seed", "turns", *titles, "records"], costs),
        "Conversations with the fact in the prompt or cache, and with the fact in the answer:",
        markdown(["question at turn", *options.methods], answer_rows),
        *endings,
        *_recall(options),
    ]


def _plot(results: ConversationRows, out: Path) -> Path:
    """Plot time, prompt length and memory by turn, for the first seed of each method."""
    figure = make_figure(3)
    styles = assign_styles(who for who, _ in results)
    first = {who: rows for (who, _), rows in reversed(results.items())}
    for axes, name, title, scale in zip(
        figure.subplots(1, 3),
        ("cpu", "prompt_tokens", "resident"),
        ("CPU seconds per turn, mean of 9", "prompt tokens", "process memory, GiB"),
        (1, 1, 2**30),
        strict=True,
    ):
        for who, rows in sorted(first.items()):
            values = [row[name] / scale for row in rows if name in row]
            if name == "cpu":
                values = [fmean(values[max(0, i - 4) : i + 5]) for i in range(len(values))]
            axes.plot(range(1, len(values) + 1), values, **styles[who].as_line(), label=who, linewidth=2)
        axes.set_title(title)
        axes.set_xlabel("turn")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    place_legend(figure.axes[-1])
    return save_figure(figure, out)


def main() -> int:
    """Run the conversations; return the exit code."""
    # In bfloat16 oneDNN caches a primitive of some megabytes per input length, up to 1,024 by default.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    return run_probe("conversation", ConversationBench, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
