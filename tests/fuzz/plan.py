"""One try: a sample, a few mutations of its files, and a target. A seed and a number determine all of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from . import archives, database, files, gguf, markup, raw, tensors, tokenizer, tree
from .child import Outcome, run_child
from .laws import Fault, judge, set_up_victim
from .samples import TEXT
from .targets import TARGETS
from .values import ESCAPE

Mutator = Callable[[Path, random.Random], None]

_WAYS: tuple[tuple[str, int, tuple[Mutator, ...]], ...] = (
    ("*", 1, raw.WAYS),
    ("*", 1, files.WAYS),
    ("*.json", 4, tree.WAYS),
    ("*.jsonl", 4, tree.WAYS),
    ("*.yaml", 5, tree.YAML_WAYS),
    ("*.safetensors", 4, tensors.WAYS),
    ("*.pt", 5, archives.WAYS),
    ("*.db", 7, database.WAYS),
    ("*.gguf", 8, gguf.WAYS),
    ("*.html", 6, markup.PAGE_WAYS),
    ("*.http", 6, markup.RESPONSE_WAYS),
    ("*.jinja", 8, markup.TEMPLATE_WAYS),
    ("*tokenizer.json", 9, tokenizer.WAYS),
    ("*config.json", 4, tokenizer.SETTING_WAYS),
)
"""Pattern of file names, weight, and mutators."""
MUTATORS: Mapping[str, Mutator] = {
    f"{way.__module__.rpartition('.')[2]}.{way.__name__}": way for _, _, ways in _WAYS for way in ways
}
"""All mutators by name."""
_MAX_BYTES = 1 << 26
"""Largest file that a mutator reads."""
_MAX_FILES = 5000
_ONLY_KINDS = {"*config.json": ("models",)}
"""Mutators that are for some kinds only."""
_SEALED = ("checkpoints/*/model.safetensors", "checkpoints/*/training.pt")
"""Files whose content a checksum covers. A bank has none: a text with another letter is a valid text."""
_DAMAGE = ("raw.", "tensors.change_numbers")
"""Mutators that no honest program causes, and that a checksum finds."""


@dataclass(frozen=True)
class Step:
    """Mutation of a file."""

    file: str
    """Path in the sample; "." for the sample itself."""
    mutator: str
    seed: int


@dataclass(frozen=True)
class Plan:
    """Everything that determines a try."""

    kind: str
    sample: str
    target: int
    """Index in the table of targets."""
    name: str
    """Name of the sample in the working directory."""
    steps: tuple[Step, ...]
    is_resealed: bool
    """True if the checksums are computed again, as an attacker would."""


def targets_of(kind: str) -> list[tuple[int, str]]:
    """Return the targets of a kind as pairs of index and pattern of samples."""
    return [
        (index, pattern)
        for index, target in enumerate(TARGETS)
        for pattern in target.samples
        if pattern.startswith(f"{kind}/")
    ]


def make_plan(seed: int, kind: str, number: int, samples: Path) -> Plan:
    """Return the plan of a try."""
    draw = random.Random(f"{seed}/{kind}/{number}")
    index, pattern = draw.choice(targets_of(kind))
    sample = draw.choice(sorted(samples.glob(pattern)))
    steps = []
    for _ in range(draw.choice((1, 1, 1, 2, 2, 3))):
        file = draw.choice(_files(sample))
        choices = [
            (way, weight / len(ways))
            for pattern, weight, ways in _WAYS
            if fnmatch(file.name, pattern) and kind in _ONLY_KINDS.get(pattern, (kind,))
            for way in ways
        ]
        way = draw.choices([way for way, _ in choices], [weight for _, weight in choices])[0]
        name = f"{way.__module__.rpartition('.')[2]}.{way.__name__}"
        is_whole = sample.is_dir() and name.startswith("files.") and draw.random() < 0.2
        steps.append(Step("." if is_whole else str(file.relative_to(sample)), name, draw.getrandbits(32)))
    stem, dot, suffix = sample.name.partition(".")
    name = f"{stem}{draw.choice(('', '', '', '', ESCAPE, ' -x', 'é'))}{dot}{suffix}"
    return Plan(kind, str(sample.relative_to(samples)), index, name, tuple(steps), draw.random() < 0.6)


def _files(sample: Path) -> list[Path]:
    """Return the files of a sample."""
    if sample.is_file():
        return [sample]
    return sorted(path for path in sample.rglob("*") if path.is_file() and path.suffix not in (".png", ".md"))


def set_up(plan: Plan, samples: Path, folder: Path) -> Path:
    """Write the mutated sample of a plan below `folder`; return its path from the working directory."""
    here = folder / "here"
    shutil.rmtree(folder, ignore_errors=True)
    here.mkdir(parents=True)
    set_up_victim(here)
    (here / "text.txt").write_text(TEXT * 3)
    (here / "evilmod.py").write_text(files.EVIL)
    if (samples / "models" / "model").exists():
        (here / "honest").symlink_to(samples / "models" / "model")
    source = samples / plan.sample
    path = here / plan.name
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copy(source, path)
        for beside in source.parent.glob(f"{source.name}[.-]*"):
            shutil.copy(beside, path.with_name(plan.name + beside.name[len(source.name) :]))
    return path.relative_to(here)


def mutate(plan: Plan, path: Path) -> None:
    """Apply the steps of a plan. A step that no longer applies changes nothing."""
    for step in plan.steps:
        file = path if step.file == "." else path / step.file
        if _is_safe(file, is_folder_way=step.mutator.startswith("files.")):
            with contextlib.suppress(Exception):  # a mutated file may have no structure
                MUTATORS[step.mutator](file, random.Random(step.seed))
    if plan.is_resealed:
        for manifest in path.glob("checkpoints/*/manifest.json"):
            if _is_safe(manifest):
                with contextlib.suppress(Exception):
                    _seal(manifest)
    set_up_victim(Path())  # a step may have written through a hard link of another step


def _is_safe(file: Path, is_folder_way: bool = False) -> bool:
    """Return True if a change of the file changes nothing outside the sample, and reading it ends.

    An earlier step may have replaced the file or one of its folders by a link or by a device.
    """
    if any(parent.is_symlink() for parent in (file, *file.parents)):
        return False
    status = file.lstat() if file.exists() else None
    if status is None or stat.S_ISDIR(status.st_mode):
        return is_folder_way and status is not None
    return stat.S_ISREG(status.st_mode) and status.st_size < _MAX_BYTES


def _seal(manifest: Path) -> None:
    fields = json.loads(manifest.read_text("utf-8"))
    for name in fields["sha256"]:
        file = manifest.parent / name
        if _is_safe(file):
            fields["sha256"][name] = hashlib.sha256(file.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(fields))


def is_sealed(plan: Plan, samples: Path) -> bool:
    """Return True if a checksum covers all changes of a plan."""
    source = samples / plan.sample
    if plan.is_resealed and source.is_dir():
        return False
    if len(list(source.glob("checkpoints/step_*"))) > 1:  # an older checkpoint is used instead
        return False
    return all(
        step.mutator.startswith(_DAMAGE)
        and any(fnmatch(source.name if step.file == "." else step.file, pattern) for pattern in _SEALED)
        for step in plan.steps
    )


def run_plan(plan: Plan, samples: Path, folder: Path, honest: Any = None) -> tuple[Outcome, list[Fault]]:
    """Run a plan; return its outcome and its faults. `honest` is the result for the sample without steps."""
    target = TARGETS[plan.target]
    path = set_up(plan, samples, folder)
    outcome = run_child(lambda: target.act(path), folder, prepare=lambda: mutate(plan, path))
    is_sealed_now = bool(plan.steps) and is_sealed(plan, samples)
    return outcome, judge(target, outcome, folder / "here", honest, is_sealed_now)


class HonestResults:
    """Results of the targets for their samples as they were made."""

    def __init__(self, samples: Path, folder: Path) -> None:
        self._samples, self._folder = samples, folder
        self._results: dict[tuple[int, str], Any] = {}

    def of(self, plan: Plan) -> Any:
        """Return the result for the sample of a plan. Raises ValueError if the honest sample has a fault."""
        key = plan.target, plan.sample
        if key not in self._results:
            honest = replace(plan, name=Path(plan.sample).name, steps=())
            outcome, faults = run_plan(honest, self._samples, self._folder)
            if faults or "error" in outcome.result:
                name = TARGETS[plan.target].name
                raise ValueError(f"{name} of the honest {plan.sample}: {faults} {outcome.result}")
            self._results[key] = outcome.result.get("value")
        return self._results[key]


def honest_plans(kinds: tuple[str, ...], samples: Path) -> list[Plan]:
    """Return plans without mutations: every target with each of its samples."""
    plans: dict[tuple[int, str], Plan] = {}
    for kind in kinds:
        for index, pattern in targets_of(kind):
            for sample in sorted(samples.glob(pattern)):
                if not sample.name.endswith(("-wal", "-shm")):
                    plans[index, str(sample)] = Plan(
                        kind, str(sample.relative_to(samples)), index, sample.name, (), False
                    )
    return list(plans.values())


def minimize(plan: Plan, fault: Fault, samples: Path, folder: Path, honest: Any) -> Plan:
    """Return the plan with the fewest steps that still has the fault."""
    for step in plan.steps:
        smaller = replace(plan, steps=tuple(one for one in plan.steps if one != step))
        if not smaller.steps:
            break
        _, faults = run_plan(smaller, samples, folder, honest)
        if any(one[:2] == fault[:2] for one in faults):
            plan = smaller
    return plan


def size_of(path: Path) -> int:
    """Return the bytes of a file or folder, with holes, and at least a kilobyte for each file."""
    sizes = [path.lstat().st_size + 1024]
    for folder, _, names in os.walk(path):  # follows no link
        sizes += [os.lstat(os.path.join(folder, name)).st_size + 1024 for name in names]
        if len(sizes) > _MAX_FILES:
            break
    return sum(sizes)
