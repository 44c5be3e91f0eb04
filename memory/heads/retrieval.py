"""Which attention heads of a language model copy from its context: retrieval heads.

Wu et al. 2024 (arXiv 2404.15574, section 2) hide a sentence in a long text, let the model answer a question
about it, and count, for each head, how often its most attended token is the very token of the hidden sentence
that the model writes next. Few heads score high, they are the same over contexts, and over fine-tunes of one
base model.

The probes here are made of generated sentences and ask for a number. One pass over a prompt and its right
answer tells what greedy decoding would write, as long as that is right, and gives the attention of the rows
that write it.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from scrubjay.memory.heads.capture import capture_attention
from scrubjay.memory.heads.prompts import chat_prompt, opened
from scrubjay.memory.heads.wrap import attention_modules

# Cosine of two models' embeddings: strangers' is near 0, a fine-tune's near 1.
_ALIKE = 0.9
_STORED = Path(__file__).with_suffix(".json")
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
    """Scores of all heads of a model."""

    scores: tuple[tuple[float, ...], ...]
    """For each layer and head, the fraction of copied tokens it attended to most, 0 to 1."""
    probes: int
    """Probes averaged over: those that the model answered."""
    layers: tuple[int, ...] = ()
    """Which layers of the model have these heads, where not all attend; else they are counted from 0."""

    def by_layer(self) -> dict[int, tuple[float, ...]]:
        """Return the scores of each layer's heads."""
        return dict(zip(self.layers or range(len(self.scores)), self.scores, strict=True))

    def ranked(self) -> list[tuple[int, int]]:
        """Return `(layer, head)`s, best first."""
        rows = self.by_layer()
        heads = [(layer, head) for layer, row in rows.items() for head in range(len(row))]
        return sorted(heads, key=lambda at: -rows[at[0]][at[1]])

    def best_layer(self) -> int:
        """Return the layer whose heads copy most together."""
        rows = self.by_layer()
        return max(rows, key=lambda layer: sum(rows[layer]))

    def of_layer(self, layer: int, share: float = 0.5) -> list[int]:
        """Return the heads of a layer that score at least `share` of its best, best first.

        Raises ValueError for a layer that does not exist or has no head that ever copied.
        """
        rows = self.by_layer()
        if layer not in rows:
            raise ValueError(f"layer={layer}: the model attends in layers {', '.join(map(str, rows))}")
        row = rows[layer]
        if max(row) == 0:
            raise ValueError(f"layer={layer} has no retrieval head; the best heads are {self.ranked()[:5]}")
        return sorted((h for h in range(len(row)) if row[h] >= share * max(row)), key=lambda h: -row[h])


def retrieval_heads(model: PreTrainedModel, tokenizer: Any, *, probes: int = 12) -> RetrievalHeads:
    """Return the stored scores of a model of these sizes and nearly these weights, a fine-tune.

    Those of others are measured.
    """
    return stored_retrieval_heads(model) or measure_retrieval_heads(model, tokenizer, probes=probes)


def stored_retrieval_heads(model: PreTrainedModel) -> RetrievalHeads | None:
    """Return the stored scores of a model of these sizes and nearly these weights; None if there are none."""
    stored = _stored().get(architecture(model))
    if stored is None or not _alike(_sample(model), stored["weights"]):
        return None
    layers = tuple(stored.get("layers", ()))
    return RetrievalHeads(tuple(map(tuple, stored["scores"])), stored["probes"], layers)


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
    """Score all heads on `probes` texts of so many sentences.

    Args:
        model: A causal language model of transformers.
        tokenizer: Its tokenizer.
        probes: Texts to answer.
        sentences: Of each text.
        seed: Of the texts.
        progress: Show it on stderr.

    Raises:
        ValueError: if the model answers none of them.
    """
    total: Tensor | None = None
    answered = 0
    for number, probe in enumerate(_probes(probes, sentences, seed)):
        scores = _score(model, tokenizer, probe)
        answered += scores is not None
        if scores is not None:
            total = scores if total is None else total + scores
        if progress:
            print(f"probe {number + 1}/{probes}, answered {answered}", flush=True)
    if total is None:
        raise ValueError(f"the model answered none of {probes} probes, so no head could be seen copying")
    scores = (total / answered).tolist()
    rows = tuple(tuple(round(score, 4) for score in row) for row in scores)
    layers = tuple(attention_modules(model))
    return RetrievalHeads(rows, answered, () if layers == tuple(range(len(layers))) else layers)


