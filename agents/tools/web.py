"""HTTP GET client of all tools, with limits on time, size, redirects, content types and addresses.

The model chooses the address, and an untrusted page may have led the model to it. Therefore this module
resolves host names itself and requires that every IP address is public. The connection goes to the checked IP
address. The name is not resolved again, which defeats DNS rebinding. Redirects are checked by the same rules.
Proxies of the environment are not used, because a proxy would resolve names itself.
"""

from __future__ import annotations

import contextlib
import contextvars
import ipaddress
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from encodings import normalize_encoding
from encodings.aliases import aliases
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import SplitResult, urljoin, urlsplit, urlunsplit

from scrubjay.agents.language.address import PORTS, RequestError, canonicalize_address
from scrubjay.agents.language.prompts import LocalizedError, Phrase
from scrubjay.agents.tools.base import UnreachableError

if TYPE_CHECKING:
    import socket
    from http.client import HTTPResponse

T = TypeVar("T")

_REDIRECTS = (301, 302, 303, 307, 308)
_PIECE = 65536
_ADDRESSES = 4
"""Maximum number of IP addresses tried per name."""
_MAX_REASON = 200
"""Maximum characters of a server's words, such as a status or a content type, in a message."""
_CHARSETS = """
ascii big5 big5hkscs cp866 cp874 cp932 cp949 cp950 euc_jis_2004 euc_jp euc_kr gb18030 gb2312 gbk hz
iso2022_jp iso2022_kr iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8
iso8859_9 iso8859_10 iso8859_11 iso8859_13 iso8859_14 iso8859_15 iso8859_16 koi8_r koi8_u latin_1
mac_cyrillic mac_roman shift_jis shift_jisx0213 tis_620 utf_8 utf_8_sig utf_16 utf_16_be utf_16_le
utf_32 cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258
"""
CHARSETS = frozenset(_CHARSETS.split())
"""Python's names of the charsets of web pages; others, such as idna and unicode_escape, are no charsets."""


# In IPv6 only 2000::/3 is public unicast. These parts of it are not public, or tunnel to IPv4 (RFC 6890,
# 9637).
_UNICAST = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC = tuple(
    ipaddress.IPv6Network(network)
    for network in ("2001::/23", "2001:db8::/32", "2002::/16", "3ffe::/16", "3fff::/20")
)
_TRANSLATED = ipaddress.IPv6Network("64:ff9b::/96")
# Some versions of Python class these as public, but they are reserved (RFC 6890; Oracle's metadata service)
# or answered by the cloud's host (Azure).
_SPECIAL = tuple(
    ipaddress.IPv4Network(network) for network in ("192.0.0.0/24", "192.88.99.0/24", "168.63.129.16/32")
)


@dataclass(frozen=True)
class WebConfig:
    """Limits of every request.

    Raises:
        ValueError: On a limit that would block all requests.
    """

    connect_seconds: float = 5.0
    """Timeout in seconds of name resolution, and of each connection attempt."""
    read_seconds: float = 10.0
    """Timeout in seconds of each read from the server."""
    total_seconds: float = 20.0
    """Timeout in seconds of a request with all its redirects."""
    max_bytes: int = 2_000_000
    """Maximum number of bytes of a page, after decompression; a longer page is truncated."""
    max_redirects: int = 5
    """Maximum number of redirects."""
    content_types: tuple[str, ...] = (
        "text/html",
        "application/xhtml+xml",
        "text/plain",
        "text/markdown",
        "application/json",
    )
    """Allowed content types."""
    ports: tuple[int, ...] = (80, 443, 8080, 8443)
    """Allowed ports; ignored if `allow_private` is set."""
    allow_private: bool = False
    """Allow private addresses and all ports; for tests and trusted networks only."""
    user_agent: str = "scrubjay-agent/1 (https://pypi.org/project/scrubjay/)"
    """User-Agent header of the requests."""

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "read_seconds", "total_seconds", "max_bytes"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name}={getattr(self, name)}: must be positive")
        if self.max_redirects < 0:
            raise ValueError(f"max_redirects={self.max_redirects}: must be at least 0")


