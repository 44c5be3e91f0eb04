"""Run a function in a forked child: limits on CPU, memory, files and time, and a record of its effects."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CPU_SECONDS = 25.0
"""CPU time after which a try gets Ctrl-C. Honest samples need at most a third of it."""
STOP_SECONDS = 10.0
"""Further CPU time after Ctrl-C, and again after SIGTERM, before the try is killed."""
STALL_SECONDS = 20.0
"""Time without any CPU time after which a try counts as blocked."""
WALL_SECONDS = 240.0
"""Time after which a try gets Ctrl-C even if it still computes, on a busy machine."""
MEMORY_BYTES = 2 << 30
"""Memory that a try may take: the limit of Scrubjay for an untrusted run."""
HARD_MEMORY_BYTES = 5 << 30
"""Limit of the kernel, which protects the machine."""
_GRACE_SECONDS = 3.0
"""Time that a helper process gets to notice that the command has ended."""
FILE_BYTES = 1 << 28
"""Largest file that a try may write."""
MAX_PROCESSES = 24
"""Largest number of processes of a try."""
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of Linux
_TICKS = os.sysconf("SC_CLK_TCK")
_PACKAGES = (os.path.dirname(os.__file__), sys.prefix, sys.base_prefix, sys.executable)
_QUIET = (
    "/dev/null",
    "/dev/tty",
    "/dev/shm",
    "/proc/self",
    "/proc/thread-self",
    "/dev/stdout",
    "/dev/stderr",
)
WRITE_EVENTS = (
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.truncate",
    "os.chmod",
    "os.link",
    "os.symlink",
)
"""Audit events of changes to files, besides `open`."""
_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn", "subprocess.Popen"}


@dataclass
class Outcome:
    """Everything that a try did."""

    status: int = 0
    """Exit status of the child: its code, or the negative number of a signal."""
    result: dict[str, Any] = field(default_factory=dict)
    """`value` of the function, or `error`, `types`, `message` and `frame` of its exception."""
    out: str = ""
    err: str = ""
    events: list[str] = field(default_factory=list)
    """Forbidden actions, such as files that were opened for writing elsewhere."""
    cpu: float = 0.0
    seconds: float = 0.0
    memory: int = 0
    """Peak of the memory of all processes of the try, beyond the memory at its start."""
    processes: int = 1
    """Peak of the number of processes."""
    stops: list[str] = field(default_factory=list)
    """Signals that the try needed to end, and why."""
    orphans: int = 0
    """Processes that outlived the child."""


def adopt_orphans(is_on: bool = True) -> None:
    """Make this process the parent of the processes that its children leave behind (Linux only)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_SUBREAPER, int(is_on), 0, 0, 0)


def run_child(
    function: Callable[[], Any],
    folder: Path,
    prepare: Callable[[], Any] | None = None,
    cpu: float = CPU_SECONDS,
) -> Outcome:
    """Run `function` in a child whose working directory is `folder`/here; return what happened.

    The child may write below `folder`. Its home, its temporary folder and its output are there.

    Args:
        function: Function to run.
        folder: Folder of the try.
        prepare: Function that runs in the child first. After it, the child is limited and its actions are
            recorded. Without it there are no limits.
        cpu: CPU seconds before Ctrl-C.
    """
    for name in ("here", "home", "tmp"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "result").unlink(missing_ok=True)
    others, begin = set(_children(os.getpid())), time.monotonic()
    child = os.fork()
    if child == 0:
        _be_the_child(function, folder, prepare)
    # Less than of this process, as pages of libraries are not copied; 0 if the child has ended already.
    base, outcome = _resident(child) or _resident(os.getpid()), Outcome()
    try:
        _watch(child, outcome, begin, base, cpu)
    finally:
        _end_group(child)
    outcome.seconds = time.monotonic() - begin
    outcome.orphans = _end_orphans(others)
    outcome.out, outcome.err = (_read(folder / name) for name in ("out", "err"))
    outcome.events = list(dict.fromkeys(_read(folder / "events").splitlines()))
    with contextlib.suppress(OSError, ValueError):
        outcome.result = json.loads((folder / "result").read_text("utf-8"))
    return outcome


