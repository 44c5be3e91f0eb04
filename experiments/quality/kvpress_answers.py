"""Answers of the policies of kvpress to the questions of `scrubjay longcontext questions`.

kvpress needs an older release of transformers, so it has an environment of its own. The prompts have the same
tokens as in our measurement, and the weights are equal.

    python -P -m scrubjay.experiments.quality.kvpress_answers export novels.deb --out runs/kvpress
    python -m venv kv && kv/bin/pip install kvpress==0.5.5
    kv/bin/python experiments/quality/kvpress_answers.py answer runs/kvpress
    python -P -m scrubjay.experiments.quality.kvpress_answers table runs/kvpress runs/questions

`answer` imports no part of Scrubjay, and continues an interrupted run. It decodes as the pipeline of kvpress
does: the positions of a question go on after the whole text.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PRESSES = {
    "snapkv": "SnapKVPress",
    "pyramidkv": "PyramidKVPress",
    "tova": "TOVAPress",
    "keydiff": "KeyDiffPress",
    "expected_attention": "ExpectedAttentionPress",
    "kvzip": "KVzipPress",
    "sinks": "StreamingLLMPress",
}
"""Class of kvpress by the name of our policy."""
ADAKV = "adakv"
"""Our name of AdaKV around SnapKV, a wrapper in kvpress."""
TIMES = ("known", "later")
_KEYS = ("passage", "sample", "number", "time", "method", "share")


def export(arguments: argparse.Namespace) -> None:
    """Write the tokens of all prompts, and the model in the format of transformers."""
    import torch

    from scrubjay.experiments.lm.options import QuestionsOptions
    from scrubjay.experiments.lm.questions.measurement import make_passages
    from scrubjay.experiments.lm.questions.passages import PASSAGES, split_prompt
    from scrubjay.memory import context

    options = QuestionsOptions(
        text=(arguments.text,), model=arguments.model, length=arguments.length, samples=arguments.samples
    )
    model, tokenizer = context.load_model(options.model, torch.float32)
    make = make_passages(options, tokenizer)
    arguments.out.mkdir(parents=True, exist_ok=True)
    with (arguments.out / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for sample in range(options.samples):
            for passage in PASSAGES:
                for number, (kind, example) in enumerate(make(passage, sample).questions):
                    text, question = split_prompt(tokenizer, example)
                    row = {"passage": passage, "sample": sample, "number": number, "kind": kind}
                    row |= {"text": text.tolist(), "question": question.tolist()}
                    row |= {"references": example.references, "new_tokens": example.new_tokens}
                    file.write(json.dumps(row) + "\n")
    model.save_pretrained(arguments.out / "model")
    tokenizer.save_pretrained(arguments.out / "model")


def answer(arguments: argparse.Namespace) -> None:
    """Let each press of kvpress answer the questions that it has not answered yet."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_grad_enabled(False)
    folder = str(arguments.folder / "model")
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False, use_kernels=False
    )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    reader = Reader(model)
    prompts, out = _read(arguments.folder / "prompts.jsonl"), arguments.folder / "answers.jsonl"
    present = {tuple(row[key] for key in _KEYS) for row in _read(out)} if out.exists() else set()
    shares: list[float] = arguments.shares
    for name, share, time in itertools.product((*PRESSES, ADAKV), shares, TIMES):
        text: list[int] = []
        for prompt in prompts:
            row = {key: prompt[key] for key in _KEYS[:3]} | {"time": time, "method": name, "share": share}
            if tuple(row[key] for key in _KEYS) in present:
                continue
            question = [] if time == "later" else prompt["question"]
            if prompt["text"] + question != text:
                text = prompt["text"] + question
                reader.read(text, make_press(name, 1 - share))
            tokens = reader.answer(
                prompt["question"] if time == "later" else [], prompt["new_tokens"], tokenizer.eos_token_id
            )
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row | {"text": tokenizer.decode(tokens)}) + "\n")
        print(f"{name}, {share:g}, {time}", file=sys.stderr, flush=True)


