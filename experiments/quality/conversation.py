"""What a conversation of hundreds of turns with a small model costs, and what is remembered of its beginning.

    OMP_NUM_THREADS=1 python -P -m scrubjay.experiments.quality.conversation --out runs/conversation

Facts told from turn 3 on are asked for as late as turn 200, between small talk and facts about others.
Contestants: `bank`, the agent with a memory bank; `bank-alone`, the same whose prompt shows what is recalled
and no earlier turns, and `words-alone`, that without embeddings; `sinks` and `full`, the model itself, which
is given all that was said and whose cache holds the end of it, or all. The same command goes on where it was
stopped; run in a process of its own, a contestant's memory is not mixed with another's. Writes a table and a
picture. Options: `--help`.
"""

from __future__ import annotations

import dataclasses
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
from scrubjay.agents.language.text import is_question
from scrubjay.experiments.language.conversations import Conversation, Reminder, remind
from scrubjay.experiments.quality.probe import run_probe
from scrubjay.experiments.reports.colours import colours
from scrubjay.experiments.reports.curves import beside, figure_of, save_figure
from scrubjay.experiments.runs.cost import resident_bytes, stopwatch
from scrubjay.experiments.runs.directory import write_atomically
from scrubjay.experiments.runs.progress import ProgressDisplay
from scrubjay.experiments.runs.records import Records, header, markdown, settle
from scrubjay.experiments.runs.stopping import Interrupted, StopRequest
from scrubjay.memory import MemoryBank

Contestant = Literal["bank", "bank-alone", "words-alone", "sinks", "full"]
_THREAD = "conversation"
_EDGE = 20
_SINKS = 4
_FARTHEST = 100
_AMONG = (1, 4, 6, 10)
_BANKS: dict[Contestant, str] = {"bank-alone": "with embeddings", "words-alone": "words alone"}


@dataclass(frozen=True, kw_only=True)
class ConversationBench:
    """Sizes of the measurement."""

    contestants: tuple[Contestant, ...] = ("bank", "bank-alone", "words-alone", "sinks", "full")
    """Who talks."""
    model: str = "smollm2"
    """A name, a folder, or a GGUF file."""
    dtype: str = "bfloat16"
    """Numbers of the model."""
    budget: int = 1024
    """Tokens that the cache holds, but `full`'s."""
    prompt_tokens: int = 640
    """Tokens of the agent's prompt at most; with the answer they fit in the cache."""
    max_tokens: int = 20
    """Tokens of an answer at most."""
    recalled: int = 6
    """Records shown with a question, as many as `KwaiAgent` shows."""
    turns: int = 200
    """Turns of the user."""
    told: int = 3
    """Turn that tells the first fact, from 1; the others follow it."""
    asked: tuple[int, ...] = (10, 50, 100, 150, 200)
    """Turns that ask for a fact; what was told first is asked for last."""
    seeds: tuple[int, ...] = (0,)
    """Conversations."""
    recall_seeds: int = 10
    """Conversations whose facts are looked up in a bank of what the user said, with no model; a few seconds
    each."""
    save_every: int = 20
    """Turns between two copies of the cache on disk, from which a killed run goes on."""
    out: Path = Path("runs/conversation")
    """Directory of the results."""
    quiet: bool = False
    """Show no progress."""

    def settings(self) -> dict[str, Any]:
        """Return what results depend on."""
        free = ("contestants", "seeds", "recall_seeds", "save_every", "out", "quiet")
        return {name: value for name, value in dataclasses.asdict(self).items() if name not in free}

    def script(self, seed: int) -> tuple[Conversation, tuple[Reminder, ...]]:
        """Return what the user says. Raises ValueError on turns that cannot be."""
        return remind("en", seed, self.turns, self.told - 1, [turn - 1 for turn in self.asked])


@dataclass(frozen=True)
class Reply:
    """What came of a turn."""

    text: str
    prompt: str
    usage: dict[str, Any]
    records: int


class _Seen(BaseCallbackHandler):
    """Keeps what the model was sent last."""

    prompt = ""

    def on_chat_model_start(
        self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **kwargs: Any
    ) -> None:
        self.prompt = "\n".join(message.text for message in messages[0])


