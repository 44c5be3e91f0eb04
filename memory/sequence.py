"""Causal model of token sequences over any memory.

The model follows the contract of memories, with tokens as inputs. Any cut of a sequence into
segments yields the same logits. `start` marks the first token of a new sequence. During generation, only the
state is kept from one token to the next. The state is a flat dict of tensors with fixed shapes.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from scrubjay.memory.contract.base import (
    Memory,
    MemoryConfig,
    State,
    add_affixes,
    check_entries,
    check_start,
    check_state,
    reset_rows,
    select_part,
)
from scrubjay.memory.parts.layers import ShortConvolution, feed_forward
from scrubjay.memory.serialization import FORMAT, decode, encode, take_format
from scrubjay.memory.sketch import sketch_for

_TOLERANCE = 0.01
_NEIGHBOURS = "convolution"
_BLOCK = "block_"


_MAX_CONFIG_BYTES = 2**25
"""Maximum bytes of config.json, so that a huge file does not take all memory."""


@dataclass(frozen=True)
class SequenceConfig:
    """Sizes of `SequenceModel`. The model has the width of its memories.

    Raises:
        ValueError: On an invalid size.
        TypeError: If `memory` is not a config.
    """

    vocab_size: int
    """Vocabulary size; tokens are the integers from 0 to vocab_size - 1."""
    memory: MemoryConfig
    """Config of the memory in each block."""
    num_blocks: int = 2
    """Number of blocks, each with one memory and one feed-forward layer."""
    feed_forward_width: int | None = None
    """Hidden units of a feed-forward layer; by default 2 * `memory.dim`. See `match_parameters`."""
    convolution_width: int = 3
    """Number of steps in the causal convolution before each memory; 1 disables the convolution."""
    num_learned_sinks: int = 0
    """Number of learned inputs before every sequence, like the sink token of Xiao et al. 2023 (arXiv
    2309.17453, section 3.3). The initial state of the model is the state after these inputs."""

    def __post_init__(self) -> None:
        if not isinstance(self.memory, MemoryConfig):
            raise TypeError(
                f"memory={self.memory!r:.100}: expected a config, as returned by make_config(NAME)"
            )
        for name in ("vocab_size", "num_blocks", "convolution_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_learned_sinks < 0:
            raise ValueError(f"num_learned_sinks={self.num_learned_sinks}: must not be negative")
        if self.feed_forward_width is not None and self.feed_forward_width < 1:
            raise ValueError(
                f"feed_forward_width={self.feed_forward_width}: must be at least 1, or None for the default"
            )

    @property
    def dim(self) -> int:
        """Width of embeddings and blocks."""
        return self.memory.dim

    def build(self) -> SequenceModel:
        """Return a newly initialized model of these sizes."""
        return SequenceModel(self)


class SequenceModel(
    nn.Module, PyTorchModelHubMixin, library_name="scrubjay", tags=["memory", "sequence-model"], license="mit"
):
    """Language model from tokens to logits of the next token. Embedding and head share their weights.

    A block has a short convolution and the memory, then a feed-forward layer, both pre-norm and with residual
    connections. State: the entries of every block's memory, such as `block_0.hidden`.

    `save_pretrained` writes weights and config to a folder, and `push_to_hub` writes them to the Hugging Face
    Hub. `from_pretrained` loads a model from either.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        # The head has the same weights, which give logits of variance 1 from normed outputs.
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.blocks = nn.ModuleList(_SequenceBlock(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.sinks = None
        if config.num_learned_sinks:
            sinks = torch.empty(config.num_learned_sinks, config.dim)
            self.sinks = nn.Parameter(nn.init.normal_(sinks, std=config.dim**-0.5))

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token. Gradients flow through it to the learned sinks, if any."""
        rows = batch_size if self.sinks is None else 1
        state: State = {}
        for index, block in enumerate(self._blocks):
            state |= add_affixes(block.initial_state(rows), prefix=_prefix(index))
        if self.sinks is None:
            return state
        _, state = self._through_blocks(self.sinks[None], state, None)
        return {name: value.repeat(batch_size, *[1] * (value.ndim - 1)) for name, value in state.items()}

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: State, start: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch time vocab"], State]:
        """Return the logits of the next token at every position, and the state after the last token.

        `start[b, t]` marks `tokens[b, t]` as the first token of a new sequence.

        Raises:
            ValueError: If the shape of an argument is wrong, if the entries of `state` do not match the
                model, if a token is outside the vocabulary, or if `start` is not bool.
            TypeError: If `tokens` or `start` is not a tensor, or if `state` is not a dict.
        """
        _check_tokens(tokens)
        check_start(start, tokens)
        check_state(state, tokens)
        if not torch.compiler.is_compiling():
            self._check_entries(state)
        x = self._embed(tokens)
        if self.sinks is None or start is None:
            x, after = self._through_blocks(x, state, start)
        else:
            x, after = self._from_sinks(x, state, start)
        return nn.functional.linear(self.norm(x), self.embedding.weight), after

    def _embed(self, tokens: Tensor) -> Tensor:
        try:
            return self.embedding(tokens)
        except IndexError:  # computed only on failure, since it would synchronize with a GPU
            least, most = tokens.min().item(), tokens.max().item()
            raise ValueError(
                f"tokens range from {least} to {most}; the vocabulary has tokens from 0 to "
                f"{self.config.vocab_size - 1}"
            ) from None

    def _check_entries(self, state: State) -> None:
        check_entries(state, self._shapes, "model")
        for name in state:
            if name.startswith(_BLOCK) and name not in self._shapes:
                raise ValueError(
                    f"state has {name!r}, which belongs to another model: start from initial_state of this "
                    "model and pass the state that each call returns"
                )

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """Shapes of the state entries without the batch dimension."""
        return {
            f"{_prefix(index)}{name}": value.shape[1:]
            for index, block in enumerate(self._blocks)
            for name, value in block.initial_state(1).items()
        }

    def _through_blocks(self, x: Tensor, state: State, start: Tensor | None) -> tuple[Tensor, State]:
        after: State = {}
        for index, block in enumerate(self._blocks):
            x, own = block(x, select_part(state, prefix=_prefix(index)), start)
            after |= add_affixes(own, prefix=_prefix(index))
        return x, after

    def _from_sinks(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Process the segment in pieces. A new piece begins at each step with a `start` in any row.

        Before each piece, the rows that start get the initial state, which contains the learned sinks. The
        memories therefore get no `start`: they would reset to a state without the learned sinks.
        """
        initial, pieces = self.initial_state(1), []
        cuts = sorted({0, *start.any(dim=0).nonzero().flatten().tolist(), x.shape[1]})
        for begin, end in itertools.pairwise(cuts):
            state = reset_rows(state, initial, start[:, begin])
            piece, state = self._through_blocks(x[:, begin:end], state, None)
            pieces.append(piece)
        return torch.cat(pieces, dim=1) if pieces else x, state

    @torch.no_grad()
    def generate(
        self,
        prompt: Int[Tensor, "batch prompt_time"],
        max_new_tokens: int,
        state: State | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        generator: torch.Generator | None = None,
    ) -> tuple[Int[Tensor, "batch new_time"], State]:
        """Generate `max_new_tokens` tokens after the prompt.

        Return the new tokens, and the state before the last new token. To continue later, pass this last
        token as the prompt together with the returned state. The cost of a token does not depend on the
        length of the sequence.

        Args:
            prompt: Tokens to continue.
            max_new_tokens: Number of tokens to sample.
            state: State before the prompt; None for the initial state.
            temperature: Sampling temperature; 0 selects the most likely token.
            top_k: Sample from the `top_k` most likely tokens; None samples from all tokens.
            generator: Random generator for sampling.

        Raises:
            ValueError: If the prompt is empty, an argument is invalid, or `forward` raises it.
            TypeError: If `forward` raises it.
        """
        _check_tokens(prompt)
        if prompt.shape[1] == 0:
            raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected at least one token per row")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        if not temperature >= 0:
            raise ValueError(
                f"temperature={temperature}: must not be negative; 0 selects the most likely token"
            )
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k={top_k}: must be at least 1, or None for all tokens")
        logits, state = self(prompt, self.initial_state(len(prompt)) if state is None else state)
        new = [_draw(logits[:, -1], temperature, top_k, generator)]
        while len(new) < max_new_tokens:
            logits, state = self(new[-1][:, None], state)
            new.append(_draw(logits[:, -1], temperature, top_k, generator))
        return torch.stack(new, dim=1), cast("State", state)

    def state_bytes(self, batch_size: int = 1) -> int:
        """Return the exact size of the state in bytes."""
        state = self.initial_state(batch_size)
        return sum(value.numel() * value.element_size() for value in state.values())

    @property
    def num_parameters(self) -> int:
        """Number of parameters. Weights that the embedding and the head share are counted once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def _blocks(self) -> list[_SequenceBlock]:
        return cast("list[_SequenceBlock]", self.blocks)

    def _save_pretrained(self, save_directory: Path) -> None:
        # A file that is a link keeps its content under its other names.
        for name in (constants.SAFETENSORS_SINGLE_FILE, constants.CONFIG_NAME):
            (save_directory / name).unlink(missing_ok=True)
        super()._save_pretrained(save_directory)
        # Written here, since the mixin would not store the type of the memory.
        (save_directory / "config.json").write_text(
            json.dumps({"format": FORMAT, **encode(self.config)}, indent=2) + "\n"
        )

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Self:  # type: ignore[override]
        """Load a model from a folder that `save_pretrained` wrote, or from the Hugging Face Hub.

        Raises:
            ValueError: If the files do not describe a model.
            OSError: If a file is missing.
        """
        folder = Path(pretrained_model_name_or_path)
        if folder.exists() and not folder.is_dir():  # the Hub would be asked for a model of this name
            raise ValueError(f"{folder} is not a folder; give a folder that save_pretrained wrote")
        file = folder / "config.json"
        if file.exists() and (not file.is_file() or file.stat().st_size > _MAX_CONFIG_BYTES):
            raise ValueError(f"{file} is not a regular file of at most {_MAX_CONFIG_BYTES:,} bytes")
        try:
            return super().from_pretrained(pretrained_model_name_or_path, **options)
        except (AttributeError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
            name = pretrained_model_name_or_path
            raise ValueError(f"config.json of {name} is no JSON object ({type(error).__name__})") from error

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | SequenceConfig | None = None, **options: Any
    ) -> Self:
        if config is None:  # the mixin only logs a missing config
            raise FileNotFoundError(f"{model_id} has no config.json; write the model with save_pretrained")
        if not isinstance(config, SequenceConfig):
            take_format(config := dict(config), f"config.json of {model_id}")
            config = decode(SequenceConfig, config)
        options.setdefault("strict", True)
        # An untrusted config may exceed the memory, so the weights must have the size of its model.
        sketch_for(config.build, _sizes(model_id, options))
        try:
            return super()._from_pretrained(model_id=model_id, config=config, **options)
        except RuntimeError as error:  # names or shapes differ
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the weights in {model_id} do not match its config.json: {reason:.300}"
            ) from error


def _sizes(model_id: str, options: dict[str, Any]) -> list[int]:
    """Return the number of elements of each tensor in the weights file of `model_id`.

    Download this safetensors file unless `model_id` is a folder.
    """
    name = constants.SAFETENSORS_SINGLE_FILE
    parameters = inspect.signature(hf_hub_download).parameters
    download_options = {key: value for key, value in options.items() if key in parameters}
    folder = Path(model_id)
    file = folder / name if folder.is_dir() else hf_hub_download(model_id, name, **download_options)
    if Path(file).exists() and not Path(file).is_file():  # a pipe would block
        raise ValueError(f"{file} is not a regular file")
    try:
        with safe_open(file, "pt") as tensors:
            return [math.prod(tensors.get_slice(key).get_shape()) for key in tensors.keys()]  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{file}: {error}; write the model again with save_pretrained") from error


def match_parameters(config: SequenceConfig, budget: int) -> SequenceConfig:
    """Return a copy of `config` whose model has `budget` parameters, within 1 %.

    The function adjusts the feed-forward width. Use it to compare memories at equal model size.

    Raises:
        ValueError: If no width matches.
    """
    least = _num_parameters(dataclasses.replace(config, feed_forward_width=1))
    per_unit = config.num_blocks * (2 * config.dim + 1)
    width = 1 + round((budget - least) / per_unit)
    total = least + (width - 1) * per_unit
    if width < 1 or abs(total - budget) > _TOLERANCE * budget:
        raise ValueError(
            f"budget={budget:,} parameters: no feed-forward width matches; {config.num_blocks} blocks of "
            f"{type(config.memory).__name__} with width {config.dim} have at least {least:,} parameters, and "
            f"each unit of feed-forward width adds {per_unit:,}; change the budget, the width or num_blocks"
        )
    return dataclasses.replace(config, feed_forward_width=width)


class _SequenceBlock(nn.Module):
    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        dim, width = config.dim, config.feed_forward_width or 2 * config.dim
        self.memory_norm = nn.LayerNorm(dim)
        self.convolution = ShortConvolution(dim, config.convolution_width)
        self.memory: Memory = config.memory.build()
        self.feed_forward = feed_forward(dim, width)

    def initial_state(self, batch_size: int) -> State:
        return {
            _NEIGHBOURS: self.convolution.initial_state(batch_size),
            **self.memory.initial_state(batch_size),
        }

    def forward(self, x: Tensor, state: State, start: Tensor | None) -> tuple[Tensor, State]:
        own = {name: value for name, value in state.items() if name != _NEIGHBOURS}
        memory_input, neighbours = self.convolution(self.memory_norm(x), state[_NEIGHBOURS], start)
        memory_output, own = self.memory(memory_input, own, start)
        x = x + memory_output
        return x + self.feed_forward(x), {_NEIGHBOURS: neighbours, **own}


def _check_tokens(tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens={tokens!r:.100}: expected a tensor such as torch.tensor([[1, 2, 3]])")
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected [batch, time]")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens have dtype {tokens.dtype}; expected integers, so pass tokens.long()")


def _prefix(index: int) -> str:
    return f"{_BLOCK}{index}."


def _draw(
    logits: Float[Tensor, "batch vocab"],
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " batch"]:
    # Near zero only the most likely token has a chance, and the quotient would overflow.
    if temperature < 1e-6:
        return logits.argmax(dim=-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _num_parameters(config: SequenceConfig) -> int:
    with torch.random.fork_rng(devices=[]):  # building must not change the random state of the caller
        return config.build().num_parameters
