"""Retrieval heads: the attention heads of a language model that copy from its context.

Wu et al. 2024 (arXiv 2404.15574, section 2) hide a sentence in a long text and let the model answer a
question about the sentence. The model copies tokens of the hidden sentence into its answer. The score of a
head is the fraction of copied tokens for which the largest attention weight of the head is on the token in
the text. Few heads have high scores. The same heads have high scores in different contexts and in fine-tunes
of one base model.

The probes here consist of generated sentences and ask for a number. One forward pass over a prompt and the
correct answer shows whether greedy decoding would generate that answer. The same pass gives the attention of
the positions that generate the answer.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.context.capture import attention_modules, capture_attention
from scrubjay.memory.context.head_scores import SCORES_FILE, find_scores
from scrubjay.memory.context.identity import architecture, sample_weights
from scrubjay.memory.context.quotes import build_chat_prompt, prepend_bos

_SUBJECTS = [
    "baker",
    "sailor",
    "doctor",
    "farmer",
    "painter",
    "teacher",
    "soldier",
    "miller",
    "lawyer",
    "tailor",
]
_VERBS = [
    "watched",
    "mended",
    "carried",
    "bought",
    "forgot",
    "cleaned",
    "painted",
    "borrowed",
    "sold",
    "counted",
]
_OBJECTS = [
    "ladder",
    "lantern",
    "basket",
    "barrel",
    "letter",
    "blanket",
    "saddle",
    "kettle",
    "mirror",
    "wagon",
]
_PLACES = [
    " near the river",
    " behind the church",
    " in the old market",
    " before the storm",
    " after supper",
    "",
]
_NAMES = ["Almond", "Basalt", "Cobalt", "Dahlia", "Ember", "Fennel", "Garnet", "Heron", "Indigo", "Juniper"]


@dataclass(frozen=True)
class RetrievalHeads:
    """Retrieval scores of all heads of a model."""

    scores: tuple[tuple[float, ...], ...]
    """Score of each head, by layer and head, from 0 to 1. The score is the fraction of the answer's tokens
    for which the head's largest attention weight was on the same token in the sentence with the answer."""
    probes: int
    """Number of probes that the model answered correctly. Scores are averaged over these probes."""
    layers: tuple[int, ...] = ()
    """Indices of the attention layers; empty if all layers have attention."""

    def by_layer(self) -> dict[int, tuple[float, ...]]:
        """Return the scores of the heads by layer index."""
        return dict(zip(self.layers or range(len(self.scores)), self.scores, strict=True))

    def rank(self) -> list[tuple[int, int]]:
        """Return all `(layer, head)` pairs, best first."""
        rows = self.by_layer()
        heads = [(layer, head) for layer, row in rows.items() for head in range(len(row))]
        return sorted(heads, key=lambda at: -rows[at[0]][at[1]])

    def best_layer(self) -> int:
        """Return the layer with the highest sum of scores."""
        rows = self.by_layer()
        return max(rows, key=lambda layer: sum(rows[layer]))

    def select_heads(self, layer: int, share: float = 0.5) -> list[int]:
        """Return the heads of a layer with at least `share` of its best score, best first.

        Raises ValueError for a layer that does not exist or whose scores are all 0.
        """
        rows = self.by_layer()
        if layer not in rows:
            raise ValueError(f"layer={layer}: the model has attention in layers {', '.join(map(str, rows))}")
        row = rows[layer]
        if max(row) == 0:
            raise ValueError(
                f"layer={layer} has no retrieval head; the best (layer, head) pairs are {self.rank()[:5]}"
            )
        return sorted((h for h in range(len(row)) if row[h] >= share * max(row)), key=lambda h: -row[h])


def retrieval_heads(model: PreTrainedModel, tokenizer: Any, *, probes: int = 12) -> RetrievalHeads:
    """Return the stored scores of a known model or a fine-tune of it; measure the scores of other models."""
    return stored_retrieval_heads(model) or measure_retrieval_heads(model, tokenizer, probes=probes)


def stored_retrieval_heads(model: PreTrainedModel) -> RetrievalHeads | None:
    """Return the stored scores of a known model or a fine-tune of it; None for other models.

    A model is known if its sizes are equal to those of a stored model and its weights are similar.
    """
    entry = find_scores(model)
    if entry is None:
        return None
    layers = tuple(entry.get("layers", ()))
    return RetrievalHeads(tuple(map(tuple, entry["scores"])), entry["probes"], layers)


