"""Fit the linear maps of KVzap to a model: `python -P -m ...training.kvzap MODEL --out FILE [TEXT ...]`.

The targets are the KVzip+ scores of Jégou and Jeblick 2026 (arXiv 2601.07891): the model reads a passage, and
then reads it again after an instruction to repeat it. The second pass is that of the policy `kvzip`. The maps
minimize the squared errors with a penalty on the weights (ridge regression), in closed form and double
precision. The first tokens of a passage are left out, since the policy keeps them anyway.

Passages come from three sources: files, or folders with files that end in .md, .py or .txt; small scenes and
facts with names and numbers, which are written by rules; and prose that the model writes itself. Every tenth
passage is held out to measure the share of the variance that a map explains (R²).
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.capture import attention_modules
from scrubjay.memory.context.identity import architecture, sample_weights
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.kvzap import KVzapWeights
from scrubjay.memory.context.policies.scored.kvzip import INSTRUCTION, KVzipPolicy
from scrubjay.memory.context.policies.scored.second_pass import Repetition

PASSAGE = 1000
"""Tokens of a passage, as in the authors' texts of 750 to 1,250 tokens."""
PENALTY = 0.01
"""Penalty on the squared weights, in units of the mean square of a hidden state's coordinate and token."""
NUM_SINKS = 4
"""First tokens of a passage that are left out."""
_HELD_OUT = 10
_ENDINGS = (".md", ".py", ".txt")


@dataclass(frozen=True)
class TargetPolicy(KVzipPolicy):
    """KVzip with the scores of KVzip+."""

    reads_hidden: ClassVar[bool] = True

    def score(
        self,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        *,
        scoring: Scoring,
        repetition: Repetition,
        module: nn.Module,
        hidden: Float[Tensor, "batch length dim"],
        **_: object,
    ) -> Float[Tensor, "batch key_heads chunk"]:
        """Return the logarithm of the largest a |W v| / |h| of each token, over the repeating queries."""
        projection = getattr(module, "o_proj", None)
        if not isinstance(projection, nn.Linear):
            raise TypeError(
                f"{type(module).__name__} has no output projection `o_proj`, from which KVzip+ scores are "
                "computed; use a model with the layers of Llama"
            )
        weights = self.compute_weights(keys, queries, scoring, repetition)
        shared, length, chunk = weights.shape[2:]
        own = values[:, :, repetition.tokens].float()
        matrix = projection.weight.float().view(-1, keys.shape[1], shared, own.shape[-1])
        # |W v|² = v (WᵀW) v
        squares = torch.einsum("dgsv,dgsw->gsvw", matrix, matrix)
        norms = torch.einsum("bgtv,gsvw,bgtw->bgst", own, squares, own).clamp(min=0).sqrt()
        sizes = hidden.float().norm(dim=-1)[:, None, None, :, None]
        scores = (weights * norms[:, :, :, None] / sizes)[..., length - chunk :, :].amax(dim=(2, 3))
        return scores.clamp(min=torch.finfo(scores.dtype).tiny).log()