class Speaker:
    """One contestant in one conversation: what was said, and who answers."""

    def __init__(self, options: ConversationBench, contestant: Contestant, model: Any) -> None:
        self.model = LocalChatModel(
            model=model,
            dtype=options.dtype,
            policy="full" if contestant == "full" else "sinks",
            budget=options.budget,
            temperature=0,
            max_tokens=options.max_tokens,
        )
        self.messages: list[BaseMessage] = []
        self._seen, self._now = _Seen(), datetime.now().astimezone()
        self._config: RunnableConfig = {
            "configurable": {"thread_id": _THREAD},
            "callbacks": [self._seen],
        }
        self.bank: MemoryBank | None = None
        self._agent: KwaiAgent | None = None
        if contestant in ("bank", "bank-alone", "words-alone"):
            self.bank = MemoryBank(":memory:", _embeddings(contestant), clock=lambda: self._now)
            shown = options.prompt_tokens if contestant == "bank" else 1
            self._agent = KwaiAgent(
                self.model,
                memory=self.bank,
                recalled=options.recalled,
                limits=Limits(context_tokens=options.prompt_tokens, dialogue_tokens=shown),
                count_tokens=self.model.get_num_tokens,
                clock=lambda: self._now,
            )

    def say(self, text: str, moment: datetime) -> Reply:
        """Say something and return the reply. Raises ValueError where the model can read no more."""
        self._now = moment
        asked = [*self.messages, HumanMessage(text)]
        if self._agent is None:
            answer = self.model.invoke(asked, self._config)
            usage: Any = answer.usage_metadata
        else:
            result = self._agent.invoke(asked, self._config)
            answer, usage = AIMessage(result["answer"]), result["usage"]
        self.messages = [*asked, answer]
        return Reply(answer.text, self._seen.prompt, usage, len(self.bank) if self.bank else 0)

    def take_up(self, said: Sequence[tuple[str, str, datetime]], folder: Path) -> None:
        """Go on after these turns, with the cache in `folder`."""
        for question, answer, moment in said:
            self._now = moment
            self.messages += [HumanMessage(question), AIMessage(answer)]
            if self.bank is not None:
                for text, trust, role in ((question, "user", "user"), (answer, "agent", "assistant")):
                    self.bank.add(text, trust=trust, merge=False, thread=_THREAD, role=role)
        self.model.load_conversation(folder, _THREAD)

    def close(self) -> None:
        """Close the bank."""
        if self.bank is not None:
            self.bank.close()


def _embeddings(contestant: str) -> Any:
    from scrubjay.agents.langchain import MiniLMEmbeddings

    return None if contestant == "words-alone" else MiniLMEmbeddings()


def hold(
    options: ConversationBench, contestant: Contestant, seed: int, model: Any, stop: StopRequest
) -> None:
    """Hold one conversation, a row a turn, from where it was left.

    Raises `Interrupted` when asked to stop.
    """
    conversation, reminders = options.script(seed)
    name = f"{contestant}-{seed}"
    records = Records(options.out / f"{name}.jsonl", {})
    if records.rows and (len(records.rows) == options.turns or "ended" in records.rows[-1]):
        return
    saved = sorted(options.out.glob(f"{name}-at-*"))
    done = int(saved[-1].name.rpartition("-")[2]) if saved else 0
    records.keep(lambda row: row["turn"] <= done)
    speaker = Speaker(options, contestant, model)
    moments = [turn.observed for turn in conversation.turns]
    if done:
        rows = zip(records.rows, moments, strict=False)
        speaker.take_up([(row["question"], row["answer"], moment) for row, moment in rows], saved[-1])
    with ProgressDisplay(name, options.turns, done, not options.quiet) as display:
        for place in range(done, options.turns):
            row = _turn(options, contestant, speaker, conversation, reminders, place, records)
            records.append(row)
            display.update(place + 1, {})
            last = place + 1 == options.turns or "ended" in row
            if not last and ((place + 1) % options.save_every == 0 or stop.signal_number is not None):
                _save(speaker, options.out, name, place + 1)
            if last:
                break
            if stop.signal_number is not None:
                raise Interrupted(stop.signal_number)
    speaker.close()
    for folder in options.out.glob(f"{name}-at-*"):
        shutil.rmtree(folder)