class Reader:
    """Model that reads a text under a press, and answers questions about it."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def read(self, text: list[int], press: Any) -> None:
        """Read a text and compress its cache."""
        import torch
        from transformers import DynamicCache

        self.cache: Any = DynamicCache()
        with press(self.model):
            output = self.model.model(input_ids=torch.tensor([text]), past_key_values=self.cache)
        self.first = self.model.lm_head(output.last_hidden_state[0, -1])
        self.place = len(text)

    def answer(self, question: list[int], new_tokens: int, end: int) -> list[int]:
        """Return a greedy answer of at most `new_tokens` tokens, and remove it from the cache."""
        lengths = [self.cache.get_seq_length(layer) for layer in range(len(self.cache.layers))]
        logits, place, tokens = self.first, self.place, []
        if question:
            logits, place = self._step(question, place), place + len(question)
        while len(tokens) < new_tokens and (token := int(logits.argmax())) != end:
            tokens.append(token)
            logits, place = self._step([token], place), place + 1
        for layer, length in zip(self.cache.layers, lengths, strict=True):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]
        return tokens

    def _step(self, tokens: list[int], place: int) -> Any:
        """Read tokens at the positions from `place` on, and return the logits of the next token."""
        import torch

        positions = torch.arange(place, place + len(tokens))[None]
        ids = torch.tensor([tokens])
        output = self.model(
            input_ids=ids, past_key_values=self.cache, position_ids=positions, logits_to_keep=1
        )
        return output.logits[0, -1]


def make_press(name: str, ratio: float) -> Any:
    """Return a press that removes this share of the tokens."""
    kvpress = importlib.import_module("kvpress")
    if name == ADAKV:
        return kvpress.AdaKVPress(kvpress.SnapKVPress(compression_ratio=ratio))
    return getattr(kvpress, PRESSES[name])(compression_ratio=ratio)


def table(arguments: argparse.Namespace) -> None:
    """Print the scores of both packages, in percent of the references found."""
    from statistics import fmean

    from scrubjay.experiments.lm.needles import string_match_all
    from scrubjay.experiments.measurements import markdown

    prompts = {
        (row["passage"], row["sample"], row["number"]): row["references"]
        for row in _read(arguments.folder / "prompts.jsonl")
    }
    scores: dict[tuple[str, float, str, str], list[float]] = {}
    for row in _read(arguments.folder / "answers.jsonl"):
        references = prompts[row["passage"], row["sample"], row["number"]]
        key = row["method"], row["share"], row["time"], "kvpress"
        scores.setdefault(key, []).append(string_match_all(row["text"], tuple(references)))
    for row in _read(arguments.ours / "answers.jsonl"):
        if (row["passage"], row["sample"], 0) in prompts:
            key = row["method"], row["share"], row["time"], "scrubjay"
            scores.setdefault(key, []).append(row["score"])
    lines = []
    for method, share in dict.fromkeys(key[:2] for key in scores if key[3] == "kvpress"):
        cells = [
            f"{100 * fmean(own):.0f}" if (own := scores.get((method, share, time, package))) else ""
            for time in TIMES
            for package in ("scrubjay", "kvpress")
        ]
        lines.append([f"{method}, {100 * share:g} %", *cells])
    columns = ["policy, budget", *(f"{time}, {each}" for time in TIMES for each in ("scrubjay", "kvpress"))]
    print(markdown(columns, lines))


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(words: Sequence[str] | None = None) -> None:
    """Parse the words of a command line and run one of the three parts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = parser.add_subparsers(required=True)
    one = parts.add_parser("export", help="write prompts and model")
    one.add_argument("text", type=Path, help="long text, as for scrubjay longcontext questions")
    one.add_argument("--out", type=Path, default=Path("runs/kvpress"), help="folder to write")
    one.add_argument("--model", default="smollm2", help="model name or folder")
    one.add_argument("--length", type=int, default=4096, help="largest number of tokens")
    one.add_argument("--samples", type=int, default=4, help="number of texts of each kind")
    one.set_defaults(run=export)
    two = parts.add_parser("answer", help="answer the prompts; in the environment of kvpress")
    two.add_argument("folder", type=Path, help="folder of `export`")
    two.add_argument(
        "--shares", type=float, nargs="+", default=[0.5, 0.2, 0.1], help="shares of tokens to keep"
    )
    two.set_defaults(run=answer)
    three = parts.add_parser("table", help="compare the scores of both packages")
    three.add_argument("folder", type=Path, help="folder of `export`")
    three.add_argument("ours", type=Path, help="folder of scrubjay longcontext questions")
    three.set_defaults(run=table)
    arguments = parser.parse_args(words)
    arguments.run(arguments)


if __name__ == "__main__":
    main()
