"""Switch a model to policy attention while it runs with a `PolicyCache`; restore its config afterwards."""

from __future__ import annotations

import inspect
import threading
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from scrubjay.memory.context.attention import ATTENTION, check_not_wrapped, register_attention, set_reading


class _ActiveCaches:
    """Policy caches in use by one model, and the model's own attention implementation.

    `caches` has one cache per thread id. Calls without a `PolicyCache` use `outside_attention`.
    """

    def __init__(self) -> None:
        self.caches: dict[int, Any] = {}
        self.outside_attention: str | None = None


_active_caches: WeakKeyDictionary[nn.Module, _ActiveCaches] = WeakKeyDictionary()
LOCK = threading.Lock()
"""Lock around changes of a model's attention implementation."""


def attend_by_policy(decoder: nn.Module) -> str | None:
    """Install hooks so that decoder calls with a `PolicyCache` use its policy.

    Returns the attention implementation of calls without a `PolicyCache`. Raises ValueError inside a
    `with` block that changes or records the model's own attention.
    """
    register_attention()
    if _enter not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_enter, with_kwargs=True)
        decoder.register_forward_hook(_leave, always_call=True)
    with LOCK:
        check_not_wrapped(decoder)
        return _find_outside_attention(decoder)


def _find_outside_attention(decoder: nn.Module) -> str | None:
    config: Any = decoder.config
    active = _active_caches.get(decoder)
    return active.outside_attention if active is not None and active.caches else config._attn_implementation


def _enter(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    # A call interrupted by Ctrl-C has not run its post hook.
    _leave(decoder)
    caches = (each for each in (*args, *options.values()) if hasattr(each, "outside_attention"))
    cache = next(caches, None)
    if cache is None:
        return None
    positions = _position_ids(decoder, args, options)
    inputs: Any = next(
        x for x in (*args[:1], options.get("input_ids"), options.get("inputs_embeds")) if x is not None
    )
    if positions is None and cache.adds_position_ids and len(args) < 2:
        past_length = cache.get_seq_length()
        positions = torch.arange(past_length, past_length + inputs.shape[1], device=inputs.device)[None]
        options = options | {"position_ids": positions}
    cache.begin_call(positions, inputs.shape[1])
    outside_attention = cache.outside_attention
    config: Any = decoder.config
    with LOCK:
        check_not_wrapped(decoder)
        current_attention = _find_outside_attention(decoder)
        if current_attention != outside_attention:
            raise RuntimeError(
                f"the model uses attention {current_attention!r}, so it does not call the policy; build the "
                "cache for this model, after all calls of set_attn_implementation"
            )
        active = _active_caches.setdefault(decoder, _ActiveCaches())
        active.caches[threading.get_ident()] = cache
        active.outside_attention, config._attn_implementation = outside_attention, ATTENTION
    set_reading(True)
    return args, options


def _position_ids(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    if "position_ids" in options or len(args) < 2:
        return options.get("position_ids")
    return inspect.signature(decoder.forward).bind_partial(*args, **options).arguments.get("position_ids")


def _leave(decoder: nn.Module, _: Any = None, output: Any = None) -> None:
    config: Any = decoder.config
    set_reading(False)
    with LOCK:
        active = _active_caches.get(decoder)
        cache = None if active is None else active.caches.pop(threading.get_ident(), None)
        if active is None or cache is None:
            return
        if output is not None:
            cache.end_call()
        if not active.caches:
            config._attn_implementation = active.outside_attention