def architecture(model: PreTrainedModel) -> str:
    """Return a name that models of one base share, and others of its type and sizes."""
    config = model.config
    sizes = (config.num_hidden_layers, config.num_attention_heads, config.hidden_size, config.vocab_size)
    return "-".join(map(str, (config.model_type, *sizes)))


def store(model: PreTrainedModel, heads: RetrievalHeads, command: str, path: Path = _STORED) -> None:
    """Add a model's scores to the stored ones, with the command that made them."""
    known = json.loads(path.read_text()) if path.exists() else {}
    weights = [float(f"{weight:.3g}") for weight in _sample(model)]
    known[architecture(model)] = {"command": command, **asdict(heads), "weights": weights}
    path.write_text(json.dumps(known) + "\n")


def _sample(model: PreTrainedModel) -> list[float]:
    """Return some weights of the embedding, which fine-tuning and rounding hardly move."""
    weight: Any = model.get_input_embeddings().weight  # to type checkers a module
    tokens, columns = (torch.linspace(0, size - 1, 16, dtype=torch.long) for size in weight.shape)
    return weight.detach()[tokens.to(weight.device)][:, columns.to(weight.device)].float().flatten().tolist()


def _alike(ours: list[float], theirs: list[float]) -> bool:
    return torch.cosine_similarity(torch.tensor(ours), torch.tensor(theirs), dim=0).item() > _ALIKE


@cache
def _stored() -> dict[str, Any]:
    return json.loads(_STORED.read_text()) if _STORED.exists() else {}


@dataclass(frozen=True)
class _Probe:
    text: str
    question: str
    answer: str
    value: str


def _probes(count: int, sentences: int, seed: int) -> Iterator[_Probe]:
    """Give texts of random sentences, one number to find and others to pass by, evenly spread in depth."""
    pick = random.Random(seed)
    for number in range(count):
        text = [
            f"The {pick.choice(_SUBJECTS)} {pick.choice(_VERBS)} the "
            f"{pick.choice(_OBJECTS)}{pick.choice(_PLACES)}."
            for _ in range(sentences)
        ]
        names = pick.sample(_NAMES, 3)
        values = [str(pick.randrange(10**6, 10**7)) for _ in names]
        for name, value in list(zip(names, values, strict=True))[1:]:
            text.insert(pick.randrange(len(text) + 1), f"The code of project {name} is {value}.")
        depth = round((number + 0.5) / count * len(text))
        answer = f"The code of project {names[0]} is "
        text.insert(depth, f"{answer}{values[0]}.")
        yield _Probe(" ".join(text), f"What is the code of project {names[0]}?", answer, values[0])


def _score(model: PreTrainedModel, tokenizer: Any, probe: _Probe) -> Float[Tensor, "layers heads"] | None:
    """Return each head's share of the value's tokens it copied, None if the model does not tell the value."""
    before, asked, tail = chat_prompt(tokenizer, probe.question)
    start = probe.text.index(probe.value)
    told = probe.text[start + len(probe.value) :] + asked + tail + probe.answer
    pieces = [before + probe.text[:start], probe.value, told]
    lead, value, rest = (tokenizer(piece, add_special_tokens=False).input_ids for piece in pieces)
    lead = opened(tokenizer, lead)
    tokens = torch.tensor([lead + value + rest + value], device=model.device)
    # The row that writes a token is the one before it.
    rows = slice(-len(value) - 1, -1)
    modules = attention_modules(model)
    with capture_attention(model, dict.fromkeys(modules), rows) as weights:
        logits = model(tokens, use_cache=False, logits_to_keep=len(value) + 1).logits
    written = logits[0, :-1].argmax(dim=-1)
    wanted = tokens[0, -len(value) :]
    if not torch.equal(written, wanted):
        return None
    scores = []
    for layer in modules:
        best = weights[layer][0][0].argmax(dim=-1)
        in_needle = (best >= len(lead)) & (best < len(lead) + len(value))
        scores.append((in_needle & (tokens[0, best] == wanted)).float().mean(dim=-1))
    return torch.stack(scores)


if __name__ == "__main__":
    from scrubjay.memory.context.models import load_model

    (source,) = sys.argv[1:]
    model, tokenizer = load_model(source)
    measured = measure_retrieval_heads(model, tokenizer, progress=True)
    store(model, measured, f"python -m {__spec__.name} {source}")
