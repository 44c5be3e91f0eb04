"""Policies in folders, which contain weights, config.json and a model card.

An untrusted folder can be loaded safely: loading runs no code and unpickles nothing. A policy is built only
after its size has been compared with the weights.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import torch
from gymnasium import Space
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scrubjay.agents.rl.model_card import Origin, build_card
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory.serialization import FORMAT, decode, encode, take_format
from scrubjay.memory.sketch import nbytes, sketch_for, state_nbytes

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
_LIBRARY = "scrubjay"
_MAX_CONFIG_BYTES = 2**25
"""Maximum size of a config in bytes; it may contain the bounds of every number of an observation."""
_MAX_STATE_BYTES = 2**32
"""Maximum size in bytes of the memory state of one environment, and of the policy's buffers."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_MAX_LISTED = 3
"""Maximum number of tensors that an error lists."""


class _TensorHeader(NamedTuple):
    """Shape and dtype of a tensor, from the header of a weights file."""

    shape: tuple[int, ...]
    dtype: str


class PretrainedPolicy(nn.Module):
    """Base class of policies that are saved in folders."""

    config_class: ClassVar[type]
    """Class of `config`; its method `build` returns a new policy for given spaces."""
    config: Any
    observation_space: Space
    action_space: Space
    num_agents: int | None = None
    """Number of agents of a team; None for a single agent."""
    action_masks: bool = False
    """True if every action needs a mask outside the observation; see `Spaces.action_masks`."""

    @cached_property
    def spaces(self) -> Spaces:
        """Spaces for which the policy was built."""
        return Spaces(self.observation_space, self.action_space, self.num_agents, self.action_masks)

    def save_pretrained(self, directory: Path | str, origin: Origin | None = None) -> None:
        """Write weights (safetensors), config.json and a model card with the details of `origin` to a folder.

        Raises ValueError if the folder has a config.json that does not belong to a policy. Raises TypeError
        if a space or the memory cannot be serialized.
        """
        directory, policy_class = Path(directory), type(self).__name__
        spaces = self.spaces
        fields = {
            "library": _LIBRARY,
            "format": FORMAT,
            "class": policy_class,
            "policy": encode(self.config),
            "spaces": spaces.to_dict(),
        }
        _check_overwritable(directory)
        directory.mkdir(parents=True, exist_ok=True)
        for name in (WEIGHTS, CONFIG, CARD):  # a file that is a link keeps its content under its other names
            (directory / name).unlink(missing_ok=True)
        weights = {
            name: value.detach().cpu().contiguous().clone() for name, value in self.state_dict().items()
        }
        save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
        text = json.dumps(fields, indent=2, allow_nan=False) + "\n"
        (directory / CONFIG).write_text(text, encoding="utf-8")
        card_text = build_card(policy_class, self.config, spaces, origin if origin is not None else Origin())
        (directory / CARD).write_text(card_text, encoding="utf-8")

    @classmethod
    def from_pretrained(cls, directory: Path | str, trust: bool = False) -> Self:
        """Load a policy from a folder that `save_pretrained` wrote, on the CPU and in evaluation mode.

        No code of the folder is run. The folder may name an encoder of the user as `module:factory`. Its
        module is imported only if `trust` is True.

        Raises ValueError, which names the file, if the folder has no valid policy of this class. Raises
        OSError if a file cannot be read.
        """
        directory = Path(directory)
        fields = _read_config(directory)
        file = directory / WEIGHTS
        if fields["class"] != cls.__name__:
            raise ValueError(
                f"{directory / CONFIG} is the config of a {fields['class']!r:.40}; expected a {cls.__name__}"
            )
        headers = _read_header(file)
        with _prefix_errors(directory / CONFIG):
            spaces = Spaces.from_dict(fields["spaces"])
            config = decode(cls.config_class, fields["policy"], "policy")
            if not trust and hasattr(config, "as_untrusted"):
                config = config.as_untrusted()
            outline = sketch_for(
                lambda: config.build(spaces), [math.prod(part.shape) for part in headers.values()]
            )
            _check_size(outline)
        dtype = _check_weights(headers, outline.state_dict(), file)
        with _prefix_errors(directory / CONFIG), torch.random.fork_rng(devices=[]):
            policy = config.build(spaces).to(dtype)
        weights = load_file(file)
        non_finite = sorted(name for name, value in weights.items() if not bool(torch.isfinite(value).all()))
        if non_finite:
            raise ValueError(f"{file}: NaN or inf in {', '.join(non_finite[:_MAX_LISTED])}")
        with _prefix_errors(file):
            policy.load_state_dict(weights)
        return policy.eval()


