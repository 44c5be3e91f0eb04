"""Records of the runs that this user started, so that a run's own environment needs no `--trust`.

A record is a small file in the user's state folder. It holds the run's real path, the SHA-256 of its
config.json and the files of the module that the environment's name refers to. The environment is created
without `--trust` only where all three are the same as in training.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from scrubjay.experiments.files import Fields, read_object, read_untrusted, write_atomically
from scrubjay.experiments.tasks.environments import UntrustedName
from scrubjay.experiments.user_modules import ModuleFiles, locate_module

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ownership:
    """Facts about a run that must not change between training and later commands."""

    run: str
    """Real path of the run directory."""
    configs: tuple[str, ...]
    """SHA-256 of config.json. There are two values while Scrubjay replaces the file."""
    module: ModuleFiles | None
    """Files of the environment's module; None if the name has no module."""

    @classmethod
    def of(cls, run_dir: Path, text: str, name: str) -> Self:
        """Return the facts of a run with the config.json `text` and the environment `name`.

        Raises ModuleNotFoundError if the module has no file.
        """
        module, colon, _ = name.partition(":")
        return cls(os.path.realpath(run_dir), (_digest(text),), locate_module(module) if colon else None)

    def write(self) -> None:
        """Write the record, readable only by this user. Raises OSError if this fails."""
        file = _record_file(self.run)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fields = {
            "run": self.run,
            "configs": self.configs,
            "paths": () if self.module is None else self.module.paths,
            "targets": () if self.module is None else self.module.targets,
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
        paths, targets = _texts(fields, "paths"), _texts(fields, "targets")
        module = ModuleFiles(paths, targets) if paths else None
        return cls(str(fields["run"]), _texts(fields, "configs"), module)


def record(run_dir: Path, text: str, config: Any) -> None:
    """Record that this user starts the run `run_dir` with the config.json `text`.

    Only an environment that otherwise needs `--trust` is recorded. If the record cannot be written, a
    warning names the reason.
    """
    if config.policy_type is None or isinstance(config.env.id, UntrustedName) or config.env.is_safe:
        return
    try:
        ownership = Ownership.of(run_dir, text, config.env.id)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        _warn(run_dir, error)
    else:
        _write(run_dir, ownership)


def trust_own(run_dir: Path, text: str, config: Any) -> Any:
    """Return `config` with a trusted environment if this user started the run here and nothing has changed.

    Otherwise the name of the environment stays untrusted and holds the reason.
    """
    if config.policy_type is None or not isinstance(config.env.id, UntrustedName):
        return config
    reason = _find_change(run_dir, text, config.env.id)
    name = str(config.env.id) if reason is None else UntrustedName(config.env.id, reason)
    return replace(config, env=replace(config.env, id=name))


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


def _find_change(run_dir: Path, text: str, name: str) -> str | None:
    """Return what differs from the record of a run; None if all is the same."""
    module = None
    try:
        old = Ownership.read(run_dir)
        if old is None:
            return "this user did not train the run, or it was moved or copied"
        if _digest(text) not in old.configs:
            return "its config.json has changed since training"
        module = old.module
        here = Ownership.of(run_dir, text, name)
    except ModuleNotFoundError as error:
        return str(error) if module is None else f"{error}; training found it in {module.folder}"
    except (OSError, RuntimeError, ValueError) as error:
        return f"the record of the run cannot be read: {error}"
    if here.module != module:
        file, old_file = (files.targets[-1] if files else "no module" for files in (here.module, module))
        return f"the module is {file} here and was {old_file} in training"
    return None if here.run == old.run else "it was moved or copied"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _record_file(run: str) -> Path:
    from platformdirs import user_state_path

    return user_state_path("scrubjay", appauthor=False) / "runs" / f"{_digest(run)}.json"


def _texts(fields: Fields, name: str) -> tuple[str, ...]:
    values = fields[name]
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{fields.source}: {name}={values!r:.40}: expected a list of texts")
    return tuple(values)
