"""Pytest plugin that checks shape annotations: `PYTHONPATH=tests pytest -p shapes tests/memory/parts`.

jaxtyping's import hook adds beartype to every function of the packages below.
"""

from pathlib import Path
from typing import Any, Self

from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from jaxtyping import install_import_hook

PACKAGES = ("scrubjay.memory", "scrubjay.agents.rl")
KERNELS = Path(__file__).parent.parent / "kernels"
# Torch reads the signatures of ops and Triton the sources of kernels, so neither may be wrapped.
# beartype does not support generic NamedTuples, such as `Nearest[Tensor]`.
REGISTERING = ("torch.library", "custom_op", "triton", "Nearest[")
# Tests that compile functions. Graphs of torch cannot contain a checker.
COMPILING = ("compile", "export", "BranchesOnValues", "registered")
# Tests that pass wrong inputs and read the error of our own code.
WRONG = ("named", "refused", "is_not_flat", "without_a_width")
# Tests whose stand-ins implement only the methods they need.
INCOMPLETE = ("test_every_agent_keeps_its_own_limit",)


# Methods are decorated before their class exists.
_overrides: Any = BeartypeHintOverrides
check = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_overrides({Self: Any})))


def checked_modules() -> list[str]:
    """Return the packages and modules whose annotations are checked."""
    definitions = [
        path.relative_to(KERNELS.parent).with_suffix("")
        for path in sorted(KERNELS.rglob("*.py"))
        if path.name != "__init__.py" and not any(word in path.read_text() for word in REGISTERING)
    ]
    return [*PACKAGES, *(f"scrubjay.{'.'.join(path.parts)}" for path in definitions)]


def pytest_load_initial_conftests():
    install_import_hook(checked_modules(), "shapes.check")


def pytest_collection_modifyitems(config, items):
    from scrubjay.memory.contract import check

    # Law 8 compiles, so it is skipped.
    check.check_compiles = lambda trial, backend: None
    left_out = [
        item for item in items if any(word in item.name for word in (*COMPILING, *WRONG, *INCOMPLETE))
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
