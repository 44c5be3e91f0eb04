"""KVzap: keep the tokens that a linear map of their hidden states predicts to be needed.

Jégou and Jeblick 2026 (arXiv 2601.07891, NVIDIA's kvpress): the KVzip+ score of a token is the logarithm of
the largest value of a |W v| / |h|, while the model repeats the text. a is the attention weight that the token
receives, W v its value after the output projection, and h the hidden state of the query. A linear map for
each layer and key head predicts the score from the hidden state of the token, which is the input of the
attention layer. A token whose score is below `threshold` is evicted when `window` later tokens have been
read. So no second reading is needed, and generated tokens are evicted as well.

Differences from the authors' code: the map is linear; theirs can have a hidden layer. The first `num_sinks`
tokens are always kept. `budget` is an upper bound, and the tokens with the lowest scores exceed it. The maps
are fitted in closed form (`memory.context.training.kvzap`).

The maps of SmolLM2-135M are part of the package. They were fitted to 57 passages of 1,000 tokens: pages and
modules of this repository, sentences that are written by rules, and prose of the model itself. On 7 other
passages of these sources they explain .60 of the variance of the scores (R²), with .39 to .75 in a layer. On
1,000 tokens of a novel it is .48. Texts of 170 tokens have higher scores, which the maps do not predict: R²
is negative, and the correlation is .68 as a mean over the heads.

Memory: at most the budget for each key head, and in generation up to `window - 1` tokens more. Each token of
a key head has a score of 4 bytes. The number of tokens depends on the text, so `nbytes` of the policy is an
upper bound. `nbytes` of the cache is exact. Use it for long prompts and long answers, if the question is not
known yet.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from scrubjay.memory.context.identity import architecture, is_similar
from scrubjay.memory.context.policies.base import CacheShape, LayerMemory, Step
from scrubjay.memory.context.policies.dense import Scoring
from scrubjay.memory.context.policies.scored.base import Heads, ScoredPolicy, find_prompts
from scrubjay.memory.context.policies.scored.score_store import StoredScoreMemory

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRAINING = "python -P -m scrubjay.memory.context.training.kvzap"
"""Command that fits maps to a model."""
_SCORE_BYTES = 4


@dataclass(frozen=True, eq=False)
class KVzapWeights:
    """Linear maps from the hidden states of the layers of a model to the scores of its key heads."""

    maps: Mapping[int, Float[Tensor, "key_heads more_than_dim"]]
    """Map of each layer, by its index. The last column is the bias."""
    architecture: str
    """Type and sizes of the model."""
    sample: tuple[float, ...]
    """Some weights of the model, to recognize it; empty for all models of these sizes."""

    def save(self, path: str | PathLike[str]) -> None:
        """Write the maps to a safetensors file."""
        tensors = {str(layer): table.contiguous() for layer, table in self.maps.items()}
        metadata = {"architecture": self.architecture, "sample": self.sample}
        save_file(tensors, path, metadata={"kvzap": json.dumps(metadata)})

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            ValueError: If the file does not exist or has another content.
        """
        if not Path(path).is_file():
            raise ValueError(f"weights={str(path)!r}: no such file; `{TRAINING}` writes one")
        try:
            with safe_open(path, framework="pt") as file:
                metadata = json.loads((file.metadata() or {})["kvzap"])
                maps = {int(name): file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
            sample = tuple(map(float, metadata["sample"]))
            if not all(table.ndim == 2 and bool(table.isfinite().all()) for table in maps.values()):
                raise ValueError("a map is not a matrix of finite numbers")
            return cls(dict(sorted(maps.items())), str(metadata["architecture"]), sample)
        except (LookupError, RecursionError, SafetensorError, TypeError, ValueError) as error:
            raise ValueError(
                f"weights={str(path)!r} is damaged or has no KVzap weights: {error}; `{TRAINING}` writes them"
            ) from error

    def register(self) -> str:
        """Keep the maps for policies of this process, and return their digest, which names them."""
        content = hashlib.sha256(repr((self.architecture, self.sample)).encode())
        for layer, table in self.maps.items():
            content.update(f"{layer} {tuple(table.shape)} {table.dtype}".encode())
            content.update(table.contiguous().cpu().view(torch.uint8).numpy().tobytes())
        digest = f"sha256:{content.hexdigest()[:32]}"
        _REGISTERED[digest] = self
        return digest


_REGISTERED: dict[str, KVzapWeights] = {}


@functools.lru_cache(maxsize=1024)
def _load_map(weights: KVzapWeights, layer: int, device: torch.device) -> Tensor:
    return weights.maps[layer].to(device, torch.float32)


@dataclass(frozen=True)
class KVzapPolicy(ScoredPolicy):
    """Keep the tokens whose predicted scores exceed a threshold."""

    window: int = 128
    """Number of last tokens that are always kept."""
    threshold: float = -4.0
    """Smallest score of a token that is kept; minus infinity keeps all tokens within the budget."""
    weights: str | None = None
    """File of the linear maps. Default: the maps of the model in this package. A `PolicyCache` replaces the
    name of the file by the digest of its content."""

    heads: Heads = "adaptive"
    """Split of a layer's budget among its key heads: equal, or adaptive to their scores."""
    safeguard: float = 0.0
    """Share of its equal budget that every head keeps at least, if the budget is exceeded."""

    reads_hidden: ClassVar[bool] = True
    query_aware: ClassVar[bool] = False
    exact_bytes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if math.isnan(self.threshold) or self.threshold == math.inf:
            raise ValueError(f"threshold={self.threshold}: must be a number or minus infinity")

    def score(
        self,
        keys: Tensor,
        values: Tensor,
        queries: Tensor,
        *,
        module: nn.Module,
        hidden: Float[Tensor, "batch tokens dim"],
        **_: object,
    ) -> Float[Tensor, "batch key_heads tokens"]:
        """Return the predicted score of each token for each key head."""
        if self.weights not in _REGISTERED:
            raise ValueError(f"weights={self.weights!r}: build a PolicyCache, which reads the file")
        table = _load_map(_REGISTERED[self.weights], int(getattr(module, "layer_idx", -1)), hidden.device)
        return functional.linear(hidden.float(), table[:, :-1], table[:, -1]).mT

    def build(self) -> LayerMemory:
        """Return an empty memory for one layer."""
        return KVzapMemory(self)

    def nbytes(self, tokens: int, shape: CacheShape, at_once: bool = True) -> int:
        """Return an upper bound of the bytes of keys, values, scores and lengths of heads."""
        columns = min(tokens, self.num_tokens + (0 if at_once else self.window - 1))
        scores = columns * shape.layers * shape.batch * shape.key_heads * _SCORE_BYTES
        return super().nbytes(tokens, shape, at_once) + scores


class KVzapMemory(StoredScoreMemory):
    """Memory of one layer that scores each token once, when it is read."""

    policy: KVzapPolicy

    def compress(self, query: Tensor, keys: Tensor, values: Tensor, step: Step, scoring: Scoring) -> None:
        """Append the new tokens with their scores. Evict tokens below the threshold or beyond the budget."""
        with torch.no_grad():
            tokens = self.append(keys, values, self.call_score(keys, values, query, step, scoring), step)
        policy, prompts = self.policy, find_prompts(step)
        scores, valid = tokens.pad(self.state["scores"]), tokens.valid
        column = torch.arange(tokens.longest, device=valid.device)
        is_safe = (column < policy.num_sinks) | (column >= tokens.lengths[..., None] - policy.window)
        stays = (is_safe | (scores >= policy.threshold))[valid]
        scores = scores.masked_fill(is_safe, float("inf"))[valid]
        if not bool(stays.all()):
            self.keep(stays)
            tokens, scores = self.tokens, scores[stays]
            assert tokens is not None
        is_deferred = step.length > 1 and policy.allocates
        if is_deferred or any(self.find_full(tokens.totals, prompts, tokens.lengths.shape[1])):
            self.evict(scores, prompts, 1.0 if is_deferred else None)


def resolve_weights(policy: KVzapPolicy, model: PreTrainedModel, heads: Mapping[int, int]) -> KVzapPolicy:
    """Return the policy with the digest of its weights, which are then registered.

    `heads` has the number of key heads in the cache by the index of each layer with full attention. Some
    models repeat the heads of their config.

    Raises:
        ValueError: If there are no weights of the model, or if they are those of another model.
    """
    name, is_own = architecture(model), policy.weights is not None
    weights = _REGISTERED.get(policy.weights or "")
    if weights is None:
        path = Path(policy.weights or Path(__file__).with_name(f"kvzap-{name}.safetensors"))
        weights = KVzapWeights.load(path) if is_own or path.exists() else None
    if weights is None or not (is_own or is_similar(model, weights.sample)):
        raise ValueError(
            f"KVzapPolicy needs trained weights, and none are stored for this {type(model).__name__}: fit "
            f"them with `{TRAINING} FOLDER --out FILE`, and use KVzapPolicy(weights='FILE')"
        )
    config = model.config.get_text_config(decoder=True)
    width = getattr(config, "hidden_size", None)
    for layer, count in heads.items():
        if layer not in weights.maps:
            raise ValueError(f"weights={policy.weights!r}: no map of layer {layer}, but of {[*weights.maps]}")
        own_heads, own_width = weights.maps[layer].shape
        if own_heads != count:
            raise ValueError(
                f"weights={policy.weights!r}: saved with key_heads={own_heads}, but the model has {count}"
            )
        if isinstance(width, int) and own_width != width + 1:
            raise ValueError(
                f"weights={policy.weights!r}: for hidden_size={own_width - 1}, but the model has {width}"
            )
    if weights.architecture != name or (weights.sample and not is_similar(model, weights.sample)):
        raise ValueError(
            f"weights={policy.weights!r} were fitted to another model, {weights.architecture}: fit them to "
            f"this {name} with `{TRAINING} FOLDER --out FILE`"
        )
    return replace(policy, weights=weights.register())
