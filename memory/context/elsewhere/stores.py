"""Stores of keys and values: in this process, and in a process of their own.

A message to a process is a safetensors file of tensors behind its length, so neither side unpickles anything.
`StoreProcess.bytes_sent` and `bytes_received` count all of them.
"""

from __future__ import annotations

import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import IO, Protocol, Self

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from scrubjay.kernels.normalisers import Part
from scrubjay.memory.context.elsewhere.table import Columns, Table
from scrubjay.memory.context.policies.dense import Scoring

_LENGTH = struct.Struct("<Q")
_MOST_BYTES = 2**40
_CALLS = ("append", "attend", "read", "truncate", "reorder", "forget", "nbytes")


class Store(Protocol):
    """Keys and values of many layers. `name` identifies one layer of one cache."""

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table; the first call creates it."""
        ...

    def begin_attention(
        self, name: int, query: Float[Tensor, "batch heads length width"], scoring: Scoring
    ) -> Callable[[], Part]:
        """Begin to read a table; return the function that waits for the part of the attention."""
        ...

    def read(self, name: int, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1` of a table."""
        ...

    def truncate(self, name: int, columns: int) -> None:
        """Keep only the first tokens of a table."""
        ...

    def reorder(self, name: int, rows: Int[Tensor, " selected"]) -> None:
        """Select batch rows of a table."""
        ...

    def forget(self, name: int) -> None:
        """Delete a table, if it exists."""
        ...

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        ...


class TableStore:
    """Store in this process."""

    def __init__(self) -> None:
        self._tables: dict[int, Table] = {}

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table; the first call creates it."""
        self._tables.setdefault(name, Table()).append(new)

    def begin_attention(
        self, name: int, query: Float[Tensor, "batch heads length width"], scoring: Scoring
    ) -> Callable[[], Part]:
        """Return a function that computes the part of the attention."""
        return lambda: self._tables[name].attend(query, scoring)

    def read(self, name: int, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1` of a table."""
        return self._tables[name].read(first, last)

    def truncate(self, name: int, columns: int) -> None:
        """Keep only the first tokens of a table."""
        self._tables[name].truncate(columns)

    def reorder(self, name: int, rows: Int[Tensor, " selected"]) -> None:
        """Select batch rows of a table."""
        self._tables[name].reorder(rows)

    def forget(self, name: int) -> None:
        """Delete a table, if it exists."""
        self._tables.pop(name, None)

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        table = self._tables.get(name)
        return 0 if table is None else table.nbytes


