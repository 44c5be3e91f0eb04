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
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from scrubjay.experiments.lm.questions.shared_reading import MAX_CACHES, Reading, read_together
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

    Raises ValueError on invalid options. The answers about one text are saved together, so Ctrl-C loses only
    the present text.
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
    plan: list[tuple[int, str, QuestionTime, list[Contender]]] = []
    for sample, kind, time in itertools.product(range(options.samples), PASSAGES, options.times):
        missing = [one for one in contenders if (kind, sample, time, *one[:2]) not in present]
        plan.append((sample, kind, time, missing))
    done = 0
    with ProgressDisplay(
        "questions, texts", sum(len(missing) for *_, missing in plan), 0, not options.quiet
    ) as display:
        for sample, kind, time, missing in plan:
            if not missing:
                continue
            passage = make(kind, sample)
            unit = {"passage": kind, "sample": sample, "time": time}
            for group in group_readers(missing, time):
                copies = find_equal_answers(records, unit, group)
                answers = copies or answer_passage(
                    model, tokenizer, passage, time, [one.policy for one in group], options.block
                )
                for one, rows in zip(group, answers, strict=True):
                    for row in rows:
                        records.append(unit | {"method": one.method, "share": one.share} | row)
                done += len(group)
                display.update(done, {})


def make_passages(options: QuestionsOptions, tokenizer: Any) -> Callable[[str, int], Passage]:
    """Return a function that makes the passage of a kind and a sample, and remembers the last one."""
    sentences, count = split_sentences(options.read()), token_counter(tokenizer)

    @functools.lru_cache(maxsize=1)
    def make(kind: str, sample: int) -> Passage:
        return make_passage(kind, options.length, count, sentences, f"{options.seed} {kind} {sample}")

    return make


def group_readers(contenders: Sequence[Contender], time: QuestionTime) -> Iterator[list[Contender]]:
    """Yield groups of contenders that read a text together.

    In a stream, the texts that the policies have compressed differ, so that each reads alone.
    """
    together = [one for one in contenders if one.policy.reads_whole and time != "streaming"]
    for first in range(0, len(together), MAX_CACHES):
        yield together[first : first + MAX_CACHES]
    for one in contenders:
        if one not in together:
            yield [one]


def find_equal_answers(
    records: Records, unit: Mapping[str, Any], group: Sequence[Contender]
) -> list[list[dict[str, Any]]] | None:
    """Return the answers of a contender at another time, if it reads and answers at all times alike.

    This holds for a policy that neither knows a question nor compresses a prompt when it ends.
    """
    (contender, *others) = group
    if others or contender.policy.reads_whole or contender.policy.query_aware:
        return None
    rows = records.find(
        passage=unit["passage"], sample=unit["sample"], method=contender.method, share=contender.share
    )
    rows = [row for row in rows if row["time"] == rows[0]["time"]]
    keys = [*unit, "method", "share"]
    return (
        [[{name: value for name, value in row.items() if name not in keys} for row in rows]] if rows else None
    )


def _unit(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("passage", "sample", "time", "method", "share"))


@torch.no_grad()
def answer_passage(
    model: PreTrainedModel,
    tokenizer: Any,
    passage: Passage,
    time: QuestionTime,
    policies: Sequence[context.ContextPolicy],
    block: int,
) -> list[list[dict[str, Any]]]:
    """Return one row for each policy and question of a passage.

    The text is read once, unless `time` is "known". All policies read it together if there are several.

    Args:
        model: A causal language model of transformers.
        tokenizer: Tokenizer of the model.
        passage: Text and questions.
        time: When the policies learn the question.
        policies: Policies of the caches. Several must read a prompt by full attention, and not a stream.
        block: Tokens per call of a stream, and of a policy that reads a prompt in blocks.
    """
    policies = [for_tokenizer(policy, tokenizer) for policy in policies]
    readings: list[Reading] = []
    answers: list[list[dict[str, Any]]] = [[] for _ in policies]
    for kind, example in passage.questions:
        text, question = split_prompt(tokenizer, example)
        if time == "known":
            text, question = torch.cat([text, question]), question[:0]
        if time == "known" or not readings:
            readings = _read_text(model, text, policies, block, time == "streaming")
        for (base, logits, read_cpu), rows in zip(readings, answers, strict=True):
            size, cache = cache_nbytes(base), base if time == "known" else copy.deepcopy(base)
            with stopwatch() as timer:
                if len(question):
                    *_, logits = read(model, cache, question, block)
                answer = generate(model, tokenizer, cache, logits, example)
            reply = tokenizer.decode(answer)
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
    return answers


def _read_text(
    model: PreTrainedModel,
    tokens: Int[Tensor, " time"],
    policies: Sequence[context.ContextPolicy],
    block: int,
    streams: bool,
) -> list[Reading]:
    """Return caches that have read a text, in blocks if it streams."""
    if not streams and all(policy.reads_whole for policy in policies):
        return read_together(model, tokens, policies)
    (policy,) = policies
    cache = context.PolicyCache(policy, model)
    pieces = tokens.split(block) if streams else [tokens]
    with stopwatch() as timer:
        *_, logits = itertools.chain.from_iterable(read(model, cache, piece, block) for piece in pieces)
    return [Reading(cache, logits, timer.cpu)]


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
