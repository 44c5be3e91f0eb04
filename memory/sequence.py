"""A causal model of token sequences over any memory.

It obeys the memories' contract with tokens for inputs: any cut of a sequence gives the same logits, `start`
begins a new sequence, and the state, a flat dict of fixed shapes, is all that generation carries from token
to token.
"""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import json
import math
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, cast

import torch
from huggingface_hub import PyTorchModelHubMixin, constants, hf_hub_download
from jaxtyping import Bool, Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from scrubjay.memory.contract.base import (
    LATER,
    Memory,
    MemoryConfig,
    State,
    check_entries,
    check_start,
    check_state,
    with_born,
)
from scrubjay.memory.contract.nested import named, part_of
from scrubjay.memory.parts.convolution import ShortConvolution
from scrubjay.memory.parts.feed_forward import feed_forward
from scrubjay.memory.serialization import decode, encode
from scrubjay.memory.sketch import sketch_for

_TOLERANCE = 0.01
_NEIGHBOURS = "convolution"
_BLOCK = "block_"


@dataclass(frozen=True)
class SequenceConfig:
    """Sizes of `SequenceModel`; its width is the memory's.

    Raises ValueError on an impossible one, and TypeError where `memory` is no config.
    """

    vocab_size: int
    """Tokens are the numbers from 0 up to this, itself excluded."""
    memory: MemoryConfig
    """What remembers, once per block, each with a state of its own."""
    num_blocks: int = 2
    """Blocks of one memory and one feed-forward layer."""
    feed_forward_width: int | None = None
    """Hidden units of a feed-forward layer; by default twice the width. See `match_parameters`."""
    convolution_width: int = 3
    """Latest inputs that a convolution mixes before each memory, so that neighbours meet; 1 mixes none."""
    num_learned_sinks: int = field(default=0, metadata=LATER)
    """Learned inputs that every sequence begins with, unseen, as the sink token of Xiao et al. 2023 (arXiv
    2309.17453, section 3.3): the state before the first token is that after them."""

    def __post_init__(self) -> None:
        if not isinstance(self.memory, MemoryConfig):
            raise TypeError(f"memory={self.memory!r:.100}: expected a config, as make_config(NAME) makes one")
        for name in ("vocab_size", "num_blocks", "convolution_width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}: must be at least 1")
        if self.num_learned_sinks < 0:
            raise ValueError(f"num_learned_sinks={self.num_learned_sinks}: must not be negative")
        if self.feed_forward_width is not None and self.feed_forward_width < 1:
            raise ValueError(f"feed_forward_width={self.feed_forward_width}: must be at least 1, or None")

    @property
    def dim(self) -> int:
        """Width of embeddings and blocks."""
        return self.memory.dim

    def build(self) -> SequenceModel:
        """Return a freshly initialised model of these sizes."""
        return SequenceModel(self)