def _check_overwritable(directory: Path) -> None:
    file = directory / CONFIG
    if not file.exists():
        return
    try:
        _read_config(directory)
    except ValueError as error:
        raise ValueError(f"{file} is not the config of a policy: choose another folder") from error


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    for path in (file, directory / WEIGHTS):
        if not path.is_file():
            raise ValueError(
                f"{directory} contains no policy: {path.name} is missing; save one with save_pretrained, or "
                "download one with huggingface_hub.snapshot_download"
            )
    if file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(
            f"{file} is longer than {_MAX_CONFIG_BYTES:,} bytes, the maximum for a policy's config"
        )
    try:
        fields = json.loads(file.read_text("utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"{file} is not valid JSON: its lists are nested too deeply") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: it is not UTF-8") from error
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("library") != _LIBRARY:
        raise ValueError(f"{file} is not the config of a {_LIBRARY} policy")
    take_format(fields, file)
    missing = [name for name in ("class", "policy", "spaces") if name not in fields]
    if missing:
        raise ValueError(f"{file} has no {', '.join(missing)}: save the policy again with save_pretrained")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20} is not allowed; numbers must be finite")
    return number


def _read_header(file: Path) -> dict[str, _TensorHeader]:
    """Return the shape and dtype of each tensor in a weights file.

    safetensors raises an error if the size of the file does not match these shapes.
    """
    try:
        with safe_open(file, "pt") as weights_file:
            slices = {name: weights_file.get_slice(name) for name in weights_file.keys()}  # noqa: SIM118  (no mapping)
            return {name: _TensorHeader(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from error


@contextlib.contextmanager
def _prefix_errors(file: Path) -> Iterator[None]:
    """Convert any error that is raised inside the `with` block to a ValueError that names `file`."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: {reason:.500}") from error


def _check_size(outline: Any) -> None:
    """Raise ValueError if the memory state or the buffers of a policy are implausibly large."""
    buffer_bytes = nbytes(dict(outline.named_buffers()))
    for what, size in (("memory state", state_nbytes(outline, 1)), ("buffers", buffer_bytes)):
        if size > _MAX_STATE_BYTES:
            raise ValueError(
                f"the policy needs {size:,} bytes for its {what}; the maximum is {_MAX_STATE_BYTES:,} bytes"
            )


def _check_weights(headers: dict[str, _TensorHeader], expected: dict[str, Tensor], file: Path) -> torch.dtype:
    """Return the dtype of the stored weights.

    Raises ValueError if names or shapes in `headers` differ from those in `expected`. Also raises ValueError
    if the floating-point weights have several dtypes or a dtype that is not supported. Statistics of
    observations are float64 in every policy and do not count.
    """
    errors = [f"{name} is missing" for name in expected if name not in headers]
    errors += [f"{name} is not a weight of this policy" for name in headers if name not in expected]
    errors += [
        f"{name} has shape {list(headers[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in headers and headers[name].shape != tuple(value.shape)
    ]
    dtypes = {
        headers[name].dtype
        for name, value in expected.items()
        if name in headers and value.is_floating_point() and not name.startswith("normalizer.")
    }
    if not errors and (len(dtypes) > 1 or not dtypes <= set(_FLOATS)):
        errors = [f"weights are {' and '.join(sorted(dtypes))}, expected one of {', '.join(_FLOATS)}"]
    if errors:
        more = f", and {len(errors) - _MAX_LISTED} more" if len(errors) > _MAX_LISTED else ""
        raise ValueError(f"{file} does not match {CONFIG}: {'; '.join(errors[:_MAX_LISTED])}{more}")
    return _FLOATS[dtypes.pop()] if dtypes else torch.float32