def _watch(child: int, outcome: Outcome, begin: float, base: int, cpu_limit: float) -> None:
    """Wait for the child; measure it, and stop it by Ctrl-C, SIGTERM and SIGKILL."""
    steps = iter((("SIGINT", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGKILL", signal.SIGKILL)))
    limit, wall, last_cpu, last_change, pause = cpu_limit, WALL_SECONDS, 0.0, begin, 0.004
    while True:
        done, status, usage = os.wait4(child, os.WNOHANG)
        if done:
            outcome.status = os.waitstatus_to_exitcode(status)
            outcome.cpu = max(outcome.cpu, usage.ru_utime + usage.ru_stime)
            outcome.memory = max(outcome.memory, 1024 * usage.ru_maxrss - base)
            return
        now = time.monotonic()
        if pause >= 0.05 or now - begin > 0.3:
            cpu = _measure(child, outcome, base)
            outcome.cpu = max(outcome.cpu, cpu)
            if cpu > last_cpu + 0.02:
                last_cpu, last_change = cpu, now
            reason = (
                f"{cpu_limit:g} s of CPU" if cpu > limit
                else "blocked" if now - last_change > STALL_SECONDS
                else "time" if now - begin > wall
                else "memory" if outcome.memory > HARD_MEMORY_BYTES
                else "processes" if outcome.processes > 4 * MAX_PROCESSES
                else None
            )  # fmt: skip
            if reason:
                name, number = next(steps, ("SIGKILL", signal.SIGKILL))
                if reason in ("memory", "processes"):
                    name, number = "SIGKILL", signal.SIGKILL
                outcome.stops.append(f"{name}: {reason}")
                with contextlib.suppress(ProcessLookupError):
                    (os.killpg if number == signal.SIGKILL else os.kill)(child, number)
                limit, wall, last_change = cpu + STOP_SECONDS, now - begin + 60, now
        time.sleep(pause)
        pause = min(pause * 1.3, 0.05)


def _measure(child: int, outcome: Outcome, base: int) -> float:
    """Record memory and processes of the child's tree; return its CPU time."""
    cpu, memory, count = 0.0, 0, 0
    pids = [child]
    while pids:
        pid = pids.pop()
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            cpu += sum(map(int, fields[11:15])) / _TICKS
            memory += max(0, _resident(pid) - base) if pid == child else _private(pid)
            pids += _children(pid)
            count += 1
    outcome.memory, outcome.processes = max(outcome.memory, memory), max(outcome.processes, count)
    return cpu


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _private(pid: int) -> int:
    """Return the memory that a process shares with no other one."""
    with contextlib.suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Private_")) * 1024
    return 0


def _end_group(child: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child, signal.SIGKILL)


def _end_orphans(others: set[int]) -> int:
    """Kill the processes that this process adopted. Return the number of those that did not end before."""
    deadline, running = time.monotonic() + _GRACE_SECONDS, set[int]()
    while running := {pid for pid in _children(os.getpid()) if pid not in others and not _is_over(pid)}:
        if time.monotonic() > deadline:
            break
        time.sleep(0.05)
    for pid in running:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return len(running)


def _is_over(pid: int) -> bool:
    with contextlib.suppress(ChildProcessError):
        return os.waitpid(pid, os.WNOHANG)[0] != 0
    return True


def _children(pid: int) -> list[int]:
    """Return the children of a process, without those that end meanwhile."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            pids += map(int, Path(f"/proc/{pid}/task/{task}/children").read_text().split())
    return pids


def _read(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return stream.read(2_000_000).decode("utf-8", "surrogateescape")
    except OSError:
        return ""


def _be_the_child(function: Callable[[], Any], folder: Path, prepare: Callable[[], Any] | None) -> None:
    """Run the function and end this process."""
    code = 0
    gc.freeze()  # a collection would copy the whole heap of the parent
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.environ.update(
            HOME=str(folder / "home"), TMPDIR=str(folder / "tmp"), TORCHINDUCTOR_CACHE_DIR=str(folder / "tmp")
        )
        os.environ.update(
            {f"XDG_{name}_HOME": str(folder / "home" / name) for name in ("CACHE", "STATE", "CONFIG")}
        )
        import tempfile

        tempfile.tempdir = str(folder / "tmp")
        os.chdir(folder / "here")
        files = [
            os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            for name in ("out", "err", "events")
        ]
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
        os.dup2(files[0], 1)
        os.dup2(files[1], 2)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        if prepare is not None:
            prepare()
            _limit()
            sys.addaudithook(_Auditor(folder, files[2]))
        result = _call(function)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        result["modules"] = _modules_below(folder)
        (folder / "result").write_text(json.dumps(result), "utf-8")
    except BaseException:  # noqa: BLE001  (no error may return into the parent)
        code = 99
        with contextlib.suppress(BaseException):
            os.write(2, f"the fuzzer failed:\n{traceback.format_exc()}".encode("utf-8", "replace"))
    finally:
        os._exit(code)


def _limit() -> None:
    sys.dont_write_bytecode = True
    hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
    resource.setrlimit(resource.RLIMIT_DATA, (_data_size() + HARD_MEMORY_BYTES, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write then raises OSError, as with a full disk
    seconds = int(time.process_time() + CPU_SECONDS + 4 * STOP_SECONDS)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _data_size() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData"):
            return int(line.split()[1]) * 1024
    return 0


def _call(function: Callable[[], Any]) -> dict[str, Any]:
    try:
        return {"value": function()}
    except BaseException as error:  # noqa: BLE001  (each error is judged)
        frames = traceback.extract_tb(error.__traceback__)
        ours = [frame for frame in frames if "/fuzz/" not in frame.filename] or frames
        last = next((frame for frame in reversed(ours) if "scrubjay" in frame.filename), ours[-1])
        with contextlib.suppress(BaseException):
            Path("../traceback").write_text(
                "".join(traceback.format_exception(error))[-20_000:], errors="replace"
            )
        return {
            "error": type(error).__name__,
            "types": [kind.__name__ for kind in type(error).__mro__],
            "message": str(error).encode("utf-8", "backslashreplace").decode()[:4000],
            "frame": f"{Path(last.filename).name}:{last.name}",
        }


def _modules_below(folder: Path) -> list[str]:
    files = [(name, getattr(module, "__file__", None)) for name, module in list(sys.modules.items())]
    return [name for name, file in files if isinstance(file, str) and file.startswith(str(folder))]


class _Auditor:
    """Audit hook that writes a line for each forbidden action."""

    def __init__(self, folder: Path, file: int) -> None:
        self.folder, self.file, self.is_busy = os.path.realpath(folder), file, False

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.is_busy:
            return
        self.is_busy = True
        try:
            if line := self._judge(event, arguments):
                os.write(
                    self.file, (line[:300].replace("\n", " ") + "\n").encode("utf-8", "backslashreplace")
                )
        finally:
            self.is_busy = False

    def _judge(self, event: str, arguments: tuple[Any, ...]) -> str | None:
        if event == "open":
            path, mode, flags = arguments
            writes = (
                flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC) if isinstance(flags, int) else 0
            )
            return self._judge_path(path, f"open {mode}") if writes else None
        if event in WRITE_EVENTS:
            return self._judge_path(
                arguments[1] if event in ("os.link", "os.symlink") else arguments[0], event
            )
        if event == "exec":
            file = getattr(arguments[0], "co_filename", "")
            is_here = os.path.isabs(file) and os.path.realpath(file).startswith(self.folder)
            return f"code of {file}" if is_here else None
        if event == "pickle.find_class":
            return (
                None
                if arguments[0].startswith(("torch", "numpy", "_codecs"))
                else f"unpickle {arguments[:2]}"
            )
        if event == "socket.connect":
            address = arguments[1]
            is_local = not isinstance(address, tuple) or str(address[0]) in ("127.0.0.1", "::1", "localhost")
            return None if is_local else f"connect {address}"
        if event == "ctypes.dlopen":
            # The loader looks for a name without a slash in folders of the system, not in the working folder.
            file = os.fsdecode(arguments[0] or "")
            name = os.path.realpath(file)
            return f"library {name}" if os.sep in file and name.startswith(self.folder) else None
        if event in _RUNS:
            is_python = event == "subprocess.Popen" and str(arguments[0]).startswith(_PACKAGES)
            words = list(arguments[1])[:2] if event == "subprocess.Popen" else []
            is_query = words == ["git", "rev-parse"] or words[:1] == ["fc-list"]  # the version, the fonts
            return None if is_python or is_query else f"{event} {arguments[:2]}"
        return None

    def _judge_path(self, path: Any, what: str) -> str | None:
        if isinstance(path, int):
            return None
        name = os.path.realpath(os.fsdecode(path))
        if name.startswith((self.folder + os.sep, *_QUIET)) and not name.startswith(
            f"{self.folder}/here/victim"
        ):
            return None
        return f"{what} {name}"
