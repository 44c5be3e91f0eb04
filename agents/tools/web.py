"""The only way to the network for tools: HTTP GET with limits on time, size, redirects, kinds and addresses.

A model chooses the address, and a page may have chosen it for the model; so names are resolved here, every
address must be public, and the connection goes to the address that was checked, never to the name again: a
name that resolves differently the second time gains nothing. A redirect is a new address under the same
rules. Proxies of the environment are not used, since they would resolve names by themselves.
"""

from __future__ import annotations

import contextlib
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from scrubjay.agents.language.address import PORTS, Refused, canonical
from scrubjay.agents.language.prompts import Phrase
from scrubjay.agents.tools.addresses import is_public
from scrubjay.agents.tools.base import Unreachable

if TYPE_CHECKING:
    import socket
    from http.client import HTTPResponse

T = TypeVar("T")

_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 65536
_ADDRESSES = 4
"""How many addresses of one name are tried."""


@dataclass(frozen=True)
class WebConfig:
    """Limits of every request. Raises ValueError on one that lets nothing through."""

    connect_seconds: float = 5.0
    """Longest wait for a name's address, and for each connection."""
    read_seconds: float = 10.0
    """Longest silence of a server."""
    total_seconds: float = 20.0
    """Longest time of a request with its redirects, however the server drips."""
    most_bytes: int = 2_000_000
    """What is read of a page, unpacked; the rest is left, and the page says so."""
    most_redirects: int = 5
    """Redirects followed."""
    content_types: tuple[str, ...] = (
        "text/html",
        "application/xhtml+xml",
        "text/plain",
        "text/markdown",
        "application/json",
    )
    """Kinds of content that are read."""
    ports: tuple[int, ...] = (80, 443, 8080, 8443)
    """Ports that may be called, unless private addresses are allowed."""
    allow_private: bool = False
    """Reach private addresses and all ports: for tests and for trusted networks only."""
    user_agent: str = "scrubjay-agent/1 (https://pypi.org/project/scrubjay/)"
    """How requests introduce themselves."""

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "read_seconds", "total_seconds", "most_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.most_redirects < 0:
            raise ValueError(f"most_redirects must be at least 0, got {self.most_redirects}")


class Page(NamedTuple):
    """What a server sent."""

    url: str
    """Where it was found in the end."""
    content_type: str
    charset: str | None
    """As the server says; a page of HTML may name another."""
    content: bytes
    truncated: bool
    """The page was longer than what is read."""

    @property
    def text(self) -> str:
        """The content, decoded as the server says, else as UTF-8; what cannot be is replaced."""
        try:
            return self.content.decode(self.charset or "utf-8", "replace")
        except LookupError:
            return self.content.decode("utf-8", "replace")


