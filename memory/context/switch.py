"""Let a model attend by policies while it reads into a cache of ours, and leave its config as it was."""

from __future__ import annotations

import inspect
import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from scrubjay.memory.context.attention import ATTENTION, check_not_wrapped, read_by_policy, register_attention


class _Readers:
    """The caches of ours that are read into, by thread, and how the model attends elsewhere."""

    def __init__(self) -> None:
        self.caches: dict[int, Any] = {}
        self.elsewhere: str | None = None


_readers: WeakKeyDictionary[nn.Module, _Readers] = WeakKeyDictionary()
LOCK = threading.Lock()
"""Held while a model's attention function is exchanged."""


def attend_by_policy(decoder: nn.Module) -> str | None:
    """Let calls of a decoder with a `PolicyCache` attend by its policy; return by what others attend.

    Raises ValueError inside a block that changes or records the model's own attention.
    """
    register_attention()
    if _enter not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_enter, with_kwargs=True)
        decoder.register_forward_hook(_leave, always_call=True)
    with LOCK:
        check_not_wrapped(decoder)
        return _elsewhere(decoder)


def _elsewhere(decoder: nn.Module) -> str | None:
    config: Any = decoder.config
    readers = _readers.get(decoder)
    return readers.elsewhere if readers is not None and readers.caches else config._attn_implementation


def _enter(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # A call that Ctrl-C broke off has not left.
    _leave(decoder)
    caches = (each for each in (*args, *options.values()) if hasattr(each, "attends_elsewhere"))
    cache = next(caches, None)
    if cache is None:
        return None
    positions = _position_ids(decoder, args, options)
    given: Any = next(
        x for x in (*args[:1], options.get("input_ids"), options.get("inputs_embeds")) if x is not None
    )
    if positions is None and cache.places and len(args) < 2:
        seen = cache.get_seq_length()
        positions = torch.arange(seen, seen + given.shape[1], device=given.device)[None]
        options = options | {"position_ids": positions}
    cache.begin_call(positions, given.shape[1])
    elsewhere = cache.attends_elsewhere
    config: Any = decoder.config
    with LOCK:
        check_not_wrapped(decoder)
        now = _elsewhere(decoder)
        if now != elsewhere:
            raise RuntimeError(
                f"the model attends by {now!r} and does not call the policy; build the cache for this "
                "model, after any set_attn_implementation"
            )
        readers = _readers.setdefault(decoder, _Readers())
        readers.caches[threading.get_ident()] = cache
        readers.elsewhere, config._attn_implementation = elsewhere, ATTENTION
    read_by_policy(True)
    return args, options


def _position_ids(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if "position_ids" in options or len(args) < 2:
        return options.get("position_ids")
    return inspect.signature(decoder.forward).bind_partial(*args, **options).arguments.get("position_ids")


def _leave(decoder: nn.Module, _: Any = None, read: Any = None) -> None:
    config: Any = decoder.config
    read_by_policy(False)
    with LOCK:
        readers = _readers.get(decoder)
        cache = None if readers is None else readers.caches.pop(threading.get_ident(), None)
        if readers is None or cache is None:
            return
        if read is not None:
            cache.end_call()
        if not readers.caches:
            config._attn_implementation = readers.elsewhere
