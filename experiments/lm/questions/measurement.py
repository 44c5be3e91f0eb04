"""Answers of all context policies to questions that come with a text, after it, or at the end of a stream.

scrubjay longcontext questions novels.deb

A budget is a share of the text. Questions on one text share its prefill where the policy does not know the
question. Policies that keep all tokens are ranked apart from those that drop tokens.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.experiments.lm.needles import split_sentences, string_match_all, token_counter
from scrubjay.experiments.lm.options import QuestionsOptions
from scrubjay.experiments.lm.questions.passages import (
    PASSAGES,
    Passage,
    count_questions,
    make_passage,
    split_prompt,
)
from scrubjay.experiments.lm.questions.report import make_sections
from scrubjay.experiments.lm.reading import cache_nbytes, generate, losses, read
from scrubjay.experiments.measurements import Records, write_table
from scrubjay.experiments.progress import ProgressDisplay
from scrubjay.experiments.resources import stopwatch
from scrubjay.memory import context
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
    sentences, count = split_sentences(options.read()), token_counter(tokenizer)
    counts = Counter(map(_unit, records.rows))
    present = {unit for unit, number in counts.items() if number == count_questions(unit[0])}
    if len(present) < len(counts):  # an interrupted text is answered again
        records.keep(lambda row: _unit(row) in present)
    plan = [
        (sample, kind, [pair for pair in pairs if (kind, sample, pair[0], *pair[1][:2]) not in present])
        for pairs in [list(itertools.product(options.times, contenders))]
        for sample in range(options.samples)
        for kind in PASSAGES
    ]
    done = 0
    with ProgressDisplay(
        "questions, texts", sum(len(pairs) for *_, pairs in plan), 0, not options.quiet
    ) as display:
        for sample, kind, pairs in plan:
            if not pairs:
                continue
            seed = f"{options.seed} {kind} {sample}"
            passage = make_passage(kind, options.length, count, sentences, seed)
            for time, contender in pairs:
                rows = list(answer_passage(model, tokenizer, passage, time, contender.policy, options.block))
                for row in rows:
                    records.append(
                        {"passage": kind, "sample": sample, "time": time}
                        | {"method": contender.method, "share": contender.share}
                        | row
                    )
                done += 1
                display.update(done, {})


def _unit(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("passage", "sample", "time", "method", "share"))


@torch.no_grad()
def answer_passage(
    model: PreTrainedModel,
    tokenizer: Any,
    passage: Passage,
    time: str,
    policy: context.ContextPolicy,
    block: int,
) -> Iterator[dict[str, Any]]:
    """Yield one row for each question of a passage; the text is read once, unless `time` is "known".

    Args:
        model: A causal language model of transformers.
        tokenizer: Tokenizer of the model.
        passage: Text and questions.
        time: When the policy learns the question; one of `QuestionTime`.
        policy: Policy of the cache.
        block: Tokens per call of a stream.
    """
    base, logits, read_cpu = None, torch.empty(0), 0.0
    for kind, example in passage.questions:
        text, question = split_prompt(tokenizer, example)
        if time == "known" or base is None:
            base, tokens = context.PolicyCache(policy, model), text
            if time == "known":
                tokens, question = torch.cat([text, question]), question[:0]
            with stopwatch() as timer:
                logits = _read_text(model, base, tokens, block, streams=time == "streaming")
            read_cpu = timer.cpu
        size, cache = cache_nbytes(base), base if time == "known" else copy.deepcopy(base)
        with stopwatch() as timer:
            if len(question):
                *_, logits = read(model, cache, question, block)
            answer = generate(model, tokenizer, cache, logits, example)
        reply = tokenizer.decode(answer)
        yield {
            "kind": kind,
            "text": reply,
            "score": string_match_all(reply, example.references),
            "steps": len(answer),
            "cpu": timer.cpu,
            "read_cpu": read_cpu,
            "cache_bytes": size,
        }


def _read_text(
    model: PreTrainedModel,
    cache: context.PolicyCache,
    tokens: Int[Tensor, " time"],
    block: int,
    streams: bool,
) -> Tensor:
    """Read a text, in blocks if it streams, and return the logits of the next token."""
    pieces = tokens.split(block) if streams else [tokens]
    *_, logits = itertools.chain.from_iterable(read(model, cache, piece, block) for piece in pieces)
    return logits


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
            cache, nats, size = context.PolicyCache(one.policy, model), 0.0, 0
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
