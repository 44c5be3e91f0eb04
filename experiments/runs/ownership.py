"""Records of the runs that this user started, so that a run's own environment needs no `--trust`.

A record is a small file in the user's state folder. It holds the run's real path, the SHA-256 of its
config.json and the files of the modules that the names of the environment, its wrappers and the policy's
encoder refer to. These run without `--trust` only where all three are the same as in training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path
from typing import Any, Self

from scrubjay.agents.rl.encoders.choice import UntrustedName
from scrubjay.experiments.files import Fields, read_object, read_untrusted, write_atomically
from scrubjay.experiments.user_modules import ModuleFiles, locate_module

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ownership:
    """Facts about a run that must not change between training and later commands."""

    run: str
    """Real path of the run directory."""
    configs: tuple[str, ...]
    """SHA-256 of config.json. There are two values while Scrubjay replaces the file."""
    modules: tuple[ModuleFiles, ...]
    """Files of the modules that the config names, in the order of its names."""

    @classmethod
    def of(cls, run_dir: Path, text: str, names: Sequence[str]) -> Self:
        """Return the facts of a run with the config.json `text`, which has these names of code.

        Raises ModuleNotFoundError if a module has no file.
        """
        modules = tuple(map(locate_module, _modules_of(names)))
        return cls(os.path.realpath(run_dir), (_digest(text),), modules)

    def write(self) -> None:
        """Write the record, readable only by this user. Raises OSError if this fails."""
        file = _record_file(self.run)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fields = {
            "run": self.run,
            "configs": self.configs,
            "modules": [{"paths": module.paths, "targets": module.targets} for module in self.modules],
        }
        write_atomically(file, json.dumps(fields, indent=2) + "\n", mode=0o600)

    @classmethod
    def read(cls, run_dir: Path) -> Self | None:
        """Read the record of a run; None if there is none. Raises ValueError if the record is damaged."""
        file = _record_file(os.path.realpath(run_dir))
        try:
            fields = read_object(file)
        except FileNotFoundError:
            return None
        # Records of versions without wrappers have the files of one module, or of none.
        entries = fields.get("modules", [fields] if fields.get("paths") else [])
        if not isinstance(entries, list):
            raise ValueError(f"{fields.source}: modules={entries!r:.40}: expected a list")  # noqa: TRY004
        modules = tuple(_read_module(entry, fields.source) for entry in entries)
        return cls(str(fields["run"]), _texts(fields, "configs"), modules)


def record(run_dir: Path, text: str, config: Any) -> None:
    """Record that this user starts the run `run_dir` with the config.json `text`.

    Only an environment that otherwise needs `--trust` is recorded. If the record cannot be written, a
    warning names the reason.
    """
    if config.policy_type is None or _is_untrusted(config) or config.is_safe:
        return
    try:
        ownership = Ownership.of(run_dir, text, config.names)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        _warn(run_dir, error)
    else:
        _write(run_dir, ownership)


def trust_own(run_dir: Path, text: str, config: Any) -> Any:
    """Return `config` with trusted names if this user started the run here and nothing has changed.

    Otherwise the untrusted names of the config stay so and hold the reason.
    """
    if config.policy_type is None or not _is_untrusted(config):
        return config
    return config.with_trust(_find_change(run_dir, text, config.names))


def replace_config(run_dir: Path, file: Path, text: str) -> None:
    """Write the new `text` of a run's config.json. The run's record stays valid if it was valid before.

    If the record cannot be written, a warning names the reason, as in `record`.
    """
    old_digest, new_digest = _digest(read_untrusted(file)), _digest(text)
    try:
        old = Ownership.read(run_dir)
    except (OSError, ValueError):
        old = None
    if old is None or old_digest not in old.configs:
        write_atomically(file, text)
        return
    both = (old_digest, new_digest)
    is_writable = _write(run_dir, replace(old, configs=both))  # first, for a kill before the next line
    write_atomically(file, text)
    if is_writable:
        _write(run_dir, replace(old, configs=(new_digest,)))


def _write(run_dir: Path, ownership: Ownership) -> bool:
    """Write a record; log a warning and return False if this fails."""
    try:
        ownership.write()
    except (OSError, RuntimeError) as error:
        _warn(run_dir, error)
        return False
    return True


def _warn(run_dir: Path, error: Exception) -> None:
    _log.warning("%s: later commands need --trust, since no record could be written: %s", run_dir, error)


def _is_untrusted(config: Any) -> bool:
    return any(isinstance(name, UntrustedName) for name in config.names)


def _modules_of(names: Sequence[str]) -> list[str]:
    """Return the modules of names such as `module:callable`."""
    before_arguments = [name.partition("(")[0].partition(":") for name in names]
    return [module for module, colon, _ in before_arguments if colon]


def _find_change(run_dir: Path, text: str, names: Sequence[str]) -> str | None:
    """Return the difference from the record of a run; None if there is none."""
    modules: tuple[ModuleFiles, ...] = ()
    try:
        old = Ownership.read(run_dir)
        if old is None:
            return "this user did not train the run, or it was moved or copied"
        if _digest(text) not in old.configs:
            return "its config.json has changed since training"
        modules = old.modules
        here = Ownership.of(run_dir, text, names)
    except ModuleNotFoundError as error:
        folders = " or ".join(dict.fromkeys(module.folder for module in modules))
        return f"{error}; training found it in {folders}" if folders else str(error)
    except (OSError, RuntimeError, ValueError) as error:
        return f"the record of the run cannot be read: {error}"
    for pair in zip_longest(here.modules, modules):
        if pair[0] != pair[1]:
            file, old_file = (files.targets[-1] if files else "no module" for files in pair)
            return f"the module is {file} here and was {old_file} in training"
    return None if here.run == old.run else "it was moved or copied"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _record_file(run: str) -> Path:
    from platformdirs import user_state_path

    return user_state_path("scrubjay", appauthor=False) / "runs" / f"{_digest(run)}.json"


def _read_module(entry: Any, source: object) -> ModuleFiles:
    if not isinstance(entry, dict):
        raise ValueError(f"{source}: modules has the entry {entry!r:.40}: expected an object")  # noqa: TRY004
    fields = Fields(entry, source)
    return ModuleFiles(_texts(fields, "paths"), _texts(fields, "targets"))


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    values = fields[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{fields.source}: {name}={values!r:.40}: expected a list of texts")
    return tuple(values)
