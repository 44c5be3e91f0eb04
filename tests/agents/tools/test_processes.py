"""Child processes for foreign data: limits, threads, forks and the end of the parent."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from scrubjay.agents.tools import processes
from scrubjay.agents.tools.processes import MAX_PROCESSES, ChildError, Pool

ITEMS = b"<li>item one" * 16_000
"""Page that keeps trafilatura busy for more than ten seconds, since its time is quadratic."""


@pytest.fixture
def pool():
    pool = Pool()
    yield pool
    pool.close()


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Return a function that puts a module in place of trafilatura, also in child processes."""

    def write(code):
        (tmp_path / "trafilatura.py").write_text(code)
        monkeypatch.syspath_prepend(tmp_path)

    return write


def article(word):
    text = f"The {word} hides thousands of acorns every autumn and remembers where each of them lies. " * 3
    return f"<html><body><article><p>{text}</p><p>{text}</p></article></body></html>".encode()


def extract(pool, content, **options):
    return pool.run(
        "extract_main_text", content, url="http://jay.example/", is_utf8=False, **options
    ).decode()


def ids(pool):
    return {child.id for child in pool.children}


def is_running(number):
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.requires("trafilatura")
def test_pages_share_a_process(pool):
    assert "scrub jay" in extract(pool, article("scrub jay"))
    first = ids(pool)
    assert "nutcracker" in extract(pool, article("nutcracker"))
    assert ids(pool) == first
    assert len(first) == 1


@pytest.mark.slow
@pytest.mark.requires("trafilatura")
@pytest.mark.skipif(not hasattr(signal, "SIGXCPU"), reason="this system does not limit CPU time")
def test_a_page_that_takes_too_much_cpu_time_is_ended(pool, monkeypatch):
    monkeypatch.setattr(processes, "MAX_CPU_SECONDS", 1)
    with pytest.raises(ChildError, match="it took more than 1 s of CPU time") as raises:
        extract(pool, ITEMS)
    assert raises.value.kind == "TimeoutError"
    assert not pool.children
    assert "scrub jay" in extract(pool, article("scrub jay"))


@pytest.mark.requires("trafilatura")
def test_a_page_that_takes_too_long_is_ended_on_every_system(pool):
    extract(pool, article("scrub jay"))
    with pytest.raises(ChildError, match=r"or 0\.2 s in all"):
        extract(pool, ITEMS, seconds=0.2)
    assert not pool.children


@pytest.mark.skipif(sys.platform != "linux", reason="this system does not limit the memory of a process")
def test_a_page_that_takes_too_much_memory_is_ended(pool, package, monkeypatch):
    package("def extract(page, url): return str(len(bytes(2**30)))")
    monkeypatch.setattr(processes, "MAX_MEMORY", 2**29)
    with pytest.raises(ChildError, match="MemoryError"):
        extract(pool, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="this system does not limit the size of files")
def test_a_parser_writes_no_file(pool, package, tmp_path):
    package(f"def extract(page, url): open({str(tmp_path / 'file')!r}, 'wb', 0).write(b'x')")
    with pytest.raises(ChildError, match="OSError"):
        extract(pool, b"")


def test_a_parser_that_crashes_is_replaced(pool, package):
    package("import os\ndef extract(page, url): os._exit(7) if page == b'bad' else print('noise')")
    assert extract(pool, b"good") == ""
    with pytest.raises(ChildError, match="exit status 7"):
        extract(pool, b"bad")
    assert extract(pool, b"good") == ""


def test_the_current_folder_offers_no_modules(pool, tmp_path, monkeypatch):
    (tmp_path / "trafilatura.py").write_text("def extract(page, url): return 'stranger'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    with contextlib.suppress(ModuleNotFoundError):  # the real package may be missing
        assert extract(pool, b"") != "stranger"


def test_a_package_that_is_missing_is_named(pool, package):
    package("import no_such_package")
    with pytest.raises(ModuleNotFoundError) as raises:
        extract(pool, b"")
    assert raises.value.name == "no_such_package"


@pytest.mark.requires("trafilatura")
def test_threads_get_their_own_pages_from_few_processes(pool):
    words = [f"jay{number}" for number in range(24)]
    with ThreadPoolExecutor(12) as threads:
        texts = list(threads.map(lambda word: extract(pool, article(word)), words))
    assert all(word in text for word, text in zip(words, texts, strict=True))
    assert 1 <= len(pool.children) <= MAX_PROCESSES


@pytest.mark.requires("trafilatura")
def test_a_process_that_another_program_ended_is_replaced(pool):
    extract(pool, article("scrub jay"))
    (child,) = pool.children
    os.kill(child.id, signal.SIGTERM)
    child._process.wait()
    assert "nutcracker" in extract(pool, article("nutcracker"))


@pytest.mark.requires("trafilatura")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not copy processes")
def test_a_copy_of_the_process_starts_its_own():
    pool = processes.pool
    assert "scrub jay" in extract(pool, article("scrub jay"))
    before = ids(pool)
    copy = os.fork()
    if not copy:
        try:
            is_right = "nutcracker" in extract(pool, article("nutcracker"))
            is_new = before.isdisjoint(ids(pool))
            pool.close()
            os._exit(0 if is_right and is_new else 1)
        finally:
            os._exit(2)
    _, status = os.waitpid(copy, 0)
    assert status == 0
    assert "scrub jay" in extract(pool, article("scrub jay"))
    assert ids(pool) == before


@pytest.mark.slow
@pytest.mark.requires("trafilatura")
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("end", ["exit", "kill"])
def test_children_end_with_their_parent(end):
    code = f"""
import os, signal
from scrubjay.agents.tools import processes
processes.run("extract_all_text", b"<html><body><p>x</p></body></html>", is_utf8=False)
print(*(child.id for child in processes.pool.children), flush=True)
if {end == "kill"}:
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=False)
    child, deadline = int(done.stdout), time.monotonic() + 60
    while is_running(child) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not is_running(child)


@pytest.mark.requires("trafilatura")
def test_a_child_imports_neither_scrubjay_nor_torch(pool, package):
    package("import sys\ndef extract(page, url): return ' '.join(sys.modules)")
    modules = set(extract(pool, b"").split())
    assert "json" in modules
    assert modules.isdisjoint({"scrubjay", "torch", "numpy", "langchain_core"})
