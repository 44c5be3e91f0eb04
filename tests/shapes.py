"""Checks of shape annotations: calls inside some tests must fit the annotations of the functions they reach.

jaxtyping's import hook wraps every function of the packages below. Beartype checks a call only inside the
tests that `is_checked` selects. Elsewhere a wrapped function is called as it is.
"""

import dataclasses
import functools
import inspect
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
FILES = re.compile(
    r"tests/(memory/test_|memory/(miras|parts|scan|sparse|titans)/|kernels/\w+/test_(op|vectorized)\.py|agents/rl/)"
)
"""Files with tests whose calls are checked."""


AS_LISTS = ("_blocks", "_layers")
"""Properties that return a ModuleList and are typed as lists of their layers, which it does not say."""
CALLS = 16
"""Calls of a function that are checked in a test. Later ones, of loops over steps, are like the first."""

_is_on = False
_test = 0


def check(function: Any) -> Any:
    """Check the first calls of a function in every test that is checked.

    The checker is built at the first of them. Where checks are off, torch can compile the call.
    """
    if inspect.isclass(function):
        if dataclasses.is_dataclass(function):
            function.__init__ = check(function.__init__)
        return function
    if function.__name__ in AS_LISTS:
        return function
    checker, test, calls = None, 0, 0

    def check_call(*arguments, **options):
        nonlocal checker, test, calls
        test, calls = _test, calls + 1 if test == _test else 1
        if checker is None:
            checker = _original_jaxtyped(function, typechecker=_make_typechecker())
        return (checker if calls <= CALLS else function)(*arguments, **options)

    @functools.wraps(function)
    def call(*arguments, **options):
        return check_call(*arguments, **options) if _is_on else function(*arguments, **options)

    return call


@functools.cache
def _make_typechecker() -> Any:
    from beartype import BeartypeConf, BeartypeHintOverrides, beartype

    # Methods are decorated before their class exists.
    overrides: Any = BeartypeHintOverrides
    return beartype(conf=BeartypeConf(is_pep484_tower=True, hint_overrides=overrides({Self: Any})))


def checked_modules() -> list[str]:
    """Return the packages and modules whose functions are wrapped."""
    definitions = [
        path.relative_to(KERNELS.parent).with_suffix("")
        for path in sorted(KERNELS.rglob("*.py"))
        if path.name != "__init__.py" and not any(word in path.read_text() for word in REGISTERING)
    ]
    return [*PACKAGES, *(f"scrubjay.{'.'.join(path.parts)}" for path in definitions)]


_original_jaxtyped: Any = jaxtyping.jaxtyped


def install() -> None:
    """Wrap the functions of all modules that are imported from now on."""
    # jaxtyping's own wrapper cannot be compiled even if it is off.
    setattr(jaxtyping, "jaxtyped", lambda *, typechecker: check)  # noqa: B010
    jaxtyping.install_import_hook(checked_modules(), f"{__name__}.check")


def switch(on: bool) -> None:
    """Turn the checks on or off for a test."""
    global _is_on, _test
    _is_on = on
    _test += 1


def is_checked(nodeid: str) -> bool:
    """Check that the calls inside a test must fit the annotations."""
    path, _, name = nodeid.partition("::")
    left_out = (*COMPILING, *WRONG, *INCOMPLETE, *REPEATED)
    return FILES.match(path) is not None and not any(word in name for word in left_out)
