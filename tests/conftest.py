"""The order of the suite, and what several rooms' tests ask."""

import pytest
import torch

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")


def pytest_configure(config):
    """Keep tests of one xdist_group on one worker, whose fixtures they share; hand out all others one by one."""
    if getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadgroup"


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
