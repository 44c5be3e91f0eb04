"""Stores of keys and values: in this process, and in a process of their own.

A message to a process is a safetensors file of tensors behind its length, so neither side unpickles anything.
`StoreProcess.bytes_sent` and `bytes_received` count all of them.
"""

from __future__ import annotations

import copy
import math
import os
import selectors
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from scrubjay.kernels.normalisers import Part
from scrubjay.memory.context.elsewhere.table import Columns, Table
from scrubjay.memory.context.policies.dense import Scoring

_LENGTH = struct.Struct("<Q")
_MOST_BYTES = 2**40
_MOST_REPLIES = 64
_CALLS = ("append", "attend", "read", "truncate", "reorder", "copy", "forget", "nbytes")
_ENDED = (
    "the process of a store has ended ({}), and its keys and values are lost; begin with a new store and a "
    "new cache"
)


@runtime_checkable
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

    def copy(self, name: int, new_name: int) -> None:
        """Copy a table."""
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

    def copy(self, name: int, new_name: int) -> None:
        """Copy a table."""
        self._tables[new_name] = copy.deepcopy(self._tables[name])

    def forget(self, name: int) -> None:
        """Delete a table, if it exists."""
        self._tables.pop(name, None)

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        table = self._tables.get(name)
        return 0 if table is None else table.nbytes


class StoreProcess:
    """Store in a process of its own on this machine; close it, or use it in a `with` block.

    Several caches and threads may share it. The process ends with this one, and it does not receive Ctrl-C.

    Args:
        num_threads: Number of CPU threads of the process.
    """

    def __init__(self, num_threads: int = 1) -> None:
        if num_threads < 1:
            raise ValueError(f"num_threads={num_threads}: must be at least 1")
        self.bytes_sent = self.bytes_received = 0
        command = [sys.executable, "-P", "-m", __name__, str(num_threads)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        self._lock = threading.RLock()
        self._is_closed = False
        self._num_sent = self._num_received = 0
        self._replies: dict[int, dict[str, Tensor]] = {}
        self._forgotten_names: list[int] = []

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def append(self, name: int, new: Columns) -> None:
        """Add tokens at the end of a table; the first call creates it."""
        check_no_gradient(*new)
        keys, values, valid = new
        self._call("append", name, keys=keys, values=values, valid=valid)

    def begin_attention(
        self, name: int, query: Float[Tensor, "batch heads length width"], scoring: Scoring
    ) -> Callable[[], Part]:
        """Send the queries; return the function that waits for the part of the attention.

        Args:
            name: Table.
            query: Queries of the new tokens.
            scoring: The model's scale and soft cap.
        """
        check_no_gradient(query)
        cap = float("nan") if scoring.cap is None else scoring.cap
        numbers = torch.tensor([scoring.scale, cap], dtype=torch.float64)
        number = self._send("attend", name, query=query, numbers=numbers)

        def wait() -> Part:
            reply = self._receive(number)
            return reply["output"].to(query.device), reply["normaliser"].to(query.device)

        return wait

    def read(self, name: int, first: int, last: int) -> Columns:
        """Return the tokens from `first` to `last - 1` of a table.

        Args:
            name: Table.
            first: Index of the first token.
            last: Index after the last token.
        """
        reply = self._call("read", name, numbers=torch.tensor([first, last]))
        return reply["keys"], reply["values"], reply["valid"]

    def truncate(self, name: int, columns: int) -> None:
        """Keep only the first tokens of a table."""
        self._call("truncate", name, numbers=torch.tensor([columns]))

    def reorder(self, name: int, rows: Int[Tensor, " selected"]) -> None:
        """Select batch rows of a table."""
        self._call("reorder", name, numbers=rows)

    def copy(self, name: int, new_name: int) -> None:
        """Copy a table."""
        self._call("copy", name, numbers=torch.tensor([new_name]))

    def forget(self, name: int) -> None:
        """Delete a table, if it exists, before the next call."""
        # The garbage collector may call this between a request and its reply.
        self._forgotten_names.append(name)

    def nbytes(self, name: int) -> int:
        """Return the bytes of a table; 0 if it does not exist."""
        return int(self._call("nbytes", name)["numbers"][0])

    def close(self) -> None:
        """End the process; its keys and values are lost."""
        self._is_closed = True
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        with suppress(Exception):  # at exit, modules may be gone
            self.close()

    def __repr__(self) -> str:
        return f"<StoreProcess with the process {self.pid}>"

    def _call(self, call: str, name: int, **tensors: Tensor) -> dict[str, Tensor]:
        return self._receive(self._send(call, name, **tensors))

    def _send(self, call: str, name: int, **tensors: Tensor) -> int:
        """Send a request, and return its number."""
        message = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
        message["call"] = torch.tensor([_CALLS.index(call), name])
        with self._lock:
            while self._forgotten_names and call != "forget":
                self._call("forget", self._forgotten_names.pop())
            # The process reads no request while it writes a reply.
            while self._num_received < self._num_sent:
                self._read_reply()
            with self._whole_message() as process:
                self.bytes_sent += write_message(process.stdin, message)
                self._num_sent += 1
            return self._num_sent

    def _receive(self, number: int) -> dict[str, Tensor]:
        """Return the reply to a request."""
        with self._lock:
            while number not in self._replies and self._num_received < self._num_sent:
                self._read_reply()
            if number not in self._replies:
                raise RuntimeError(f"reply {number} of a store was not awaited in time; repeat the call")
            reply = self._replies.pop(number)
        if "error" in reply:
            raise RuntimeError(f"the store failed: {bytes(reply['error'].tolist()).decode()}")
        return reply

    def _read_reply(self) -> None:
        if not self._is_closed and self._process.stdout is not None:
            with selectors.DefaultSelector() as selector:
                selector.register(self._process.stdout, selectors.EVENT_READ)
                selector.select()  # Ctrl-C here loses nothing
        with self._whole_message() as process:
            reply, size = read_message(process.stdout)
            if reply is None:
                raise EOFError
            self.bytes_received += size
            self._num_received += 1
            self._replies[self._num_received] = reply
        # A caller that an exception stopped never asks for its reply.
        self._replies.pop(self._num_received - _MOST_REPLIES, None)

    @contextmanager
    def _whole_message(self) -> Iterator[Any]:
        """Close the store if an exception stops a message in the middle, because the rest cannot be read."""
        if self._is_closed:
            raise RuntimeError(_ENDED.format("closed"))
        try:
            yield self._process
        except (EOFError, OSError) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=5)  # for its exit code
            self.close()
            raise RuntimeError(_ENDED.format(f"exit code {self._process.returncode}")) from error
        except BaseException:
            self.close()
            raise


def check_no_gradient(*tensors: Tensor) -> None:
    """Raise ValueError if gradients would have to flow through a store in another process."""
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        raise ValueError(
            "no gradients flow through a store in another process; call the model inside torch.no_grad(), "
            "or train with make('full')"
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
    elif call == "copy":
        store.copy(name, int(numbers[0]))
    elif call == "forget":
        store.forget(name)
    else:
        return {"numbers": torch.tensor([store.nbytes(name)])}
    return {"numbers": torch.empty(0)}


@torch.no_grad()
def serve(num_threads: int) -> None:
    """Answer messages on standard input until it ends."""
    torch.set_num_threads(num_threads)
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
    with suppress(BrokenPipeError):  # the other process has ended
        serve(int(sys.argv[1]))