class Page(NamedTuple):
    """Response of a server."""

    url: str
    """Final address after redirects."""
    content_type: str
    charset: str | None
    """Charset in the Content-Type header; None if the header names none of the charsets of web pages.

    The HTML of a page may declare a different charset.
    """
    content: bytes
    truncated: bool
    """True if the page was longer than `WebConfig.max_bytes`."""

    @property
    def text(self) -> str:
        """Content decoded with `charset`, or as UTF-8; undecodable bytes are replaced."""
        return self.content.decode(find_charset(self.charset) or "utf-8", "replace")

    def read_json(self) -> dict[str, Any]:
        """Return the JSON object of the page. Raises RequestError if the page is not a JSON object."""
        try:
            value = json.loads("" if self.truncated else self.text, parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            raise RequestError("web_not_json") from None
        if not isinstance(value, dict):
            raise RequestError("web_not_json")
        return value


class Web:
    """HTTP client with the limits of a `WebConfig`; thread-safe, uses a new connection for each request."""

    def __init__(self, config: WebConfig | None = None) -> None:
        self.config = config or WebConfig()

    def get(self, url: str) -> Page:
        """Return the page at `url`.

        Raises RequestError if the request is not allowed or the server reports an error. Raises
        UnreachableError if no complete answer arrives in time, or if the server reports that it cannot answer
        at present (status 429 or 500 and above).
        """
        deadline = time.monotonic() + self.config.total_seconds
        for _ in range(self.config.max_redirects + 1):
            parts = urlsplit(canonicalize_address(url))
            port = _port(parts)
            if port not in self.config.ports and not self.config.allow_private:
                raise RequestError("web_port", port=port, ports=", ".join(map(str, self.config.ports)))
            response = self._request(parts, deadline)
            if isinstance(response, Page):
                return response
            # Some servers send spaces in addresses; encode them as browsers do.
            target = response.strip().replace(" ", "%20")
            try:
                url = urljoin(urlunsplit(parts), target)
            except ValueError as error:
                raise RequestError("web_no_address", url=_short(target), error=error) from None
        raise RequestError("web_redirects", most=self.config.max_redirects, url=_short(url))

    def _request(self, parts: SplitResult, deadline: float) -> Page | str:
        """Return the page, or the target of a redirect."""
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
            sock = connection.sock = self._connect(parts.scheme, host, port, deadline)
            # A server that sends one byte a second never hits the read timeout: shut down its connection.
            watch = threading.Timer(max(0.0, deadline - time.monotonic()), _shut_down, [sock])
            watch.daemon = True
            watch.start()
            if parts.scheme == "https":
                sock.do_handshake()
            sock.settimeout(self.config.read_seconds)
            connection.request("GET", target, headers=headers)
            with connection.getresponse() as response:
                response_or_redirect = self._take(response, urlunsplit(parts))
        except (OSError, HTTPException, zlib.error, ValueError) as error:
            if time.monotonic() >= deadline:  # the shutdown may cause any of these errors
                raise UnreachableError("web_late", offline=False, host=host, seconds=seconds) from error
            if isinstance(error, UnreachableError | RequestError):
                raise
            if isinstance(error, TimeoutError):
                raise UnreachableError("web_silent", offline=False, host=host) from error
            message = _short(f"{type(error).__name__}: {error}")
            raise UnreachableError("web_broke_off", offline=False, host=host, error=message) from error
        finally:
            if watch:
                watch.cancel()
            connection.close()
        if time.monotonic() >= deadline:
            raise UnreachableError("web_late", offline=False, host=host, seconds=seconds)
        return response_or_redirect

    def _take(self, response: HTTPResponse, url: str) -> Page | str:
        status, where = response.status, response.getheader("Location")
        if status in _REDIRECTS and where:
            return where
        if status == 429 or status >= 500:
            raise UnreachableError(
                "web_status", offline=False, url=_short(url), status=status, phrase=_short(response.reason)
            )
        if status != 200:
            raise RequestError("web_status", url=_short(url), status=status, phrase=_short(response.reason))
        kind = response.headers.get_content_type() if response.getheader("Content-Type") else "none"
        if kind not in self.config.content_types:
            kinds = ", ".join(self.config.content_types)
            raise RequestError("web_kind", url=_short(url), kind=_short(kind), kinds=kinds)
        content, truncated = self._read(response)
        if response.length and not truncated:
            raise OSError(f"the response is incomplete: {response.length} bytes are missing")
        return Page(url, kind, find_charset(response.headers.get_param("charset")), content, truncated)

    def _read(self, response: HTTPResponse) -> tuple[bytes, bool]:
        """Return at most `max_bytes` bytes of the body, and True if the body was truncated.

        The body is decompressed in pieces, so a decompression bomb stays within the limit.
        """
        encoding = (response.getheader("Content-Encoding") or "identity").lower()
        if encoding not in ("identity", "gzip"):
            raise RequestError("web_packed", encoding=_short(repr(encoding)))
        unpack = zlib.decompressobj(wbits=31) if encoding == "gzip" else None
        limit, content = self.config.max_bytes, bytearray()
        while len(content) <= limit and (piece := response.read(_PIECE)):
            content += unpack.decompress(piece, limit + 1 - len(content)) if unpack else piece
        return bytes(content[:limit]), len(content) > limit

    def _connect(self, scheme: str, host: str, port: int, deadline: float) -> Any:
        """Return a socket connected to a checked IP address; the TLS handshake is not done yet."""
        import socket

        try:
            resolving = run_in_thread(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
            left = min(self.config.connect_seconds, deadline - time.monotonic())
            infos = resolving.result(max(0.0, left))
        except TimeoutError:
            raise UnreachableError("web_name_late", host=host) from None
        except (OSError, UnicodeError) as error:
            raise UnreachableError("web_name_unknown", host=host, error=error) from error
        addresses = list(dict.fromkeys((family, address) for family, _, _, _, address in infos))
        if not self.config.allow_private:
            for _, address in addresses:
                if not is_public(str(address[0])):
                    raise RequestError("web_private", host=host, address=address[0])
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
            except (OSError, ValueError) as error:
                plain.close()
                failure = error
        raise UnreachableError(
            "web_unreachable", host=host, failure=failure or Phrase("web_no_answer")
        ) from failure


def run_in_thread(function: Callable[[], T]) -> Future[T]:
    """Run `function` in a thread that does not keep the process alive.

    A thread cannot be killed: `function` continues in the background if the caller stops waiting for it.
    """
    future: Future[T] = Future()
    future.set_running_or_notify_cancel()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            future.set_result(context.run(function))
        except BaseException as error:  # noqa: BLE001
            # A tool that calls sys.exit() fails without ending the agent. A future cannot hold StopIteration.
            holds = isinstance(error, Exception) and not isinstance(error, StopIteration)
            future.set_exception(error if holds else RuntimeError(repr(error)))

    threading.Thread(target=run, name="tool", daemon=True).start()
    return future


def _wrap(plain: socket.socket, host: str) -> Any:
    import ssl

    context = ssl.create_default_context()
    try:
        import certifi
    except ImportError:
        pass
    else:  # some Python builds come without certificates
        context.load_verify_locations(certifi.where())
    return context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)


def _shut_down(connection: socket.socket) -> None:
    import socket

    with contextlib.suppress(OSError):  # closed already
        # Use the plain socket's method: the TLS socket's one would discard its keys under the reading thread.
        socket.socket.shutdown(connection, socket.SHUT_RDWR)


def _port(parts: SplitResult) -> int:
    return PORTS[parts.scheme] if parts.port is None else parts.port


def find_charset(label: object) -> str | None:
    """Return Python's name of a charset of web pages; None if `label` names none.

    `label` is the value of a header, which the email package may return as a tuple.
    """
    if isinstance(label, tuple):  # charset*=utf-8''gbk (RFC 2231): charset, language and value
        label = label[2]
    if not isinstance(label, str) or not label.isascii():
        return None
    # The names are only looked up in a table: `codecs.lookup` would import a module by the page's word.
    name = normalize_encoding(label.strip().strip("'\"").lower())
    name = aliases.get(name, name)
    return name if name in CHARSETS else None


@contextlib.contextmanager
def expect_format() -> Iterator[None]:
    """Raise RequestError if the block, which reads the JSON of a service, meets values of another form."""
    try:
        yield
    except LocalizedError:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        message = _short(f"{type(error).__name__}: {error}")
        raise RequestError("web_format", error=message) from error


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _short(text: str) -> str:
    return text if len(text) <= _MAX_REASON else text[: _MAX_REASON - 3] + "..."


def is_public(address: str) -> bool:
    """Return True if a numeric IP address is public.

    Return False for private, loopback, link-local, carrier-grade NAT, multicast, reserved and documentation
    addresses, also if an IPv6 address embeds such an address. The cloud metadata services at 169.254.169.254
    are link-local. Return False for strings that are not IP addresses.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id:
            return False
        inner = ip.ipv4_mapped
        if ip in _TRANSLATED:  # NAT64: networks without IPv4 reach IPv4 through this prefix
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if inner is None:
            return ip in _UNICAST and not any(ip in network for network in _NOT_PUBLIC)
        ip = inner
    return (
        ip.is_global
        and not ip.is_multicast
        and not ip.is_reserved
        and not any(ip in network for network in _SPECIAL)
    )
