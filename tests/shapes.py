"""Checks of shape annotations: calls inside some tests must fit the annotations of the functions they reach.

jaxtyping's import hook wraps every function of the packages below. Beartype checks a call only inside the
tests that `is_checked` selects. Elsewhere a wrapped function is called as it is.
"""

import re
from pathlib import Path
from typing import Any, Self

import jaxtyping

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
# Widths that only repeat the laws at another size.
REPEATED = ("dim22",)
CHECKED = re.compile(
    r"tests/(memory/test_|memory/(miras|parts|scan|sparse|titans)/|kernels/\w+/test_op\.py|agents/rl/)"
)
"""Files with tests whose calls are checked."""


CALLS = 16
"""Calls of a function that are checked in a test. Later ones, of loops over steps, are like the first."""

_test = 0


def check(function):
    """Let beartype check the first calls of a function in a test. It writes its checker at the first."""
    checked, test, calls = None, 0, 0

    def call(*arguments, **options):
        nonlocal checked, test, calls
        test, calls = _test, calls + 1 if test == _test else 1
        if calls > CALLS:
            return None
        if checked is None:
            from beartype import BeartypeConf, BeartypeHintOverrides, beartype

            # Methods are decorated before their class exists.
            overrides: Any = BeartypeHintOverrides
            conf = BeartypeConf(is_pep484_tower=True, hint_overrides=overrides({Self: Any}))
            checked = beartype(conf=conf)(function)
        return checked(*arguments, **options)

    return call


def checked_modules() -> list[str]:
    """Return the packages and modules whose functions are wrapped."""
    definitions = [
        path.relative_to(KERNELS.parent).with_suffix("")
        for path in sorted(KERNELS.rglob("*.py"))
        if path.name != "__init__.py" and not any(word in path.read_text() for word in REGISTERING)
    ]
    return [*PACKAGES, *(f"scrubjay.{'.'.join(path.parts)}" for path in definitions)]


def install() -> None:
    """Wrap the functions of all modules that are imported from now on."""
    jaxtyping.install_import_hook(checked_modules(), f"{__name__}.check")
    switch(False)


def switch(on: bool) -> None:
    """Turn the checks on or off for a test."""
    global _test
    _test += 1
    jaxtyping.config.update("jaxtyping_disable", not on)


def is_checked(nodeid: str) -> bool:
    """Check that the calls inside a test must fit the annotations."""
    path, _, name = nodeid.partition("::")
    left_out = (*COMPILING, *WRONG, *INCOMPLETE, *REPEATED)
    return CHECKED.match(path) is not None and not any(word in name for word in left_out)