def _turn(
    options: ConversationBench,
    contestant: str,
    speaker: Speaker,
    conversation: Conversation,
    reminders: Sequence[Reminder],
    place: int,
    records: Records,
) -> dict[str, Any]:
    turn = conversation.turns[place]
    with stopwatch() as elapsed:
        try:
            reply = speaker.say(turn.text, turn.observed)
        except ValueError as error:
            return {"turn": place + 1, "question": turn.text, "answer": "", "ended": str(error)}
    row: dict[str, Any] = {
        "turn": place + 1,
        "question": turn.text,
        "answer": reply.text,
        "cpu": round(elapsed.cpu, 3),
        "resident": resident_bytes(),
        "cache_bytes": speaker.model.cache_bytes(_THREAD),
        "prompt_tokens": reply.usage["input_tokens"],
        "read_tokens": reply.usage["input_tokens"] - reply.usage["input_token_details"]["cache_read"],
        "written_tokens": reply.usage["output_tokens"],
        "records": reply.records,
    }
    for reminder in reminders:
        if reminder.asked == place:
            row["told"] = reminder.told + 1
            lines = reply.prompt.splitlines()
            row["in_view"] = any(reminder.who in line and reminder.value in line for line in lines)
            if contestant == "sinks":  # all is in the text, and the cache holds its end
                since = row["prompt_tokens"] - records.rows[reminder.told]["prompt_tokens"]
                row["in_view"] = since < options.budget - _SINKS
            row["answered"] = names(reply.text, reminder.value)
    return row


def names(answer: str, value: str) -> bool:
    """Return whether an answer names a value, whatever its article."""
    return re.sub(r"^(an?|the) ", "", value).lower() in answer.lower()


def _save(speaker: Speaker, out: Path, name: str, turns: int) -> None:
    """Write the cache to a folder whose name tells how far it has read, and then drop older ones."""
    aside = out / f".{name}.writing"
    shutil.rmtree(aside, ignore_errors=True)
    speaker.model.save_conversation(aside, _THREAD)
    folder = out / f"{name}-at-{turns:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    aside.rename(folder)
    for older in out.glob(f"{name}-at-*"):
        if older != folder:
            shutil.rmtree(older)


def run(options: ConversationBench, command: str, model: Any = None) -> list[Path]:
    """Hold what is missing, write table and picture, and return their paths.

    `model` stands in place of the named one.
    """
    for seed in options.seeds:
        options.script(seed)
    settle(options.out, options.settings())
    model = model or options.model
    kept = LocalChatModel(model=model, dtype=options.dtype).loaded  # stays in memory for all of them
    with StopRequest() as stop:
        for contestant in options.contestants:
            for seed in options.seeds:
                hold(options, contestant, seed, model, stop)
    del kept
    held = {
        (contestant, seed): Records(options.out / f"{contestant}-{seed}.jsonl", {}).rows
        for contestant in options.contestants
        for seed in options.seeds
    }
    write_atomically(options.out / "table.md", _report(options, held, command))
    return [options.out / "table.md", _plot(held, options.out / "conversation.png")]


def ranks(options: ConversationBench, contestant: Contestant, seed: int) -> dict[int, int]:
    """Return where a bank of what the user said finds each fact, by the turn that asks; 100 if nowhere.

    Places are among statements, as the agent shows few of the questions that were asked before.
    """
    conversation, reminders = options.script(seed)
    asked = {reminder.asked: conversation.turns[reminder.told].text for reminder in reminders}
    found, now = {}, conversation.turns[0].observed
    with MemoryBank(":memory:", _embeddings(contestant), clock=lambda: now) as bank:
        for place, turn in enumerate(conversation.turns):
            now = turn.observed
            if place in asked:
                hits = bank.search(turn.text, k=_FARTHEST)
                texts = [hit.text for hit in hits if not is_question(hit.text)]
                found[place + 1] = texts.index(asked[place]) + 1 if asked[place] in texts else _FARTHEST
            bank.add(turn.text, merge=False)
    return found