class Web:
    """Fetches pages under a `WebConfig`; holds no connection between requests and serves several threads."""

    def __init__(self, config: WebConfig | None = None) -> None:
        self.config = config or WebConfig()

    def get(self, url: str) -> Page:
        """Return the page at `url`.

        Raises Refused if the rules forbid it or the server says it is not there, Unreachable if there was no
        answer in time.
        """
        deadline = time.monotonic() + self.config.total_seconds
        for _ in range(self.config.most_redirects + 1):
            parts = self._check(url)
            found = self._request(parts, deadline)
            if isinstance(found, Page):
                return found
            # Servers send blanks in addresses, and mean what browsers make of them.
            url = urljoin(urlunsplit(parts), found.strip().replace(" ", "%20"))
        raise Refused("web_redirects", most=self.config.most_redirects, url=_short(url))

    def _check(self, url: str) -> SplitResult:
        """Return the parts of an address that may be asked for. Raises Refused if it may not."""
        parts = urlsplit(canonical(url))
        port = _port(parts)
        if port not in self.config.ports and not self.config.allow_private:
            raise Refused("web_port", port=port, ports=", ".join(map(str, self.config.ports)))
        return parts

    def _request(self, parts: SplitResult, deadline: float) -> Page | str:
        """Return the page, or where a redirect leads."""
        from http.client import HTTPConnection, HTTPException

        host, port = parts.hostname or "", _port(parts)
        connection = HTTPConnection(host, port)
        headers = {
            "Host": parts.netloc,
            "User-Agent": self.config.user_agent,
            "Accept": ", ".join(self.config.content_types),
            "Accept-Encoding": "gzip",
            "Connection": "close",
        }
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        seconds = f"{self.config.total_seconds:g}"
        watch = None
        try:
            connected = connection.sock = self._connect(parts.scheme, host, port, deadline)
            # A server that drips a byte a second never falls silent: only a shutdown from outside ends it.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut, [connected])
            watch.daemon = True
            watch.start()
            if parts.scheme == "https":
                connected.do_handshake()
            connected.settimeout(self.config.read_seconds)
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                found = self._take(response, urlunsplit(parts))
        except (OSError, HTTPException, zlib.error, Refused) as error:
            if time.monotonic() >= deadline:  # what the watch cut off may look like anything
                raise Unreachable("web_late", offline=False, host=host, seconds=seconds) from error
            if isinstance(error, Unreachable | Refused):
                raise
            if isinstance(error, TimeoutError):
                raise Unreachable("web_silent", offline=False, host=host) from error
            said = f"{type(error).__name__}: {error}"
            raise Unreachable("web_broke_off", offline=False, host=host, error=said) from error
        finally:
            if watch:
                watch.cancel()
            connection.close()
        if time.monotonic() >= deadline:
            raise Unreachable("web_late", offline=False, host=host, seconds=seconds)
        return found

    def _take(self, response: HTTPResponse, url: str) -> Page | str:
        status, where = response.status, response.getheader("Location")
        if status in _REDIRECTS and where:
            return where
        if status == 429 or status >= 500:
            raise Unreachable(
                "web_status", offline=False, url=_short(url), status=status, phrase=response.reason
            )
        if status != 200:
            raise Refused("web_status", url=_short(url), status=status, phrase=response.reason)
        kind = response.headers.get_content_type() if response.getheader("Content-Type") else "none"
        if kind not in self.config.content_types:
            kinds = ", ".join(self.config.content_types)
            raise Refused("web_kind", url=_short(url), kind=kind, kinds=kinds)
        content, truncated = self._read(response)
        if response.length and not truncated:
            raise OSError(f"{response.length} bytes are missing")
        return Page(url, kind, response.headers.get_content_charset(), content, truncated)

    def _read(self, response: HTTPResponse) -> tuple[bytes, bool]:
        """Return at most `most_bytes` of the body, unpacked by pieces so that a small bomb stays small."""
        encoding = (response.getheader("Content-Encoding") or "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise Refused("web_packed", encoding=repr(encoding))
        unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        limit, content = self.config.most_bytes, bytearray()
        while len(content) <= limit and (piece := response.read(_PIECE)):
            content += unpack.decompress(piece, limit + 1 - len(content)) if unpack else piece
        return bytes(content[:limit]), len(content) > limit

    def _connect(self, scheme: str, host: str, port: int, deadline: float) -> Any:
        """Return a socket, not yet shaken hands with, to an address that was checked."""
        import socket

        try:
            found = within(
                min(self.config.connect_seconds, deadline - time.monotonic()),
                lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM),
            )
        except TimeoutError:
            raise Unreachable("web_name_late", host=host) from None
        except (OSError, UnicodeError) as error:
            raise Unreachable("web_name_unknown", host=host, error=error) from error
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in found))
        if not self.config.allow_private:
            for _, address in addresses:
                if not is_public(str(address[0])):
                    raise Refused("web_private", host=host, address=address[0])
        failure: Exception | None = None
        for family, address in addresses[:_ADDRESSES]:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            plain = socket.socket(family, socket.SOCK_STREAM)
            try:
                plain.settimeout(min(self.config.connect_seconds, left))
                plain.connect(address)
                return _wrap(plain, host) if scheme == "https" else plain
            except OSError as error:
                plain.close()
                failure = error
        raise Unreachable(
            "web_unreachable", host=host, failure=failure or Phrase("web_no_answer")
        ) from failure


def within(seconds: float, work: Callable[[], T]) -> T:
    """Return what `work` returns, or raise what it raises. Raises TimeoutError when the time is over.

    A thread cannot be ended from outside: work that is late goes on unseen, and its result is dropped.
    """
    done: Future[T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except Exception as error:  # noqa: BLE001, which is raised below
            done.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return done.result(max(0.0, seconds))


def _wrap(plain: socket.socket, host: str) -> Any:
    import ssl

    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        pass
    else:  # some Pythons come without certificates
        context.load_verify_locations(certifi.where())
    return context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)


def _shut(connected: socket.socket) -> None:
    import socket

    with contextlib.suppress(OSError):  # closed already
        # As a plain socket: that of TLS would forget its keys under the reading thread.
        socket.socket.shutdown(connected, socket.SHUT_RDWR)


def _port(parts: SplitResult) -> int:
    return PORTS[parts.scheme] if parts.port is None else parts.port


def _short(url: str) -> str:
    return url if len(url) <= 200 else url[:197] + "..."