class StoreProcess:
    """Store in a process of its own on this machine; close it, or use it in a `with` block.

    Several caches may share it. Calls are answered in order, so several threads must not share it.
    """

    def __init__(self) -> None:
        self.bytes_sent = self.bytes_received = 0
        command = [sys.executable, "-P", "-m", "scrubjay.memory.context.elsewhere.stores"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._waiting = 0
        self._forgotten_names: list[int] = []

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table; the first call creates it."""
        keys, values, valid = new
        self._call("append", name, keys=keys, values=values, valid=valid)

    def begin_attention(
        self, name: int, query: Float[Tensor, "batch heads length width"], scoring: Scoring
    ) -> Callable[[], Part]:
        """Send the queries; return the function that waits for the part of the attention."""
        cap = float("nan") if scoring.cap is None else scoring.cap
        numbers = torch.tensor([scoring.scale, cap], dtype=torch.float64)
        self._send("attend", name, query=query, numbers=numbers)

        def wait() -> Part:
            reply = self._receive()
            return reply["output"].to(query.device), reply["normaliser"].to(query.device)

        return wait

    def read(self, name: int, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1` of a table."""
        reply = self._call("read", name, numbers=torch.tensor([first, last]))
        return reply["keys"], reply["values"], reply["valid"]

    def truncate(self, name: int, columns: int) -> None:
        """Keep only the first tokens of a table."""
        self._call("truncate", name, numbers=torch.tensor([columns]))

    def reorder(self, name: int, rows: Int[Tensor, " selected"]) -> None:
        """Select batch rows of a table."""
        self._call("reorder", name, numbers=rows)

    def forget(self, name: int) -> None:
        """Delete a table, if it exists, before the next call."""
        # The garbage collector may call this between a request and its reply.
        self._forgotten_names.append(name)

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        return int(self._call("nbytes", name)["numbers"][0])

    def close(self) -> None:
        """End the process; its keys and values are lost."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at exit, modules may be gone
            self.close()

    def _call(self, call: str, name: int, **tensors: Tensor) -> dict[str, Tensor]:
        if self._waiting:
            raise RuntimeError("a store answers calls in order: wait for the attention before the next call")
        self._send(call, name, **tensors)
        return self._receive()

    def _send(self, call: str, name: int, **tensors: Tensor) -> None:
        while self._forgotten_names and not self._waiting and call != "forget":
            self._call("forget", self._forgotten_names.pop())
        assert self._process.stdin is not None
        message = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        message["call"] = torch.tensor([_CALLS.index(call), name])
        try:
            self.bytes_sent += write_message(self._process.stdin, message)
        except OSError as error:
            raise self._explain() from error
        self._waiting += 1

    def _receive(self) -> dict[str, Tensor]:
        assert self._process.stdout is not None
        reply, size = read_message(self._process.stdout)
        self._waiting -= 1
        if reply is None:
            raise self._explain()
        self.bytes_received += size
        if "error" in reply:
            raise RuntimeError(f"the store failed: {bytes(reply['error'].tolist()).decode()}")
        return reply

    def _explain(self) -> RuntimeError:
        code = self._process.poll()
        return RuntimeError(
            f"the process of a store has ended (exit code {code}), and its keys and values are lost; begin "
            "with a new store and a new cache"
        )


def write_message(pipe: IO[bytes], message: dict[str, Tensor]) -> int:
    """Write tensors behind their length, and return the number of bytes."""
    data = save(message)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    pipe.flush()
    return _LENGTH.size + len(data)


def read_message(pipe: IO[bytes]) -> tuple[dict[str, Tensor] | None, int]:
    """Return the tensors of the next message and the number of its bytes; None at the end of the pipe.

    Raises ValueError on a length that no message has.
    """
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None, 0
    (length,) = _LENGTH.unpack(head)
    if length > _MOST_BYTES:
        raise ValueError(f"a message of {length:,} bytes; something else writes to the pipe of the store")
    data = pipe.read(length)
    return (None, 0) if len(data) < length else (load(data), _LENGTH.size + length)


def answer(store: TableStore, message: dict[str, Tensor]) -> dict[str, Tensor]:
    """Run the call of a message on a store, and return the reply."""
    number, name = message["call"].tolist()
    call = _CALLS[number]
    numbers = message.get("numbers", torch.empty(0))
    if call == "append":
        store.append(name, (message["keys"], message["values"], message["valid"]))
    elif call == "attend":
        scale, cap = numbers.tolist()
        scoring = Scoring(scale, None if math.isnan(cap) else cap)
        output, normaliser = store.begin_attention(name, message["query"], scoring)()
        return {"output": output.contiguous(), "normaliser": normaliser.contiguous()}
    elif call == "read":
        keys, values, valid = store.read(name, *numbers.tolist())
        return {"keys": keys.contiguous(), "values": values.contiguous(), "valid": valid.contiguous()}
    elif call == "truncate":
        store.truncate(name, int(numbers[0]))
    elif call == "reorder":
        store.reorder(name, numbers)
    elif call == "forget":
        store.forget(name)
    else:
        return {"numbers": torch.tensor([store.nbytes(name)])}
    return {"numbers": torch.empty(0)}


@torch.no_grad()
def serve() -> None:
    """Answer messages on standard input until it ends."""
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "0")) or torch.get_num_threads())
    requests, replies = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # nothing else may write between the replies
    store = TableStore()
    while (request := read_message(requests)[0]) is not None:
        try:
            reply = answer(store, request)
        except Exception as error:  # noqa: BLE001  (the caller raises it)
            text = f"{type(error).__name__}: {error}".encode()
            reply = {"error": torch.tensor(list(text), dtype=torch.uint8)}
        write_message(replies, reply)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):  # Ctrl-C reaches the whole group; the parent closes the pipe
        serve()
