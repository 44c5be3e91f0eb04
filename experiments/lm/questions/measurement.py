"""Answers of all context policies to questions that come with a text, after it, or at the end of a stream.

scrubjay longcontext questions novels.deb

A budget is a share of the text. Questions on one text share its prefill where the policy does not know the
question. Policies that keep all tokens are ranked apart from those that drop tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.lm.needles import split_sentences, string_match_all, token_counter
from scrubjay.experiments.lm.options import QuestionsOptions, QuestionTime
from scrubjay.experiments.lm.questions.passages import (
    PASSAGES,
    Passage,
    count_questions,
    make_passage,
    split_prompt,
)
from scrubjay.experiments.lm.questions.report import make_sections
from scrubjay.experiments.lm.questions.shared_reading import PromptRecord, Reading, record_prompt
from scrubjay.experiments.lm.reading import cache_nbytes, for_tokenizer, generate, losses, read
from scrubjay.experiments.measurements import Records, write_table
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.resources import hide_warnings, stopwatch
from scrubjay.memory import context
from scrubjay.memory.context import registry
from scrubjay.memory.context.policies.budget import BudgetPolicy, get_window
from scrubjay.memory.context.policies.scored.duo import DuoPolicy

ANSWER = {
    "passage": str,
    "sample": int,
    "time": str,
    "method": str,
    "share": float,
    "kind": str,
    "text": str,
    "score": float,
    "steps": int,
    "cpu": float,
    "read_cpu": float,
    "cache_bytes": int,
}
"""Fields of an answer, with their types."""
PERPLEXITY = {"method": str, "share": float, "length": int, "nats": float, "cpu": float, "cache_bytes": int}
"""Fields of the perplexity of a streamed text, with their types."""


class Contender(NamedTuple):
    """A policy with a budget."""

    method: str
    share: float
    """Budget as a share of the text; 1 for policies without a budget."""
    policy: context.ContextPolicy


def run_questions(options: QuestionsOptions, command: str) -> list[Path]:
    """Run the measurements that the output directory lacks, write the table, and return its path.

    Raises ValueError on invalid options. The answers of a policy about one text are saved together, so Ctrl-C
    loses only these.
    """
    model, tokenizer = options.start()
    contenders, refusals = list_contenders(options, model)
    answers = Records(options.out / "answers.jsonl", ANSWER)
    perplexities = Records(options.out / "perplexity.jsonl", PERPLEXITY)
    with hide_warnings(registry.__name__):  # dropped tokens are what is measured
        _answer_all(model, tokenizer, options, contenders, answers)
        _stream_all(model, tokenizer, options, contenders, perplexities)
    keys = {(one.method, one.share) for one in contenders}
    rows = [
        row
        for row in answers.rows
        if (row["method"], row["share"]) in keys
        and row["sample"] < options.samples
        and row["time"] in options.times
    ]
    streams = [
        row
        for row in perplexities.rows
        if (row["method"], row["share"]) in keys and row["length"] in options.perplexity
    ]
    keeps_all = {one.method for one in contenders if not one.policy.drops}
    sections = make_sections(options, rows, streams, keeps_all, refusals)
    return [write_table(options.out, command, *sections)]


def list_contenders(
    options: QuestionsOptions, model: PreTrainedModel
) -> tuple[list[Contender], dict[tuple[str, float], str]]:
    """Return all policies with all budgets, and the reason for each budget that a policy refuses.

    Raises ValueError if all are refused.
    """
    contenders, refusals = [], {}
    for name in options.list_methods():
        for share in options.shares if has_budget(context.make(name)) else (1.0,):
            try:
                policy = make_with_budget(name, round(share * options.length), options.length)
                context.PolicyCache(policy, model)  # a policy can also refuse the model
            except ValueError as error:
                refusals[name, share] = str(error)
            else:
                contenders.append(Contender(name, share, policy))
    if not contenders:
        raise ValueError(
            "; ".join(f"{name}, share {share}: {why}" for (name, share), why in refusals.items())
        )
    return contenders, refusals


def has_budget(policy: context.ContextPolicy) -> bool:
    """Return True if the size of the policy's cache can be chosen."""
    return isinstance(policy, BudgetPolicy | DuoPolicy)