@torch.no_grad()
def measure_retrieval_heads(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    probes: int = 12,
    sentences: int = 30,
    seed: int = 0,
    progress: bool = False,
) -> RetrievalHeads:
    """Measure the retrieval scores of all heads.

    Args:
        model: A causal language model of transformers.
        tokenizer: Tokenizer of the model.
        probes: Number of texts, each with one question.
        sentences: Sentences per text.
        seed: Random seed of the texts.
        progress: Whether to print progress.

    Raises:
        ValueError: if the model answers none of the questions.
    """
    total: Tensor | None = None
    num_answered = 0
    for number, probe in enumerate(_probes(probes, sentences, seed)):
        scores = _score(model, tokenizer, probe)
        num_answered += scores is not None
        if scores is not None:
            total = scores if total is None else total + scores
        if progress:
            print(f"probe {number + 1}/{probes}, answered {num_answered}", flush=True)
    if total is None:
        raise ValueError(
            f"the model answered none of {probes} probes, so its heads cannot be scored; use another model"
        )
    scores = (total / num_answered).tolist()
    rows = tuple(tuple(round(score, 4) for score in row) for row in scores)
    layers = tuple(attention_modules(model))
    return RetrievalHeads(rows, num_answered, () if layers == tuple(range(len(layers))) else layers)


def store(model: PreTrainedModel, heads: RetrievalHeads, command: str, path: Path = SCORES_FILE) -> None:
    """Write a model's scores, and the command that measured them, to the JSON file of stored scores."""
    entries = json.loads(path.read_text()) if path.exists() else {}
    weights = [float(f"{weight:.3g}") for weight in sample_weights(model)]
    entries[architecture(model)] = {"command": command, **asdict(heads), "weights": weights}
    path.write_text(json.dumps(entries) + "\n")


@dataclass(frozen=True)
class _Probe:
    text: str
    question: str
    answer: str
    value: str


def _probes(count: int, sentences: int, seed: int) -> Iterator[_Probe]:
    """Yield texts of random sentences with one target number and two distractors, at evenly spread depths."""
    pick = random.Random(seed)
    for number in range(count):
        text = [
            f"The {pick.choice(_SUBJECTS)} {pick.choice(_VERBS)} the "
            f"{pick.choice(_OBJECTS)}{pick.choice(_PLACES)}."
            for _ in range(sentences)
        ]
        names = pick.sample(_NAMES, 3)
        values = [str(pick.randrange(10**6, 10**7)) for _ in names]
        for name, value in zip(names[1:], values[1:], strict=True):
            text.insert(pick.randrange(len(text) + 1), f"The code of project {name} is {value}.")
        depth = round((number + 0.5) / count * len(text))
        answer = f"The code of project {names[0]} is "
        text.insert(depth, f"{answer}{values[0]}.")
        yield _Probe(" ".join(text), f"What is the code of project {names[0]}?", answer, values[0])


def _score(model: PreTrainedModel, tokenizer: Any, probe: _Probe) -> Float[Tensor, "layers heads"] | None:
    """Return, for each head, the share of the target number's tokens that the head copied.

    Return None if the model answers the probe wrongly.
    """
    before, question_text, tail = build_chat_prompt(tokenizer, probe.question)
    start = probe.text.index(probe.value)
    suffix = probe.text[start + len(probe.value) :] + question_text + tail + probe.answer
    pieces = [before + probe.text[:start], probe.value, suffix]
    lead, value, rest = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    lead = prepend_bos(tokenizer, lead)
    tokens = torch.tensor([lead + value + rest + value], device=model.device)
    # A token is generated by the row before it.
    rows = slice(-len(value) - 1, -1)
    modules = attention_modules(model)
    with capture_attention(model, dict.fromkeys(modules), rows) as weights:
        logits = model(tokens, use_cache=False, logits_to_keep=len(value) + 1).logits
    predictions = logits[0, :-1].argmax(dim=-1)
    targets = tokens[0, -len(value) :]
    if not torch.equal(predictions, targets):
        return None
    scores = []
    for layer in modules:
        best = weights[layer][0][0].argmax(dim=-1)
        in_needle = (best >= len(lead)) & (best < len(lead) + len(value))
        scores.append((in_needle & (tokens[0, best] == targets)).float().mean(dim=-1))
    return torch.stack(scores)


if __name__ == "__main__":
    from scrubjay.memory.context.models import load_model

    (source,) = sys.argv[1:]
    model, tokenizer = load_model(source)
    measured_heads = measure_retrieval_heads(model, tokenizer, progress=True)
    store(model, measured_heads, f"python -m {__spec__.name} {source}")
