"""Policies in a folder: weights, config.json and a model card, which a stranger may hand on and anybody load.

Nothing in such a folder is run or unpickled, and nothing is built before it is known to be as large as the
weights that are there.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol, TypeVar, runtime_checkable

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scrubjay.agents.rl.card import Origin, card
from scrubjay.agents.rl.spaces import Spaces
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.sketch import nbytes, sketch_for, state_nbytes

WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CARD = "README.md"
_LIBRARY = "scrubjay"
_LONGEST_CONFIG = 2**25
"""Bytes of a config: bounds of every number of an observation may be in there."""
_LARGEST_STATE = 2**32
"""Bytes that one row of a policy may remember, and that it may hold beside its weights."""
_FLOATS = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64}
_TOLD = 3
"""Tensors that do not fit, named in an error."""

AnyPolicy = TypeVar("AnyPolicy", bound=nn.Module)


@runtime_checkable
class PolicyConfigLike(Protocol):
    """What builds a policy for spaces."""

    def build(self, spaces: Spaces) -> Any:
        """Return a new policy."""
        ...


class _Stored(NamedTuple):
    """What a file says of a tensor."""

    shape: tuple[int, ...]
    dtype: str


def save(
    policy: nn.Module, config: PolicyConfigLike, spaces: Spaces, directory: Path | str, origin: Origin | None
) -> None:
    """Write a policy to a folder, made if absent.

    Raises ValueError if the folder holds the config of something else, TypeError on a space that none can be
    read for again, or a memory that is not registered.
    """
    directory = Path(directory)
    kind = type(policy).__name__
    fields = {"library": _LIBRARY, "class": kind, "policy": encode(config), "spaces": spaces.to_plain()}
    _check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous().clone() for name, value in policy.state_dict().items()}
    save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})
    text = json.dumps(fields, indent=2, allow_nan=False) + "\n"
    (directory / CONFIG).write_text(text, encoding="utf-8")
    told = card(kind, config, spaces, origin if origin is not None else Origin())
    (directory / CARD).write_text(told, encoding="utf-8")


def load(kind: type[AnyPolicy], config_class: type[PolicyConfigLike], directory: Path | str) -> AnyPolicy:
    """Return the policy that `save` wrote, on the CPU, ready to act.

    Raises ValueError, naming file and place, on whatever is not one of this kind; OSError.
    """
    directory = Path(directory)
    fields = _read_config(directory)
    file = directory / WEIGHTS
    if fields["class"] != kind.__name__:
        raise ValueError(f"{directory / CONFIG} is of a {fields['class']!r:.40}, not of a {kind.__name__}")
    stored = _read_header(file)
    with _blaming(directory / CONFIG):
        spaces = Spaces.from_plain(fields["spaces"])
        config = decode(config_class, fields["policy"], "policy")
        outline = sketch_for(
            lambda: config.build(spaces), [math.prod(part.shape) for part in stored.values()]
        )
        _check_size(outline)
    dtype = _check_fit(stored, outline.state_dict(), file)
    with _blaming(directory / CONFIG), torch.random.fork_rng(devices=[]):
        policy = config.build(spaces).to(dtype)
    weights = load_file(file)
    broken = sorted(name for name, value in weights.items() if not bool(torch.isfinite(value).all()))
    if broken:
        raise ValueError(f"{file}: NaN or inf in {', '.join(broken[:_TOLD])}")
    policy.load_state_dict(weights)
    return policy.eval()


def _check_free(directory: Path) -> None:
    file = directory / CONFIG
    if not file.exists():
        return
    try:
        _read_config(directory)
    except ValueError as error:
        raise ValueError(f"{file} is of something else than a policy: choose another folder") from error


def _read_config(directory: Path) -> dict[str, Any]:
    file = directory / CONFIG
    for path in (file, directory / WEIGHTS):
        if not path.is_file():
            raise ValueError(
                f"{directory} holds no policy: it lacks {path.name}; save_pretrained writes one, and "
                "huggingface_hub.snapshot_download fetches one from the Hub"
            )
    if file.stat().st_size > _LONGEST_CONFIG:
        raise ValueError(f"{file} is longer than {_LONGEST_CONFIG:,} bytes, which no policy's is")
    try:
        fields = json.loads(file.read_text("utf-8"), parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError(f"{file} is not JSON that ends: its lists are too deep in each other") from None
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(fields, dict) or fields.get("library") != _LIBRARY:
        raise ValueError(f"{file} is not of a policy of {_LIBRARY}")
    lacking = [name for name in ("class", "policy", "spaces") if name not in fields]
    if lacking:
        raise ValueError(f"{file} lacks {', '.join(lacking)}")
    return fields


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text:.20}: expected a finite number")
    return number


def _read_header(file: Path) -> dict[str, _Stored]:
    """Return shapes and dtypes of a file's tensors, which are as large as the file at most."""
    try:
        with safe_open(file, "pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118  (no mapping)
            return {name: _Stored(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}") from error


@contextlib.contextmanager
def _blaming(file: Path) -> Iterator[None]:
    """Turn whatever a stranger's numbers make a constructor raise into an error that names the file."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{file}: {reason:.500}") from error


def _check_size(outline: Any) -> None:
    """Raise ValueError if acting would take more room than anybody means, weights aside."""
    held = nbytes(dict(outline.named_buffers()))
    for what, size in (("its state", state_nbytes(outline, 1)), ("what it holds", held)):
        if size > _LARGEST_STATE:
            raise ValueError(f"{what} takes {size:,} bytes, more than {_LARGEST_STATE:,}")


def _check_fit(stored: dict[str, _Stored], expected: dict[str, Tensor], file: Path) -> torch.dtype:
    """Return the dtype of the stored weights. Raises ValueError if others are expected."""
    wrong = [f"{name} is missing" for name in expected if name not in stored]
    wrong += [f"{name} is not of this policy" for name in stored if name not in expected]
    wrong += [
        f"{name} has shape {list(stored[name].shape)}, expected {list(value.shape)}"
        for name, value in expected.items()
        if name in stored and stored[name].shape != tuple(value.shape)
    ]
    kinds = {
        stored[name].dtype for name, value in expected.items() if name in stored and value.is_floating_point()
    }
    if not wrong and (len(kinds) > 1 or not kinds <= set(_FLOATS)):
        wrong = [f"weights are {' and '.join(sorted(kinds))}, expected one of {', '.join(_FLOATS)}"]
    if wrong:
        _refuse(file, wrong)
    return _FLOATS[kinds.pop()] if kinds else torch.float32


def _refuse(file: Path, wrong: list[str]) -> NoReturn:
    more = f", and {len(wrong) - _TOLD} more" if len(wrong) > _TOLD else ""
    raise ValueError(f"{file} does not fit {CONFIG}: {'; '.join(wrong[:_TOLD])}{more}")