def make_with_budget(name: str, budget: int, length: int) -> context.ContextPolicy:
    """Return a policy that keeps about `budget` of `length` tokens, as the mean over layers and heads.

    `duo` gets the share of heads with which it has this size. Raises ValueError if it is smaller with none.
    """
    policy = context.make(name)
    if isinstance(policy, DuoPolicy):
        if budget < policy.num_streamed:
            raise ValueError(
                f"budget={budget}: duo keeps at least {policy.num_streamed} tokens in every head"
            )
        share = (budget - policy.num_streamed) / (length - policy.num_streamed)
        return dataclasses.replace(policy, share=share)
    return context.make(name, budget=budget) if has_budget(policy) else policy


def _answer_all(
    model: PreTrainedModel,
    tokenizer: Any,
    options: QuestionsOptions,
    contenders: Sequence[Contender],
    records: Records,
) -> None:
    """Let every contender answer all questions that it has not answered yet."""
    make = make_passages(options, tokenizer)
    counts = Counter(map(_unit, records.rows))
    present = {unit for unit, number in counts.items() if number == count_questions(unit[0])}
    if len(present) < len(counts):  # an interrupted text is answered again
        records.keep(lambda row: _unit(row) in present)
    plan: list[tuple[int, str, QuestionTime, Contender]] = [
        (sample, kind, time, one)
        for sample, kind, time in itertools.product(range(options.samples), PASSAGES, options.times)
        for one in contenders
        if (kind, sample, time, one.method, one.share) not in present
    ]

    @functools.lru_cache(maxsize=1)
    def open_passage(kind: str, sample: int) -> PassageReader:
        return PassageReader(model, tokenizer, make(kind, sample), options.block)

    with ProgressDisplay("questions, texts", len(plan), 0, not options.quiet) as display:
        for done, (sample, kind, time, one) in enumerate(plan, 1):
            unit = {"passage": kind, "sample": sample, "time": time}
            rows = find_equal_answers(records, unit, one) or open_passage(kind, sample).answer(
                one.policy, time
            )
            for row in rows:
                records.append(unit | {"method": one.method, "share": one.share} | row)
            display.update(done, {})


def make_passages(options: QuestionsOptions, tokenizer: Any) -> Callable[[str, int], Passage]:
    """Return a function that makes the passage of a kind and a sample."""
    sentences, count = split_sentences(options.read()), token_counter(tokenizer)

    def make(kind: str, sample: int) -> Passage:
        return make_passage(kind, options.length, count, sentences, f"{options.seed} {kind} {sample}")

    return make


def find_equal_answers(
    records: Records, unit: Mapping[str, Any], contender: Contender
) -> list[dict[str, Any]]:
    """Return the answers of a contender at another time, if it reads and answers at all times alike.

    This holds for a policy that neither knows a question nor compresses a prompt when it ends.
    """
    if contender.policy.reads_whole or contender.policy.query_aware:
        return []
    rows = records.find(
        passage=unit["passage"], sample=unit["sample"], method=contender.method, share=contender.share
    )
    keys = [*unit, "method", "share"]
    return [
        {name: value for name, value in row.items() if name not in keys}
        for row in rows
        if row["time"] == rows[0]["time"]
    ]


def _unit(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("passage", "sample", "time", "method", "share"))


