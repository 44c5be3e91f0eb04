"""`scrubjay inspect`: what the attention of a language model does on a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from scrubjay.experiments.words.arguments import parse
from scrubjay.experiments.words.foreign import one_line
from scrubjay.experiments.words.terminal import bad_input

if TYPE_CHECKING:
    from scrubjay.experiments.looking.trace import Trace
    from scrubjay.experiments.reports.attention import Inspected
    from scrubjay.memory.context import ContextPolicy


@dataclass(frozen=True)
class InspectOptions:
    """Show a model's attention sinks, its retrieval heads and attention maps on a text."""

    model: Positional[str]
    """"smollm2", a folder of transformers, or a GGUF file."""
    text: Path
    """A text file in a language of the model."""
    layers: tuple[int, ...] = ()
    """Layers to draw the maps of; default: the first, those of the strongest sink and of retrieval, the
    last."""
    tokens: int = 128
    """Tokens from the text's beginning that the maps show."""
    out: Path = Path("inspect.png")
    """The picture."""
    look: Path | None = None
    """A page (.html) or a trace (.json), too: of each of these tokens what it attends to in these layers."""
    policy: str | None = None
    """A context policy: the page shows instead what the cache keeps, reads and fetches of these tokens."""
    budget: int = 64
    """Tokens that the policy keeps, where it has a budget."""
    prompt: int | None = None
    """Tokens that it reads at once, as a prompt; the rest come one by one. Default: half of all."""
    question: str | None = None
    """The page shows instead how InfiniRetri reads all of the text for this question, and the answer."""
    chunk: int = 512
    """Tokens that it reads at once, and keeps at most."""


def run(words: Sequence[str]) -> int:
    """`scrubjay inspect MODEL --text FILE [--layers N ...] [--look PAGE [--policy NAME | --question Q]]`."""
    options = parse(InspectOptions, words, "scrubjay inspect")
    from scrubjay.experiments.reports.attention import inspect_model

    with bad_input():
        for name, value in (("policy", options.policy), ("question", options.question)):
            if value is not None and options.look is None:
                raise ValueError(f"{name}={value!r}: its page needs a file, as --look {name}.html")
        if options.policy is not None and options.question is not None:
            raise ValueError(
                f"question={options.question!r} and policy={options.policy!r}: a page is of one of them"
            )
        policy = _policy(options)
        if options.look is not None:
            from scrubjay.experiments.looking.look import Look, check_format

            check_format(options.look)
        seen = inspect_model(options.model, options.text, options.layers, options.tokens, options.out)
        if options.look is not None:
            title = f"{options.model} reads {options.text.name}"
            if options.question is not None:
                _retrieved(seen, options, f"{title} for a question")
                return 0
            if policy is not None:
                trace = _kept(seen, policy, options.prompt, f"{title} under {options.policy}")
            else:
                from scrubjay.experiments.looking.reading import trace_reading

                trace = trace_reading(*seen[:4], title, seen.looks, seen.retrieval)
            Look(trace).save(options.look)
            print(one_line(f"page: {options.look}"))
    return 0


def _policy(options: InspectOptions) -> ContextPolicy | None:
    """Return the policy that is asked for. Raises ValueError if it cannot be."""
    if options.policy is None:
        return None
    from scrubjay.memory import context

    policy = context.make(options.policy)
    if not hasattr(policy, "budget"):
        return policy
    return context.make(options.policy, budget=options.budget)


def _kept(seen: Inspected, policy: ContextPolicy, prompt: int | None, title: str) -> Trace:
    from scrubjay.experiments.looking.keeping import trace_keeping
    from scrubjay.experiments.runs.progress import ProgressDisplay
    from scrubjay.memory import context

    cache = context.PolicyCache(policy, seen.model, marked=True)
    count = len(seen.tokens)
    at_once = count // 2 if prompt is None else prompt
    with ProgressDisplay(title, count) as display:
        on_token = lambda done: display.update(done, {})
        return trace_keeping(
            seen.model, seen.tokenizer, cache, seen.tokens, at_once, title, seen.retrieval, on_token
        )


def _retrieved(seen: Inspected, options: InspectOptions, title: str) -> None:
    """Read the text for the question, and write the page, at Ctrl-C of what was read by then."""
    from scrubjay.experiments.looking.look import Look
    from scrubjay.experiments.looking.retrieving import Retrieving
    from scrubjay.experiments.runs.reading import read_text
    from scrubjay.memory.reading.infiniretri import InfiniRetri

    assert options.question is not None
    assert options.look is not None
    layer = seen.retrieval.best_layer()
    reader = InfiniRetri(
        seen.model,
        seen.tokenizer,
        chunk_tokens=options.chunk,
        layer=layer,
        heads=seen.retrieval.of_layer(layer),
    )
    noted, found = Retrieving(reader, options.question), None
    try:
        found = reader.read(read_text(options.text), options.question, on_chunk=noted.note)
        print(one_line(f"answer: {found.answer}"))
    finally:
        if noted:
            Look(noted.trace(title, found)).save(options.look)
            print(one_line(f"page: {options.look}"))