@torch.no_grad()
def measure_scores(
    model: Any, ids: Int[Tensor, " tokens"], instruction: Sequence[int] = ()
) -> dict[int, tuple[Float[Tensor, "tokens dim"], Float[Tensor, "tokens key_heads"]]]:
    """Return the hidden states and KVzip+ scores of the tokens of a passage, by layer with full attention."""
    budget = len(ids) + NUM_SINKS + 1
    policy = TargetPolicy(budget, 1, NUM_SINKS, chunk=len(ids), instruction=tuple(instruction))
    cache = PolicyCache(policy, model)
    states: dict[int, Tensor] = {}

    def record(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        index: Any = module.layer_idx
        states.setdefault(index, (args[0] if args else options["hidden_states"])[0].detach())

    hooks = [
        module.register_forward_pre_hook(record, with_kwargs=True)
        for module in attention_modules(model).values()
    ]
    try:
        model(ids[None].to(model.device), cache=cache, logits_to_keep=1)
    finally:
        for hook in hooks:
            hook.remove()
    result = {}
    for layer in cache.attention_layers:
        if layer.sees_everything:
            scores = layer.memory.state["scores"].view(-1, len(ids)).mT
            result[layer.index] = states[layer.index], scores
    return result


class Ridge:
    """Sums over tokens from which a linear map with a bias is fitted."""

    def __init__(self) -> None:
        self._products: Any = 0.0
        self._count = self._dim = 0

    def add(self, inputs: Float[Tensor, "tokens dim"], targets: Float[Tensor, "tokens heads"]) -> None:
        """Add tokens."""
        table = torch.cat([inputs, targets, torch.ones_like(inputs[:, :1])], dim=1).double()
        self._products = self._products + table.mT @ table
        self._count += len(inputs)
        self._dim = inputs.shape[1]

    def fit(self, penalty: float) -> Float[Tensor, "heads more_than_dim"]:
        """Return the map that minimizes the squared errors plus the penalty. Its last column is the bias."""
        products, dim = self._products, self._dim
        sums = products[-1, :-1]
        covariance = products[:-1, :-1] - sums[:, None] * sums / self._count
        gram, cross = covariance[:dim, :dim], covariance[:dim, dim:]
        strength = penalty * gram.diagonal().mean()
        eye = torch.eye(dim, dtype=gram.dtype, device=gram.device)
        weight = torch.linalg.solve(gram + strength * eye, cross).mT
        means = sums / self._count
        return torch.cat([weight, (means[dim:] - weight @ means[:dim])[:, None]], dim=1)


def train_kvzap(
    model: Any,
    texts: Iterable[Int[Tensor, " tokens"]],
    instruction: Sequence[int] = (),
    penalty: float = PENALTY,
) -> KVzapWeights:
    """Fit the maps of all layers with full attention to the KVzip+ scores of passages.

    Args:
        model: A causal language model of transformers.
        texts: Token ids of each passage, with more than `NUM_SINKS` tokens.
        instruction: Token ids that stand before the second reading of a passage.
        penalty: Penalty on the squared weights, relative to the mean square of the inputs.
    """
    sums: dict[int, Ridge] = {}
    for ids in texts:
        if len(ids) <= NUM_SINKS:
            raise ValueError(f"a passage has {len(ids)} tokens: must have more than {NUM_SINKS}")
        for layer, (states, scores) in measure_scores(model, ids, instruction).items():
            sums.setdefault(layer, Ridge()).add(states[NUM_SINKS:], scores[NUM_SINKS:])
    if not sums:
        raise ValueError("no passages: give texts for the training")
    maps = {layer: one.fit(penalty).half().cpu() for layer, one in sums.items()}
    sample = tuple(float(f"{weight:.3g}") for weight in sample_weights(model))
    return KVzapWeights(maps, architecture(model), sample)


def explain_variance(
    model: Any,
    weights: KVzapWeights,
    texts: Iterable[Int[Tensor, " tokens"]],
    instruction: Sequence[int] = (),
) -> dict[int, float]:
    """Return the share of the variance of the scores that the map of each layer explains (R²).

    It is the mean over the key heads. The variance is that around the mean of each head.
    """
    tables: dict[int, list[Tensor]] = {}
    for ids in texts:
        for layer, (states, scores) in measure_scores(model, ids, instruction).items():
            table = weights.maps[layer].to(states.device).double()
            guesses = states.double() @ table[:, :-1].mT + table[:, -1]
            tables.setdefault(layer, []).append(torch.stack([guesses, scores.double()])[:, NUM_SINKS:])
    result = {}
    for layer, parts in tables.items():
        guesses, scores = torch.cat(parts, dim=1)
        errors = (scores - guesses).square().sum(dim=0)
        result[layer] = float((1 - errors / (scores - scores.mean(dim=0)).square().sum(dim=0)).mean())
    return result


_PEOPLE = ["Anna Berg", "Omar Said", "Lena Novak", "Peter Quist", "Maria Costa", "John Reed", "Yuki Mori"]
_JOBS = ["baker", "nurse", "pilot", "carpenter", "teacher", "gardener", "sailor", "engineer", "judge"]
_TOWNS = ["Aldham", "Porto Lima", "Kestrel Bay", "Novgrad", "Santa Rita", "Elmsford", "Port Haven"]
_THINGS = ["a lantern", "two letters", "an old map", "the blue kettle", "a bag of flour", "his coat"]
_DEEDS = ["carried", "lost", "mended", "sold", "found", "hid", "painted", "forgot", "borrowed", "cleaned"]
_TIMES = ["in the morning", "after supper", "before the storm", "at noon", "on the way home", "last winter"]
_THOUGHTS = [
    "Nobody in the town had seen such a thing.",
    "It rained for three days, and the road was closed.",
    "She laughed and said that it did not matter.",
    "He counted the steps twice, because he could not sleep.",
    "The children asked whether the boat would come back.",
    '"We should have left earlier," said the old woman.',
]
_FACTS = [
    "The phone number of {person} is {small}-{number}.",
    "The code of project {town} is {number}.",
    "{town} was founded in {year} and has {number} inhabitants.",
    "{person} was born on {small} May {year} in {town}.",
    "- {town}: {small} trains a day, {small} hotels, {year} houses",
    "Question: How old is {person}? Answer: {small} years.",
    "price[{small}] = {number}  # order of {person}",
]
_OPENINGS = [
    "Once upon a time, there was a fisherman who lived",
    "The history of the Roman Empire begins with",
    "My grandmother always told me that",
    "Photosynthesis is the process by which",
    "The train was late again, and the detective",
    "Dear John,\n\nI am writing to you because",
    "In this lesson we will learn how to",
    "The river flows through three countries, and",
]


def write_scene(pick: random.Random, sentences: int) -> str:
    """Return a text of scenes and facts that follow rules, one of four sentences a fact."""
    lines = []
    for _ in range(sentences):
        names = {"person": pick.choice(_PEOPLE), "town": pick.choice(_TOWNS)}
        numbers = {
            "small": pick.randrange(2, 99),
            "number": pick.randrange(10**4, 10**7),
            "year": pick.randrange(1100, 2020),
        }
        kind = pick.randrange(8)
        if kind < 2:
            lines.append(pick.choice(_FACTS).format(**names, **numbers))
        elif kind < 4:
            lines.append(pick.choice(_THOUGHTS))
        else:
            lines.append(
                f"{names['person']}, the {pick.choice(_JOBS)} of {names['town']}, {pick.choice(_DEEDS)} "
                f"{pick.choice(_THINGS)} {pick.choice(_TIMES)}."
            )
        lines[-1] += pick.choice(["\n", " ", " ", "\n\n"])
    return "".join(lines)


@torch.no_grad()
def sample_texts(model: Any, tokenizer: Any, count: int, seed: int = 0) -> Iterator[str]:
    """Yield texts that the model writes itself, each after one of eight openings."""
    for first in range(0, count, len(_OPENINGS)):
        openings = _OPENINGS[: count - first]
        with torch.random.fork_rng():
            torch.manual_seed(seed + first)
            for opening in openings:
                ids = tokenizer(opening, return_tensors="pt").input_ids.to(model.device)
                out = model.generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=True,
                    top_p=0.95,
                    max_new_tokens=PASSAGE,
                    min_new_tokens=PASSAGE,
                    pad_token_id=0,
                )
                yield tokenizer.decode(out[0], skip_special_tokens=True)