class PassageReader:
    """A model that reads a passage under many policies and answers its questions.

    Policies that read a prompt by full attention share one reading of the text, and one of each question.

    Args:
        model: A causal language model of transformers.
        tokenizer: Tokenizer of the model.
        passage: Text and questions.
        block: Tokens per call of a stream, and of a policy that reads a prompt in blocks.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: Any, passage: Passage, block: int) -> None:
        self._model, self._tokenizer, self._passage, self._block = model, tokenizer, passage, block
        prompts = [split_prompt(tokenizer, example) for _, example in passage.questions]
        self._text, self._questions = prompts[0][0], [question for _, question in prompts]

    @torch.no_grad()
    def answer(self, policy: context.ContextPolicy, time: QuestionTime) -> list[dict[str, Any]]:
        """Return one row for each question of the passage; `time` is when the policy learns the question."""
        policy, rows = for_tokenizer(policy, self._tokenizer), []
        text = None if time == "known" else self._read_text(policy, time == "streaming")
        for index, (kind, example) in enumerate(self._passage.questions):
            base, logits, read_cpu = self._read_prompt(policy, index) if text is None else text
            size = cache_nbytes(base)
            cache = base if text is None else copy.deepcopy(base)
            with stopwatch() as timer:
                if text is not None:
                    *_, logits = read(self._model, cache, self._questions[index], self._block)
                answer = generate(self._model, self._tokenizer, cache, logits, example)
            reply = self._tokenizer.decode(answer)
            rows.append(
                {
                    "kind": kind,
                    "text": reply,
                    "score": string_match_all(reply, example.references),
                    "steps": len(answer),
                    "cpu": timer.cpu,
                    "read_cpu": read_cpu,
                    "cache_bytes": size,
                }
            )
        return rows

    def _read_text(self, policy: context.ContextPolicy, streams: bool) -> Reading:
        """Return a cache that has read the text, in blocks if it streams."""
        if not streams and policy.reads_whole:
            return self._text_record.read(policy)
        return self._read(policy, self._text.split(self._block) if streams else [self._text])

    def _read_prompt(self, policy: context.ContextPolicy, index: int) -> Reading:
        """Return a cache that has read the text and one question as one prompt."""
        if policy.reads_whole:
            return self._prompt_records[index].read(policy)
        return self._read(policy, [torch.cat([self._text, self._questions[index]])])

    def _read(self, policy: context.ContextPolicy, pieces: Sequence[Int[Tensor, " time"]]) -> Reading:
        cache = context.PolicyCache(policy, self._model)
        with stopwatch() as timer:
            *_, logits = itertools.chain.from_iterable(
                read(self._model, cache, piece, self._block) for piece in pieces
            )
        return Reading(cache, logits, timer.cpu)

    @functools.cached_property
    def _text_record(self) -> PromptRecord:
        return record_prompt(self._model, self._text)

    @functools.cached_property
    def _prompt_records(self) -> list[PromptRecord]:
        return [self._text_record.extend(question) for question in self._questions]


def _stream_all(
    model: PreTrainedModel,
    tokenizer: Any,
    options: QuestionsOptions,
    contenders: Sequence[Contender],
    records: Records,
) -> None:
    """Measure the perplexity of a streamed text for each contender that lacks it."""
    window = get_window(model)
    plan = [
        (length, one)
        for length in sorted(options.perplexity)
        for one in contenders
        if (window is None or length <= window or one.policy.moves_positions)
        and not records.find(method=one.method, share=one.share, length=length)
    ]
    if not plan:
        return
    tokens = options.excerpt(tokenizer, max(length for length, _ in plan) + 1)
    total, done = sum(length for length, _ in plan), 0
    with ProgressDisplay("questions, streamed tokens", total, 0, not options.quiet) as display:
        for length, one in plan:
            cache = context.PolicyCache(for_tokenizer(one.policy, tokenizer), model)
            nats, size = 0.0, 0
            with stopwatch() as timer:
                for first in range(0, length, options.block):
                    piece = slice(first, min(first + options.block, length))
                    targets = tokens[piece.start + 1 : piece.stop + 1]
                    nats += float(losses(model, cache, tokens[piece], targets).sum())
                    size = max(size, cache_nbytes(cache))
                    display.update(done + piece.stop, {})
            done += length
            row = {"method": one.method, "share": one.share, "length": length}
            records.append(row | {"nats": nats / length, "cpu": timer.cpu, "cache_bytes": size})