def _recall(options: ConversationBench) -> list[str]:
    """Return a table of how many facts are among the first records found, of every turn that asks."""
    if not options.recall_seeds:
        return []
    rows = []
    for contestant, name in _BANKS.items():
        with ProgressDisplay(f"recall {contestant}", options.recall_seeds, 0, not options.quiet) as display:
            found = []
            for seed in range(options.recall_seeds):
                found.append(ranks(options, contestant, seed))
                display.update(seed + 1, {})
        for most in _AMONG:
            counts = [sum(places[turn] <= most for places in found) for turn in options.asked]
            rows.append([f"{name}, first {most}", *counts])
    title = (
        f"Of {options.recall_seeds} conversations, those whose fact is among the first records that a "
        "bank of what the "
        "user said finds for the question:"
    )
    return [
        title,
        markdown(["bank", *(f"asked at {turn}" for turn in options.asked)], rows),
    ]


Held = dict[tuple[str, int], list[dict[str, Any]]]


def _report(options: ConversationBench, held: Held, command: str) -> str:
    costs = []
    for (contestant, seed), rows in held.items():
        rows = [row for row in rows if "ended" not in row]
        cells = [f"{contestant}, {seed}", f"{len(rows)}"]
        for name, form in _COLUMNS.items():
            cells += [form([row[name] for row in part]) for part in (rows[:_EDGE], rows[-_EDGE:])]
        costs.append([*cells, f"{rows[-1]['records']:,}"])
    titles = ["who, seed", "turns", *(f"{what}, {when}" for what in _TITLES for when in ("first", "last"))]
    asked = []
    for turn in options.asked:
        cells = []
        for contestant in options.contestants:
            found = [row for (who, _), rows in held.items() if who == contestant for row in rows]
            found = [row for row in found if row["turn"] == turn and "told" in row]
            cells.append(
                f"{sum(row['in_view'] for row in found)}, {sum(row['answered'] for row in found)} of "
                f"{len(found)}"
                if found
                else "ended"
            )
        first = options.told + sorted(options.asked, reverse=True).index(turn)
        asked.append([f"{turn}, told at {first}", *cells])
    ended = [
        f"{who}, seed {seed}, ended at turn {rows[-1]['turn']}: {rows[-1]['ended']}"
        for (who, seed), rows in held.items()
        if "ended" in rows[-1]
    ]
    return (
        "\n\n".join(
            [
                header(command),
                (
                    f"Means of the first and last {_EDGE} turns; cache and process in MiB, of CPU seconds "
                    "the median:"
                ),
                markdown([*titles, "records"], costs),
                "Conversations in which the fact was before the model, and in which its answer named it:",
                markdown(["asked at turn", *options.contestants], asked),
                *ended,
                *_recall(options),
            ]
        )
        + "\n"
    )


_COLUMNS: dict[str, Callable[[list[float]], str]] = {
    "cpu": lambda values: f"{median(values):.2f}",
    "prompt_tokens": lambda values: f"{fmean(values):,.0f}",
    "read_tokens": lambda values: f"{fmean(values):,.0f}",
    "cache_bytes": lambda values: f"{fmean(values) / 2**20:.1f}",
    "resident": lambda values: f"{fmean(values) / 2**20:,.0f}",
}
_TITLES = ("CPU s", "prompt", "read", "cache", "process")


def _plot(held: Held, out: Path) -> Path:
    """Draw time, prompt and memory by turn, the first seed of each."""
    figure = figure_of(3)
    shades = colours(who for who, _ in held)
    first = {who: rows for (who, _), rows in reversed(held.items())}
    for axes, name, title, scale in zip(
        figure.subplots(1, 3),
        ("cpu", "prompt_tokens", "resident"),
        ("CPU seconds of a turn, mean of 9", "tokens of the prompt", "memory of the process, GiB"),
        (1, 1, 2**30),
        strict=True,
    ):
        for who, rows in sorted(first.items()):
            values = [row[name] / scale for row in rows if name in row]
            if name == "cpu":
                values = [fmean(values[max(0, i - 4) : i + 5]) for i in range(len(values))]
            axes.plot(range(1, len(values) + 1), values, color=shades[who], label=who, linewidth=2)
        axes.set_title(title)
        axes.set_xlabel("turn")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1.1 * axes.get_ylim()[1])
        axes.grid(alpha=0.3)
    beside(figure.axes[-1])
    return save_figure(figure, out)


def main() -> int:
    """Hold the conversations; return the exit code."""
    # In bfloat16 oneDNN keeps a program, of megabytes, for each length of input, of 1,024 lengths unless
    # told.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")
    return run_probe("conversation", ConversationBench, __doc__, run)


if __name__ == "__main__":
    sys.exit(main())