def read_files(paths: Sequence[Path]) -> Iterator[str]:
    """Yield the texts of files, and of the files in folders that end in .md, .py or .txt."""
    for path in paths:
        if not path.exists():
            raise ValueError(f"{path}: no such file or folder")
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file == path or (file.is_file() and file.suffix in _ENDINGS):
                yield file.read_text(encoding="utf-8")


def cut_passages(tokenizer: Any, texts: Iterable[str]) -> list[Int[Tensor, " tokens"]]:
    """Return passages of `PASSAGE` tokens; texts are joined, and a short rest is left out."""
    ids = tokenizer("\n\n".join(texts), add_special_tokens=False).input_ids
    return [torch.tensor(ids[first : first + PASSAGE]) for first in range(0, len(ids) - PASSAGE + 1, PASSAGE)]


def main() -> None:
    """Fit the maps of a model and write them to a file."""
    parser = argparse.ArgumentParser(description="Fit the linear maps of the policy kvzap to a model.")
    parser.add_argument("model", help="folder or GGUF file of a model, or smollm2")
    parser.add_argument("texts", nargs="*", type=Path, help="files or folders with texts")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--scenes", type=int, default=8, help="passages written by rules")
    parser.add_argument("--samples", type=int, default=8, help="passages written by the model")
    parser.add_argument("--most", type=int, default=64, help="largest number of passages")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or auto")
    options = parser.parse_args()
    from scrubjay.memory.context.models import load_model

    model, tokenizer = load_model(options.model, device=options.device)
    pick = random.Random(0)
    scenes = cut_passages(tokenizer, [write_scene(pick, 100 * options.scenes)])[: options.scenes]
    samples = cut_passages(tokenizer, sample_texts(model, tokenizer, options.samples))
    files = cut_passages(tokenizer, read_files(options.texts))
    pick.shuffle(files)
    passages = [*scenes, *samples, *files][: options.most]
    pick.shuffle(passages)
    instruction = tokenizer(INSTRUCTION, add_special_tokens=False).input_ids
    tests, training = passages[::_HELD_OUT], [p for i, p in enumerate(passages) if i % _HELD_OUT]
    weights = train_kvzap(model, _show_progress(training), instruction)
    weights.save(options.out)
    print(f"{len(training)} passages of {PASSAGE} tokens; R² on {len(tests)} others by layer:")
    print(describe_variance(explain_variance(model, weights, tests, instruction)))


def _show_progress(passages: Sequence[Int[Tensor, " tokens"]]) -> Iterator[Int[Tensor, " tokens"]]:
    """Yield the passages, and print a line on stderr for each."""
    for number, passage in enumerate(passages, 1):
        print(f"passage {number}/{len(passages)}", file=sys.stderr, flush=True)
        yield passage


def describe_variance(shares: Mapping[int, float]) -> str:
    """Return one line with the R² of each layer and one with the mean."""
    values = ", ".join(f"{layer}: {share:.2f}" for layer, share in shares.items())
    return f"{values}\nmean: {sum(shares.values()) / max(len(shares), 1):.2f}"


if __name__ == "__main__":
    main()
