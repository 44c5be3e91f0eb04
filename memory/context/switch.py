"""Let a model attend by policies while it reads into a cache of ours, and leave its config as it was."""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from scrubjay.memory.context.attention import ATTENTION


class _Readers:
    """The threads that read into a cache of ours, and how the model attends elsewhere."""

    def __init__(self) -> None:
        self.threads: set[int] = set()
        self.elsewhere: str | None = None


_readers: WeakKeyDictionary[nn.Module, _Readers] = WeakKeyDictionary()
_lock = threading.Lock()


def attend_by_policy(decoder: nn.Module) -> str | None:
    """Let calls of a decoder with a `PolicyCache` attend by its policy; return by what others attend."""
    if _enter not in decoder._forward_pre_hooks.values():
        decoder.register_forward_pre_hook(_enter, with_kwargs=True)
        decoder.register_forward_hook(_leave, always_call=True)
    with _lock:
        return _elsewhere(decoder)


def _elsewhere(decoder: nn.Module) -> str | None:
    config: Any = decoder.config
    readers = _readers.get(decoder)
    return readers.elsewhere if readers is not None and readers.threads else config._attn_implementation


def _enter(decoder: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
    # A call that Ctrl-C broke off has not left.
    _leave(decoder)
    given = (getattr(each, "attends_elsewhere", None) for each in (*args, *options.values()))
    elsewhere = next(filter(None, given), None)
    if elsewhere is None:
        return
    config: Any = decoder.config
    with _lock:
        now = _elsewhere(decoder)
        if now != elsewhere:
            raise RuntimeError(
                f"the model attends by {now!r} and does not call the policy; build the cache for this "
                "model, after any set_attn_implementation"
            )
        readers = _readers.setdefault(decoder, _Readers())
        readers.threads.add(threading.get_ident())
        readers.elsewhere, config._attn_implementation = elsewhere, ATTENTION


def _leave(decoder: nn.Module, *_: Any) -> None:
    config: Any = decoder.config
    with _lock:
        readers = _readers.get(decoder)
        if readers is None or threading.get_ident() not in readers.threads:
            return
        readers.threads.discard(threading.get_ident())
        if not readers.threads:
            config._attn_implementation = readers.elsewhere
