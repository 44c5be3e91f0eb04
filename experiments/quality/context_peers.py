"""Comparison of the context policies with other packages on the installed version of transformers.

    pip install --no-deps attention-sinks infini-retri kvpress
    pip install cachetools datasets fire nltk seaborn tiktoken
    apt-get download r-cran-janeaustenr
    python -P -m scrubjay.experiments.quality.context_peers r-cran-janeaustenr_1.0.0-1_all.deb

A sentence, the needle, is hidden in a novel. Every method answers the same questions about the needle. The
model is SmolLM2 in float32. The methods run one after the other in one process with one thread. If a package
fails, the table shows the error and its location.
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

from scrubjay.experiments.lm.haystack import NEEDLE, Cell, make_cell
from scrubjay.experiments.lm.needles import Example, split_sentences, string_match_all, token_counter
from scrubjay.experiments.lm.reading import answer, answer_with_infiniretri, tokenize
from scrubjay.experiments.lm.texts import read_text
from scrubjay.experiments.measurements import markdown
from scrubjay.experiments.resources import one_thread
from scrubjay.memory import context
from scrubjay.memory.context.infiniretri import InfiniRetri

KEYS, SINKS = 256, 4

Answerer = Callable[[Any, Any, Example], tuple[str, float]]
"""Function from model, tokenizer and example to the answer and its score."""


@dataclass(frozen=True)
class PeersBench:
    """Options of the benchmark."""

    text: Positional[Path]
    """Path of the long text: a .txt file, or a .deb package with Jane Austen's novels."""
    title: str | None = "northanger"
    """First letters of the title of the novel to read."""
    length: int = 4096
    """Total number of tokens of text, question and answer."""
    depths: tuple[float, ...] = (10.0, 50.0, 90.0)
    """Positions of the needle in percent of the text; each position gives one question."""


def main(bench: PeersBench) -> None:
    """Run all methods and print the table."""
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
        for name, (package, answerer) in METHODS.items():
            version = f"{package} {_version(package)}"
            try:
                start_time = time.process_time()
                scores = [answerer(model, tokenizer, example)[1] for example in examples]
                seconds = (time.process_time() - start_time) / len(examples)
                rows.append([name, version, f"{sum(scores):.0f} of {len(scores)}", f"{seconds:.1f}", ""])
            except Exception as error:  # noqa: BLE001 - any error of a package is a result
                rows.append([name, version, "", "", _describe_error(error)])
    print(markdown(["method", "package", "needles found", "CPU s per answer", "error"], rows))


def answer_with_policy(policy: context.ContextPolicy) -> Answerer:
    """Return an answerer that uses a context policy."""

    def by_policy(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
        response = answer(model, tokenizer, policy, example, 512)
        return response.text, response.score

    return by_policy


def answer_with_our_infiniretri(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer from the sentences that InfiniRetri selects."""
    reader = InfiniRetri(model, tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        response = answer_with_infiniretri(model, tokenizer, reader, example, 512, Path(folder), quiet=True)
    return response.text, response.score


def infini_retri(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer with the package of InfiniRetri's authors, which reads the attention of every layer."""
    from infini_retri import InfiniRetri as ReferenceInfiniRetri  # pyright: ignore[reportMissingImports]

    own = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        reply = ReferenceInfiniRetri(model, tokenizer).generate(
            example.context, example.question, max_new_tokens=example.new_tokens
        )
    finally:
        model.set_attn_implementation(own)
    return reply, string_match_all(reply, example.references)


def kvpress(name: str) -> Answerer:
    """Return an answerer that compresses the cache of a prompt to `KEYS` keys with kvpress's class `name`."""

    def by_press(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
        import kvpress  # pyright: ignore[reportMissingImports]

        length = len(tokenize(tokenizer, example.render(tokenizer)))
        with getattr(kvpress, name)(compression_ratio=1 - KEYS / length)(model):
            return _generate(model, tokenizer, example)

    return by_press


def attention_sinks(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer with the attention_sinks package of 2023 (StreamingLLM), which loads models itself."""
    import attention_sinks as reference  # pyright: ignore[reportMissingImports]

    with tempfile.TemporaryDirectory() as folder:
        type(model)(model.config).save_pretrained(folder)
        sink_model = reference.AutoModelForCausalLM.from_pretrained(
            folder, attention_sink_size=SINKS, attention_sink_window_size=KEYS - SINKS
        )
    sink_model.load_state_dict(model.state_dict())
    return _generate(sink_model, tokenizer, example)


def sink_cache(model: Any, tokenizer: Any, example: Example) -> tuple[str, float]:
    """Answer with the `SinkCache` of transformers 4."""
    from transformers import SinkCache  # pyright: ignore[reportAttributeAccessIssue]

    return _generate(model, tokenizer, example, past_key_values=SinkCache(KEYS, SINKS))


def _generate(model: Any, tokenizer: Any, example: Example, **keywords: Any) -> tuple[str, float]:
    tokens = tokenize(tokenizer, example.render(tokenizer))[None]
    output = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=example.new_tokens,
        do_sample=False,
        **keywords,
    )
    text = tokenizer.decode(output[0, tokens.shape[1] :])
    return text, string_match_all(text, example.references)


METHODS: dict[str, tuple[str, Answerer]] = {
    "full": ("scrubjay", answer_with_policy(context.make("full"))),
    "infiniretri": ("scrubjay", answer_with_our_infiniretri),
    "InfiniRetri, authors' package": ("infini-retri", infini_retri),
    f"snapkv, {KEYS} keys": ("scrubjay", answer_with_policy(context.make("snapkv", budget=KEYS))),
    f"SnapKVPress, {KEYS} keys": ("kvpress", kvpress("SnapKVPress")),
    f"sinks, {KEYS} keys": ("scrubjay", answer_with_policy(context.make("sinks", budget=KEYS))),
    f"StreamingLLMPress, {KEYS} keys": ("kvpress", kvpress("StreamingLLMPress")),
    "attention sinks": ("attention-sinks", attention_sinks),
    "SinkCache": ("transformers", sink_cache),
}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


def _describe_error(error: Exception) -> str:
    """Describe an error with its file and line."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    message = " ".join(str(error).split()).partition(" (/")[0]
    return f"{type(error).__name__}: {message}, in {'/'.join(Path(place.filename).parts[-3:])}:{place.lineno}"


if __name__ == "__main__":
    main(tyro.cli(PeersBench))
