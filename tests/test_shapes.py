"""Inside a test whose calls are checked, a wrong argument is reported at the call."""

import pytest
import torch

from scrubjay.kernels.neural.network import pack
from scrubjay.memory.contract.clock import Clock

from . import shapes

pytestmark = pytest.mark.requires("beartype")

STARTS = torch.zeros(2, 3, dtype=torch.bool)
LAST = torch.zeros(2, dtype=torch.long)


@pytest.fixture(autouse=True)
def _checks_are_off_afterwards():
    yield
    shapes.switch(False)


@pytest.mark.parametrize(
    ("call", "fits"),
    [
        (lambda: Clock.from_starts(LAST, STARTS), True),
        (lambda: Clock.from_starts(LAST, STARTS[:1]), False),
        (lambda: Clock.from_starts(LAST.float(), STARTS), False),
        (lambda: pack([torch.zeros(1, 2, 3), torch.zeros(1, 3, 2)]), True),
        (lambda: pack([torch.zeros(1, 2, 3, dtype=torch.long)]), False),
    ],
    ids=["fits", "another batch", "another dtype", "layers of any width", "no network"],
)
def test_the_hook_refuses_what_is_not_declared_and_nothing_else(call, fits):
    shapes.switch(True)
    if fits:
        call()
    else:
        with pytest.raises(TypeError, match="Type-check error"):
            call()


def test_calls_are_checked_in_every_test_anew_and_only_where_checks_are_on():
    def is_refused():
        try:
            pack([torch.zeros(1, 2, 3, dtype=torch.long)])
        except TypeError:
            return True
        return False

    for _ in range(2):
        shapes.switch(True)
        assert is_refused()
    shapes.switch(False)
    assert not is_refused()


def test_files_of_the_suite_are_checked_but_tests_of_errors_and_of_compilation_are_not():
    assert shapes.is_checked("tests/memory/test_conformance.py::test_laws_without_compilation[gru-default]")
    assert shapes.is_checked("tests/agents/rl/test_ppo.py::test_a_policy_learns_to_remember")
    assert not shapes.is_checked("tests/memory/test_conformance.py::test_one_step_compiles_and_exports[gru]")
    assert not shapes.is_checked("tests/memory/test_conformance.py::test_wrong_shapes_are_named[gru]")
    assert not shapes.is_checked("tests/test_house.py::test_memory_imports_no_framework")


def test_ops_and_gpu_kernels_are_not_wrapped():
    modules = shapes.checked_modules()
    assert {"scrubjay.memory", "scrubjay.agents.rl", "scrubjay.kernels.neural.network"} <= set(modules)
    assert not [name for name in modules if name.endswith(".gpu")]
    for package in ("sinks", "summary", "retrieval"):
        assert f"scrubjay.kernels.{package}.op" not in modules
