"""Fixtures: a tiny random transformers model in a folder, and a text of its words."""

import json
import re
from pathlib import Path

import pytest
import torch

from scrubjay.experiments.commands import main

WORDS = [f"w{number}" for number in range(90)]


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, require):
    require("transformers")
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("model")
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel(
            {word: i for i, word in enumerate(["<unk>", "</s>", *WORDS])}, unk_token="<unk>"
        )
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=92,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.4,
        bos_token_id=None,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def model(model_folder):
    from scrubjay.memory import context

    return context.load_model(model_folder)


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A file of 300 words in sentences of six."""
    generator = torch.Generator().manual_seed(1)
    words = [WORDS[i] for i in torch.randint(90, (300,), generator=generator).tolist()]
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(re.sub(r"((?:\w+ ){6})", r"\1. ", " ".join(words)))
    return path


@pytest.fixture
def run(text, model_folder, tmp_path, capsys):
    """Run a measurement, and return its directory."""

    def call(what, *words, out="out"):
        common = ["--model", str(model_folder), "--out", str(tmp_path / out), "--quiet"]
        assert main.main(["longcontext", what, str(text), *common, *map(str, words)]) == 0
        assert all(Path(line).exists() for line in capsys.readouterr().out.splitlines())
        return tmp_path / out

    return call


@pytest.fixture(scope="session")
def rows():
    """Return the rows of a file of JSON lines."""
    return lambda path: [json.loads(line) for line in path.read_text().splitlines()]