class SequenceModel(
    nn.Module, PyTorchModelHubMixin, library_name="scrubjay", tags=["memory", "sequence-model"], license="mit"
):
    """Tokens in, logits of the next token out; embedding and head have the same weights.

    A block is pre-norm and residual: a short convolution and the memory, then a feed-forward layer. State:
    the entries of every block's memory, `block_0.hidden` and so on. Weights and config go to a folder or to
    the Hugging Face Hub by `save_pretrained` and `push_to_hub`, and come back by `from_pretrained`.
    """

    def __init__(self, config: SequenceConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.dim)
        # As the head's weights they make logits of variance 1 from normed outputs.
        nn.init.normal_(self.embedding.weight, std=config.dim**-0.5)
        self.blocks = nn.ModuleList(_Block(config) for _ in range(config.num_blocks))
        self.norm = nn.LayerNorm(config.dim)
        self.sinks = None
        if config.num_learned_sinks:
            sinks = torch.empty(config.num_learned_sinks, config.dim)
            self.sinks = nn.Parameter(nn.init.normal_(sinks, std=config.dim**-0.5))

    def initial_state(self, batch_size: int) -> State:
        """Return the state before the first token, batch first; gradients reach learned sinks through it."""
        rows = batch_size if self.sinks is None else 1
        state: State = {}
        for index, block in enumerate(self._blocks):
            state |= named(block.initial_state(rows), prefix=_prefix(index))
        if self.sinks is None:
            return state
        _, state = self._through_blocks(self.sinks[None], state, None)
        return {name: value.repeat(batch_size, *[1] * (value.ndim - 1)) for name, value in state.items()}

    def forward(
        self, tokens: Int[Tensor, "batch time"], state: State, start: Bool[Tensor, "batch time"] | None = None
    ) -> tuple[Float[Tensor, "batch time vocab"], State]:
        """Return logits of the token after each, and the state after the last.

        `start[b, t]` marks `tokens[b, t]` as the first of a new sequence. Raises ValueError on shapes and a
        state that do not fit, on tokens that there are none of, and on a `start` that is not bool; TypeError
        on what is no tensor or no state.
        """
        _check_tokens(tokens)
        check_start(start, tokens)
        check_state(state, tokens)
        if not torch.compiler.is_compiling():
            self._check_entries(state)
        x = self._embedded(tokens)
        if self.sinks is None or start is None:
            x, after = self._through_blocks(x, state, start)
        else:
            x, after = self._from_sinks(x, state, start)
        return nn.functional.linear(self.norm(x), self.embedding.weight), after

    def _embedded(self, tokens: Tensor) -> Tensor:
        try:
            return self.embedding(tokens)
        except IndexError:  # asked only then, as the answer of a GPU would be waited for
            least, most = tokens.min().item(), tokens.max().item()
            raise ValueError(
                f"tokens are from {least} to {most}; the vocabulary has those from 0 to "
                f"{self.config.vocab_size - 1}"
            ) from None

    def _check_entries(self, state: State) -> None:
        check_entries(state, self._shapes, "model")
        for name in state:
            if name.startswith(_BLOCK) and name not in self._shapes:
                raise ValueError(
                    f"state has {name!r}, of another model: begin with initial_state of this one, and go on "
                    "with what it returned"
                )

    @cached_property
    def _shapes(self) -> dict[str, torch.Size]:
        """The shapes that entries of a state have, rows aside."""
        return {
            f"{_prefix(index)}{name}": value.shape[1:]
            for index, block in enumerate(self._blocks)
            for name, value in block.initial_state(1).items()
        }

    def _through_blocks(self, x: Tensor, state: State, start: Tensor | None) -> tuple[Tensor, State]:
        after: State = {}
        for index, block in enumerate(self._blocks):
            x, own = block(x, part_of(state, prefix=_prefix(index)), start)
            after |= named(own, prefix=_prefix(index))
        return x, after

    def _from_sinks(self, x: Tensor, state: State, start: Tensor) -> tuple[Tensor, State]:
        """Go on piece by piece: a memory's own birth knows of no sinks."""
        newborn, pieces = self.initial_state(1), []
        cuts = sorted({0, *start.any(dim=0).nonzero().flatten().tolist(), x.shape[1]})
        for begin, end in itertools.pairwise(cuts):
            state = with_born(state, newborn, start[:, begin])
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
        """Return `max_new_tokens` tokens that follow the prompt, and the state before the last of them.

        A step costs the same however long the sequence is. To go on later, give the last token as the prompt,
        and the returned state.

        Args:
            prompt: Tokens to go on from.
            max_new_tokens: How many to draw.
            state: What was read before; None for nothing.
            temperature: Of the draws; 0 takes the likeliest token.
            top_k: Draw among so many likeliest; None for all.
            generator: Source of the draws.

        Raises:
            ValueError, TypeError: on an empty prompt, on a number that cannot be, and as a call does.
        """
        _check_tokens(prompt)
        if prompt.shape[1] == 0:
            raise ValueError(f"prompt has shape {tuple(prompt.shape)}; expected at least one token a row")
        if max_new_tokens < 1:
            raise ValueError(f"max_new_tokens={max_new_tokens}: must be at least 1")
        if not temperature >= 0:
            raise ValueError(f"temperature={temperature}: must not be negative; 0 takes the likeliest token")
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
        """Trained numbers; those that embedding and head share count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def _blocks(self) -> list[_Block]:
        return cast("list[_Block]", self.blocks)

    def _save_pretrained(self, save_directory: Path) -> None:
        super()._save_pretrained(save_directory)
        # Written here, since the mixin's own way would lose which memory it is.
        (save_directory / "config.json").write_text(json.dumps(encode(self.config), indent=2) + "\n")

    @classmethod
    def _from_pretrained(
        cls, *, model_id: str, config: dict[str, Any] | SequenceConfig | None = None, **options: Any
    ) -> Self:
        if config is None:  # the mixin only notes that there is none
            raise FileNotFoundError(f"{model_id} has no config.json, which save_pretrained writes")
        if not isinstance(config, SequenceConfig):
            config = decode(SequenceConfig, config)
        options.setdefault("strict", True)
        # A stranger's config may ask for more than there is memory: weights of that size have to be there.
        sketch_for(config.build, _sizes(model_id, options))
        return super()._from_pretrained(model_id=model_id, config=config, **options)


def _sizes(model_id: str, options: dict[str, Any]) -> list[int]:
    """Return how many numbers each of the stored weights has, fetching them first if no folder has them."""
    name = constants.SAFETENSORS_SINGLE_FILE
    known = inspect.signature(hf_hub_download).parameters
    given = {key: value for key, value in options.items() if key in known}
    folder = Path(model_id)
    file = folder / name if folder.is_dir() else hf_hub_download(model_id, name, **given)
    with safe_open(file, "pt") as stored:
        return [math.prod(stored.get_slice(key).get_shape()) for key in stored.keys()]  # noqa: SIM118


def match_parameters(config: SequenceConfig, budget: int) -> SequenceConfig:
    """Return the config with feed-forward layers so wide that the model has `budget` parameters, within 1 %.

    For comparisons of memories at equal size. Raises ValueError where no width does it.
    """
    least = _num_parameters(dataclasses.replace(config, feed_forward_width=1))
    per_unit = config.num_blocks * (2 * config.dim + 1)
    width = 1 + round((budget - least) / per_unit)
    reached = least + (width - 1) * per_unit
    if width < 1 or abs(reached - budget) > _TOLERANCE * budget:
        raise ValueError(
            f"budget={budget:,} parameters: {type(config.memory).__name__} of width {config.dim} in "
            f"{config.num_blocks} blocks needs at least {least:,}, and comes in steps of {per_unit:,}"
        )
    return dataclasses.replace(config, feed_forward_width=width)


class _Block(nn.Module):
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
        mixed, neighbours = self.convolution(self.memory_norm(x), state[_NEIGHBOURS], start)
        remembered, own = self.memory(mixed, own, start)
        x = x + remembered
        return x + self.feed_forward(x), {_NEIGHBOURS: neighbours, **own}


def _check_tokens(tokens: Tensor) -> None:
    if not isinstance(tokens, Tensor):
        raise TypeError(f"tokens={tokens!r:.100}: expected a tensor, as torch.tensor([[1, 2, 3]]) is")
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {tuple(tokens.shape)}; expected [batch, time]")
    if tokens.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"tokens have dtype {tokens.dtype}; expected whole numbers, so pass tokens.long()")


def _prefix(index: int) -> str:
    return f"{_BLOCK}{index}."


def _draw(
    logits: Float[Tensor, "batch vocab"],
    temperature: float,
    top_k: int | None,
    generator: torch.Generator | None,
) -> Int[Tensor, " batch"]:
    # So near zero that nothing but the likeliest has a chance, a quotient would overflow.
    if temperature < 1e-6:
        return logits.argmax(dim=-1)
    if top_k is not None:
        least = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    return torch.multinomial((logits / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]


def _num_parameters(config: SequenceConfig) -> int:
    with torch.random.fork_rng(devices=[]):  # counting is to leave the next model's weights as they were
        return config.build().num_parameters
