"""`scrubjay inspect` on a small random model: statistics, figure, and errors for bad input."""

import json
import math

import matplotlib.image
import pytest
import torch

from scrubjay.experiments.commands.main import main

pytestmark = pytest.mark.requires("transformers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    words = Tokenizer(
        models.WordLevel({"?": 0, "the": 1, "jay": 2, "hid": 3, "a": 4, "worm": 5}, unk_token="?")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", eos_token="?").save_pretrained(path)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        eos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    (path / "text.txt").write_text("the jay hid a worm " * 40)
    return path


def test_numbers_and_picture(folder, tmp_path, capsys):
    picture = tmp_path / "deep" / "maps.png"
    words = [
        "inspect",
        str(folder),
        "--text",
        str(folder / "text.txt"),
        "--layers",
        "0",
        "2",
        "--out",
        str(picture),
    ]
    assert main(words) == 0
    output = capsys.readouterr().out
    assert "sink rate 0.00" in output  # random heads attend evenly: to each of 64 tokens at most 1/n
    assert "in 3 sequences of 64 tokens" in output
    assert "retrieval heads" in output
    assert matplotlib.image.imread(picture).shape[1] > 1000
    numbers = json.loads(picture.with_suffix(".json").read_text())
    assert (numbers["sequences"], numbers["sink_rate"]) == (3, 0)
    assert [layer["layer"] for layer in numbers["layers"]] == [0, 1, 2]
    # The entropy of n keys is at most log n, and random heads attend evenly.
    even = sum(math.log(n) for n in range(1, 65)) / 64
    assert all(0.9 * even < nats <= even for layer in numbers["layers"] for nats in layer["entropy"])


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["--text", "nowhere.txt"], "nowhere.txt"),
        (["--layers", "9"], "layers [9]"),
        (["--tokens", "1"], "tokens=1"),
    ],
)
def test_bad_input_is_named(folder, words, names, capsys):
    words = words if "--text" in words else ["--text", str(folder / "text.txt"), *words]
    assert main(["inspect", str(folder), *words]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("scrubjay: ")
    assert names in error
