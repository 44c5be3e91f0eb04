"""`scrubjay inspect`: show the attention of a language model on a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from scrubjay.experiments.cli.arguments import parse
from scrubjay.experiments.cli.failures import bad_input
from scrubjay.experiments.cli.untrusted_text import one_line
from scrubjay.experiments.commands.options import Budget

if TYPE_CHECKING:
    from scrubjay.experiments.viz.attention import InspectionResult
    from scrubjay.experiments.viz.trace import Trace
    from scrubjay.memory.context import ContextPolicy


@dataclass(frozen=True)
class InspectOptions:
    """Show a model's attention sinks, retrieval heads and attention maps on a text."""

    model: Positional[str]
    """Language model: "smollm2", a transformers folder, or a GGUF file."""
    text: Path
    """Text file, in a language that the model supports."""
    layers: tuple[int, ...] = ()
    """Layers whose attention maps are drawn; default: the first, the last, and those with the strongest sink
    and the best retrieval head."""
    tokens: int = 128
    """Number of tokens from the start of the text that the maps show."""
    out: Path = Path("inspect.png")
    """Image file to write."""
    look: Path | None = None
    """File for a page (.html) or trace (.json) of the attention of each token in the layers of --layers."""
    policy: str | None = None
    """Context policy. The page of --look then shows which tokens the cache retains, and which tokens the
    model attends to and retrieves."""
    budget: Budget = 64
    prompt: int | None = None
    """With --policy: number of tokens that the model processes at once as the prompt. The remaining tokens
    follow one by one. Default: half of the tokens."""
    question: str | None = None
    """Question about the whole text. The page of --look then shows the answer, and how InfiniRetri
    processes the text to find it."""
    chunk: int = 512
    """With --question: maximum number of tokens in each chunk of the text that InfiniRetri processes. This is
    also the maximum number of tokens in all retained sentences together."""


def run(argv: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--look PAGE [--policy NAME | --question Q]]`."""
    options = parse(InspectOptions, argv, "scrubjay inspect")
    from scrubjay.experiments.viz.attention import inspect_model

    with bad_input():
        for name, value in (("policy", options.policy), ("question", options.question)):
            if value is not None and options.look is None:
                raise ValueError(f"{name}={value!r}: has an effect only with --look; add --look {name}.html")
        if options.policy is not None and options.question is not None:
            raise ValueError(
                f"question={options.question!r} and policy={options.policy!r} cannot be combined; omit one"
            )
        policy = _policy(options)
        if options.look is not None:
            from scrubjay.experiments.viz.look import Look, check_format

            check_format(options.look)
        inspection = inspect_model(options.model, options.text, options.layers, options.tokens, options.out)
        if options.look is not None:
            title = f"{options.model} reads {options.text.name}"
            if options.question is not None:
                _trace_retrieval(inspection, options, f"{title} for a question")
                return 0
            if policy is not None:
                trace = _trace_cache(inspection, policy, options.prompt, f"{title} under {options.policy}")
            else:
                from scrubjay.experiments.viz.language_model import trace_reading

                trace = trace_reading(*inspection[:4], title, inspection.stats, inspection.retrieval)
            Look(trace).save(options.look)
            print(one_line(f"page: {options.look}"))
    return 0


def _policy(options: InspectOptions) -> ContextPolicy | None:
    """Return the context policy, or None without --policy. Raises ValueError on invalid options."""
    if options.policy is None:
        return None
    from scrubjay.memory import context

    policy = context.make(options.policy)
    if not hasattr(policy, "budget"):
        return policy
    return context.make(options.policy, budget=options.budget)


def _trace_cache(
    inspection: InspectionResult, policy: ContextPolicy, prompt: int | None, title: str
) -> Trace:
    from scrubjay.experiments.progress import ProgressDisplay
    from scrubjay.experiments.viz.language_model import trace_retention
    from scrubjay.memory import context

    cache = context.PolicyCache(policy, inspection.model, track_tokens=True)
    count = len(inspection.tokens)
    prompt_tokens = count // 2 if prompt is None else prompt
    with ProgressDisplay(title, count, prompt_tokens) as display:
        on_token = lambda done: display.update(done, {})
        return trace_retention(
            inspection.model,
            inspection.tokenizer,
            cache,
            inspection.tokens,
            prompt_tokens,
            title,
            inspection.retrieval,
            on_token,
        )


def _trace_retrieval(inspection: InspectionResult, options: InspectOptions, title: str) -> None:
    """Read the text with InfiniRetri, print the answer to the question and write the page.

    After Ctrl-C the page shows the part of the text that was read.
    """
    from scrubjay.experiments.files import read_text
    from scrubjay.experiments.viz.language_model import InfiniRetriRecorder
    from scrubjay.experiments.viz.look import Look
    from scrubjay.memory.context.infiniretri import InfiniRetri

    assert options.question is not None
    assert options.look is not None
    layer = inspection.retrieval.best_layer()
    reader = InfiniRetri(
        inspection.model,
        inspection.tokenizer,
        chunk_tokens=options.chunk,
        layer=layer,
        heads=inspection.retrieval.select_heads(layer),
    )
    recorder, result = InfiniRetriRecorder(reader, options.question), None
    try:
        result = reader.read(read_text(options.text), options.question, on_chunk=recorder.record)
        print(one_line(f"answer: {result.answer}"))
    finally:
        if recorder:
            Look(recorder.trace(title, result)).save(options.look)
            print(one_line(f"page: {options.look}"))
