"""Peers of the context policies on today's transformers: which still run, and how they do beside ours.

    pip install --no-deps attention-sinks infini-retri kvpress
    pip install cachetools datasets fire nltk seaborn tiktoken
    apt-get download r-cran-janeaustenr
    python -P -m scrubjay.experiments.quality.context_peers r-cran-janeaustenr_1.0.0-1_all.deb

Every contestant answers the same questions about a needle in a novel, SmolLM2 in float32, one after the other
in one process and thread. A peer that fails is tabled with what it raised, and where.
"""

from __future__ import annotations

import importlib.metadata
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from tyro.conf import Positional

from scrubjay.experiments.longcontext.answering import answer, answer_from_kept
from scrubjay.experiments.longcontext.examples import Example, string_match_all, token_counter
from scrubjay.experiments.longcontext.haystack import NEEDLE, Cell, make_cell
from scrubjay.experiments.longcontext.needles import split_sentences
from scrubjay.experiments.longcontext.reading import tokenize
from scrubjay.experiments.longcontext.texts import read_text
from scrubjay.experiments.runs.device import one_thread
from scrubjay.experiments.runs.records import markdown
from scrubjay.memory import context
from scrubjay.memory.reading.infiniretri import InfiniRetri

KEYS, SINKS = 256, 4

Answerer = Callable[[Any, Any, Example], tuple[str, float]]
"""Takes model, tokenizer and example; returns the answer and its score."""


@dataclass(frozen=True)
class PeersBench:
    """What is measured."""

    text: Positional[Path]
    """Novels, or a .txt file."""
    title: str | None = "northanger"
    """Which novel."""
    length: int = 4096
    """Tokens of text, question and answer."""
    depths: tuple[float, ...] = (10.0, 50.0, 90.0)
    """Where the needle stands, in percent; one question each."""


def main(bench: PeersBench) -> None:
    """Print the table."""
    model, tokenizer = context.load_model("smollm2")
    sentences = split_sentences(read_text(bench.text, bench.title))
    count = token_counter(tokenizer)
    examples = [
        make_cell(Cell(NEEDLE, bench.length, depth, 0), sentences, count, 0) for depth in bench.depths
    ]
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("transformers", "torch")]
    print(f"{bench.length:,} tokens, needle at {bench.depths} %; {', '.join(versions)}; 1 thread\n")
    rows = []
    with one_thread():
        for name, (package, answerer) in CONTESTANTS.items():
            version = f"{package} {_version(package)}"
            try:
                started = time.process_time()
                scores = [answerer(model, tokenizer, example)[1] for example in examples]
                seconds = (time.process_time() - started) / len(examples)
                rows.append([name, version, f"{sum(scores):.0f} of {len(scores)}", f"{seconds:.1f}", ""])
            except Exception as error:  # noqa: BLE001 - whatever a peer raises is a result
                rows.append([name, version, "", "", _told(error)])
    print(markdown(["contestant", "package", "found", "CPU s per answer", "error"], rows))


def ours(policy: context.ContextPolicy) -> Answerer:
    """Return an answerer by a policy."""

    def by_policy(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
        given = answer(model, tokenizer, policy, example, 512)
        return given.text, given.score

    return by_policy


def our_infiniretri(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer from what InfiniRetri kept."""
    reader = InfiniRetri(model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        given = answer_from_kept(model, tokenizer, reader, example, 512, Path(folder), quiet=True)
    return given.text, given.score


def infini_retri(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer by its authors' package, which reads the attention of every layer."""
    from infini_retri import InfiniRetri as Theirs  # pyright: ignore[reportMissingImports]

    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        said = Theirs(model, tokenizer).generate(
            example.context, example.question, max_new_tokens=example.new_tokens
        )
    finally:
        model.set_attn_implementation(own)
    return said, string_match_all(said, example.references)


def kvpress(name: str) -> Answerer:
    """Return an answerer by one of kvpress' presses, which keeps so many keys of a prompt."""

    def by_press(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
        import kvpress  # pyright: ignore[reportMissingImports]

        length = len(tokenize(tokenizer, example.render(tokenizer)))
        with getattr(kvpress, name)(compression_ratio=1 - KEYS / length)(model):
            return _generate(model, tokenizer, example)

    return by_press


def attention_sinks(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer by the package that brought StreamingLLM to transformers of 2023, which loads models itself."""
    import attention_sinks as theirs  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        type(model)(model.config).save_pretrained(folder)
        sinking = theirs.AutoModelForCausalLM.from_pretrained(
            folder, attention_sink_size=SINKS, attention_sink_window_size=KEYS - SINKS
        )
    sinking.load_state_dict(model.state_dict())
    return _generate(sinking, tokenizer, example)


def sink_cache(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer by the cache that transformers had until version 4."""
    from transformers import SinkCache  # pyright: ignore[reportAttributeAccessIssue]

    return _generate(model, tokenizer, example, past_key_values=SinkCache(KEYS, SINKS))


def _generate(model: Any, tokenizer: Any, example: Example, **keywords: Any) -> tuple[str, float]:
    tokens = tokenize(tokenizer, example.render(tokenizer))[None]
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=example.new_tokens,
        do_sample=False,
        **keywords,
    )
    said = tokenizer.decode(written[0, tokens.shape[1] :])
    return said, string_match_all(said, example.references)


CONTESTANTS: dict[str, tuple[str, Answerer]] = {
    "full": ("scrubjay", ours(context.make("full"))),
    "infiniretri": ("scrubjay", our_infiniretri),
    "InfiniRetri of its authors": ("infini-retri", infini_retri),
    f"snapkv, {KEYS} keys": ("scrubjay", ours(context.make("snapkv", budget=KEYS))),
    f"SnapKVPress, {KEYS} keys": ("kvpress", kvpress("SnapKVPress")),
    f"sinks, {KEYS} keys": ("scrubjay", ours(context.make("sinks", budget=KEYS))),
    f"StreamingLLMPress, {KEYS} keys": ("kvpress", kvpress("StreamingLLMPress")),
    "attention sinks": ("attention-sinks", attention_sinks),
    "SinkCache": ("transformers", sink_cache),
}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _told(error: Exception) -> str:
    """Return what was raised, and in which file and line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    said = " ".join(str(error).split()).partition(" (/")[0]
    return f"{type(error).__name__}: {said}, in {'/'.join(Path(place.filename).parts[-3:])}:{place.lineno}"


if __name__ == "__main__":
    main(tyro.cli(PeersBench))
