"""A plugin of pytest that executes shape annotations: `PYTHONPATH=tests pytest -p shapes tests/memory/parts`.

Beartype, by jaxtyping's import hook, then holds every call in the rooms below to what it declares.
"""

from pathlib import Path
from typing import Any, Self

from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from jaxtyping import install_import_hook

ROOMS = ("scrubjay.memory", "scrubjay.agents.rl")
KERNELS = Path(__file__).parent.parent / "kernels"
# Torch reads the signatures of ops, Triton the sources of kernels: neither may be wrapped.
# And beartype knows no generic NamedTuple, such as `Nearest[Tensor]`.
REGISTERING = ("torch.library", "custom_op", "triton", "Nearest[")
# What sees a function as it is written: graphs of torch have no place for a checker.
COMPILING = ("compile", "export", "BranchesOnValues", "registered")
# What hands in what is wrong, to read the answer of the code itself.
WRONG = ("named", "refused", "is_not_flat", "without_a_width")
# A double with no more methods than it needs.
INCOMPLETE = ("test_every_agent_keeps_its_own_limit",)


# The hook decorates methods, which do not know their class.
_overrides: Any = BeartypeHintOverrides
checked = beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=_overrides({Self: Any})))


def hooked() -> list[str]:
    """Return the packages and modules whose annotations are executed."""
    definitions = [
        path.relative_to(KERNELS.parent).with_suffix("")
        for path in sorted(KERNELS.rglob("*.py"))
        if path.name != "__init__.py" and not any(word in path.read_text() for word in REGISTERING)
    ]
    return [*ROOMS, *(f"scrubjay.{'.'.join(path.parts)}" for path in definitions)]


def pytest_load_initial_conftests():
    install_import_hook(hooked(), "shapes.checked")


def pytest_collection_modifyitems(config, items):
    from scrubjay.memory.contract import check

    # Law 8 is left out here, for all who ask for all laws.
    check.compiles = lambda trial, backend: None
    left_out = [
        item for item in items if any(word in item.name for word in (*COMPILING, *WRONG, *INCOMPLETE))
    ]
    items[:] = [item for item in items if item not in left_out]
    config.hook.pytest_deselected(items=left_out)
