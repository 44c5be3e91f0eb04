"""The HTTP client against a local server: allowed and rejected addresses, limits and timeouts."""

import gzip
import random
import socket
import time
import tracemalloc

import pytest

from scrubjay.agents.language.address import RequestError
from scrubjay.agents.tools.base import UnreachableError
from scrubjay.agents.tools.web import CHARSETS, Page, Web, WebConfig, find_charset

OPEN = WebConfig(allow_private=True, read_seconds=30, connect_seconds=30, total_seconds=60)


PUBLIC = "93.184.216.34"


def redirect(where, status=302):
    return lambda handler: handler.answer("text/html", b"", status, Location=where)


def test_a_page_arrives_whole(serve):
    site = serve({"/a%20b": ("text/html; charset=gbk", "松鸦".encode("gbk"))})
    page = Web(OPEN).get(site.url + "a%20b?question=松鸦&n=1#part")
    assert (page.text, page.content_type, page.charset, page.truncated) == ("松鸦", "text/html", "gbk", False)
    assert site.paths == ["/a%20b?question=%E6%9D%BE%E9%B8%A6&n=1"]
    assert site.hosts == [f"127.0.0.1:{site.port}"]


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "localhost",
        "2130706433",  # decimal
        "0x7f000001",
        "0177.0.0.1",  # octal
        "0x7f.1",
        "127.1",
        "0",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]",
        "[fe80::1]",
        "[fd00:ec2::254]",
        "10.0.0.1",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "192.88.99.1",
        "198.18.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "127。0。0。1",  # ideographic full stops, which IDNA maps to dots
        "①②⑦.0.0.1",
    ],
)
def test_an_address_that_is_not_public_is_not_opened(address, monkeypatch):
    def connect(*_):
        pytest.fail(f"a connection to {address} was tried")

    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(RequestError, match="not a public address"):
        Web(WebConfig(connect_seconds=2)).get(f"http://{address}/")


def test_a_local_server_is_reached_only_with_the_flag(serve):
    site = serve({"/": ("text/plain", b"secret")})
    ports = (site.port,)
    with pytest.raises(RequestError, match="not a public address"):
        Web(WebConfig(ports=ports)).get(site.url)
    assert site.paths == []
    assert Web(OPEN).get(site.url).text == "secret"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://example.com/a b", "U\\+0020"),
        ("http://example.com/\n", "U\\+000A"),
        ("http:\n//example.com/", "U\\+000A"),
        ("http://example.com\u3000/", "U\\+3000"),
        ("http://example.com\u200b/", "U\\+200B"),
        ("http://example.com\\x", "U\\+005C"),
        ("http://ex%61mple.com/", "is not a host name"),
        ("http://example.com:0/", "port 0"),
        (f"http://example.com/{'a' * 9000}", "more than 8192"),
        ("file:///etc/passwd", "must begin with http"),
        ("ftp://example.com/", "must begin with http"),
        ("example.com", "must begin with http"),
        ("http://", "must begin with http"),
        ("http://user:word@example.com/", "user name"),
        ("http://example.com:22/", "port 22"),
        ("http://example.com:99999/", "not a web address"),
        ("http://[::1/", "not a web address"),
        (f"http://{'a' * 70}.com/", "not a web address"),
    ],
)
def test_what_is_no_web_address_is_refused(url, why):
    with pytest.raises(RequestError, match=why):
        Web().get(url)


def test_redirects_are_followed_to_an_end(serve):
    routes = {f"/{n}": redirect(f"/{n + 1}", (301, 302, 303, 307, 308)[n]) for n in range(5)}
    site = serve(routes | {"/5": ("text/plain", b"here"), "/loop": redirect("loop")})
    page = Web(OPEN).get(site.url + "0")
    assert (page.text, page.url) == ("here", site.url + "5")
    with pytest.raises(RequestError, match="more than 5 redirects"):
        Web(OPEN).get(site.url + "loop")
    assert site.paths.count("/loop") == 6


@pytest.mark.parametrize("inside", ["127.0.0.1", "[::1]", "2130706433", "169.254.169.254"])
def test_a_redirect_to_a_private_address_is_not_followed(serve, resolve, inside):
    site = serve({"/": lambda handler: redirect(f"http://{inside}/secret")(handler)})
    name = inside.strip("[]")
    numeric = "127.0.0.1" if name == "2130706433" else name
    _, connections = resolve({"jay.example": [PUBLIC], name: [numeric]}, site.port)
    with pytest.raises(RequestError, match="not a public address"):
        Web().get("http://jay.example/")
    assert site.paths == ["/"]
    assert connections == [PUBLIC]


def test_the_address_that_was_checked_is_the_one_connected_to(serve, resolve):
    """DNS rebinding, from a public to a private address after the check, has no effect."""
    site = serve({"/": ("text/plain", b"public"), "/again": redirect("/")})
    queries, connections = resolve({"jay.example": [PUBLIC, "127.0.0.1"]}, site.port)
    assert Web().get("http://jay.example/").text == "public"
    assert queries == ["jay.example"]
    assert connections == [PUBLIC]
    assert site.hosts == ["jay.example"]
    with pytest.raises(RequestError, match=r"jay.example is at 127\.0\.0\.1"):
        Web().get("http://jay.example/")
    assert len(site.paths) == 1


def test_every_redirect_resolves_and_checks_anew(serve, resolve):
    site = serve({"/": redirect("/next"), "/next": ("text/plain", b"private")})
    _, connections = resolve({"jay.example": [PUBLIC, "10.0.0.1"]}, site.port)
    with pytest.raises(RequestError, match=r"10\.0\.0\.1"):
        Web().get("http://jay.example/")
    assert connections == [PUBLIC]


def test_a_name_with_one_private_address_is_not_opened(monkeypatch):
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 80)) for address in (PUBLIC, "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: infos)
    with pytest.raises(RequestError, match=r"10\.0\.0\.1"):
        Web().get("http://jay.example/")


def test_a_page_that_is_too_long_is_cut_and_says_so(serve):
    site = serve({"/long": ("text/plain", b"x" * 5000), "/fits": ("text/plain", b"x" * 1000)})
    web = Web(WebConfig(allow_private=True, max_bytes=1000))
    page = web.get(site.url + "long")
    assert (len(page.content), page.truncated) == (1000, True)
    page = web.get(site.url + "fits")
    assert (len(page.content), page.truncated) == (1000, False)


def test_a_packed_page_is_unpacked_up_to_the_limit(serve):
    def packed(body):
        content = gzip.compress(body)
        return lambda handler: handler.answer("text/plain", content, Content_Encoding="gzip")

    site = serve({"/page": packed(b"jay " * 50), "/bomb": packed(b"\0" * 30_000_000)})
    web = Web(WebConfig(allow_private=True, max_bytes=1000))
    assert web.get(site.url + "page").text == "jay " * 50
    tracemalloc.start()
    page = web.get(site.url + "bomb")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(page.content), page.truncated) == (1000, True)
    assert peak < 5_000_000


@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "application/zip"])
def test_other_kinds_of_content_are_refused_unread(serve, kind):
    site = serve({"/": (kind, b"x")})
    with pytest.raises(RequestError, match=kind):
        Web(OPEN).get(site.url)


def test_errors_of_the_page_and_of_the_server_differ(serve):
    site = serve({"/busy": lambda handler: handler.answer("text/html", b"", 503)})
    with pytest.raises(RequestError, match="404"):
        Web(OPEN).get(site.url)
    with pytest.raises(UnreachableError, match="503") as raises:
        Web(OPEN).get(site.url + "busy")
    assert not raises.value.offline


def test_a_server_that_is_silent_is_left():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        web = Web(WebConfig(allow_private=True, read_seconds=0.1))
        with pytest.raises(UnreachableError, match="stopped sending data"):
            web.get(f"http://127.0.0.1:{silent.getsockname()[1]}/")


@pytest.mark.parametrize("where", ["header", "body", "endless"])
def test_a_server_that_drips_is_left_at_the_deadline(serve, where):
    completed_drips = []

    def drip(handler):
        if where == "header":
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nX-Drip: ")
        else:
            length = "" if where == "endless" else "Content-Length: 1000\r\n"
            handler.wfile.write(f"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{length}\r\n".encode())
        for _ in range(300):
            handler.wfile.write(b"x")
            handler.wfile.flush()
            time.sleep(0.02)
        completed_drips.append(where)

    site = serve({"/": drip})
    with pytest.raises(UnreachableError, match=r"no complete answer within 0\.3 s"):
        Web(WebConfig(allow_private=True, total_seconds=0.3)).get(site.url)
    assert not completed_drips


def test_an_answer_that_ends_early_is_not_taken_for_whole(serve):
    def send_half(handler):
        handler.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 1000\r\n\r\nhalf"
        )

    site = serve({"/": send_half})
    with pytest.raises(UnreachableError, match="996 bytes are missing"):
        Web(OPEN).get(site.url)


def test_a_name_that_never_resolves_is_left(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1))
    with pytest.raises(UnreachableError, match="in time"):
        Web(WebConfig(connect_seconds=0.05)).get("http://jay.example/")


def test_a_port_where_nobody_listens_is_unreachable():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(UnreachableError, match="cannot be reached"):
        Web(OPEN).get(f"http://127.0.0.1:{port}/")


def test_a_server_without_the_keys_of_its_name_is_not_trusted(serve):
    site = serve({"/": ("text/plain", b"x")})
    with pytest.raises(UnreachableError, match="SSL"):
        Web(OPEN).get(f"https://127.0.0.1:{site.port}/")


def test_limits_that_let_nothing_through_are_refused():
    with pytest.raises(ValueError, match="total_seconds=0: must be positive"):
        WebConfig(total_seconds=0)
    with pytest.raises(ValueError, match="max_redirects"):
        WebConfig(max_redirects=-1)


LOCATIONS = [
    b"http://[::1",
    b"http://[::1]x/",
    b"//[",
    b"http://a:b:c/",
    b"http://\xff\xfe/",
    b"http://xn--\x80/",
    b"http://" + b"a" * 5000,
    b"http://[v1.a]/",
    b"http://%5b::1%5d/",
    b"http://\xef\xbc\xbb::1\xef\xbc\xbd/",
    b"http://a/\xed\xa0\x80",
    b"http://127.0.0.1:0/",
    b"mailto:x",
]
TYPES = [
    b"text/plain; charset=idna",
    b'text/plain; charset="\x00bad"',
    b"text/plain; charset=undefined",
    b"text/plain; charset=unicode_escape",
    b"text/plain; charset=zlib",
    b"text/plain; charset=utf-8\xff",
    b"text/plain; charset*=utf-8''x",
    b"text/plain; charset*0*=x; charset*1=y; charset*x=z",
    b"text/plain; charset=..%2f..",
    b"text/plain; charset=" + b"x" * 5000,
    b"text/plain;;;;",
]
STATES = [
    b"HTTP/1.1 99999 x\r\n\r\n",
    b"HTTP/1.1 500 " + b"x" * 60_000 + b"\r\n\r\n",
    b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\nContent-Type: text/plain\r\n\r\n-5\r\nhello\r\n",
    b"HTTP/1.1 200 x\r\nContent-Type: text/plain\r\nContent-Encoding: gzip\r\n\r\n\x1f\x8b\x08",
    b"HTTP/1.1 200 x\r\nContent-Type: " + b"x" * 60_000 + b"/y\r\n\r\n",
    b"x" * 70_000,
    b"",
]


def mutate(pieces, count):
    """Return `count` malformed values, made of pieces of other malformed values and of random bytes."""
    draw = random.Random(count)
    noise = [bytes([draw.randrange(256)]) for _ in range(40)] + [
        b"[",
        b"]",
        b":",
        b"%",
        b"\x00",
        b"'",
        b"*0*=",
    ]
    for _ in range(count):
        value = bytearray(draw.choice(pieces)[:100])
        for _ in range(draw.randrange(1, 4)):
            place = draw.randrange(len(value) + 1)
            value[place : place + draw.randrange(3)] = draw.choice(noise)
        yield bytes(value).replace(b"\r", b"").replace(b"\n", b"")


def test_malformed_answers_raise_no_other_error(serve, monkeypatch):
    """The errors are RequestError and UnreachableError, and never longer than a page of text."""
    location = [b"HTTP/1.1 302 x\r\nLocation: " + value for value in (*LOCATIONS, *mutate(LOCATIONS, 150))]
    kind = [b"HTTP/1.1 200 x\r\nContent-Type: " + value for value in (*TYPES, *mutate(TYPES, 150))]
    answers = STATES + [head + b"\r\nContent-Length: 3\r\n\r\nabc" for head in location + kind]

    def send(handler):
        handler.wfile.write(answers[int(handler.path[1:])])
        handler.close_connection = True

    def resolve(host, port, **options):
        if host != "127.0.0.1":
            raise socket.gaierror(f"{host} is not known")
        return real_resolve(host, port, **options)

    real_resolve = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    site = serve({f"/{number}": send for number in range(len(answers))})
    outcomes, web = {}, Web(OPEN)
    for number in range(len(answers)):
        try:
            outcomes[web.get(f"{site.url}{number}").text] = str
        except (RequestError, UnreachableError) as error:
            outcomes[str(error)] = type(error)
    assert {*outcomes.values()} == {str, RequestError, UnreachableError}
    assert max(map(len, outcomes)) < 1000


@pytest.mark.parametrize(
    "label", ["idna", "punycode", "undefined", "unicode_escape", "zlib", "\0", "é", "x" * 5000]
)
def test_what_is_no_charset_of_pages_is_not_decoded(label):
    assert find_charset(label) is None
    assert Page("", "text/plain", label, "松鸦".encode(), False).text == "松鸦"


def test_charsets_of_pages_are_decoded():
    labels = [
        "UTF-8",
        "iso-8859-1",
        "windows-1252",
        "GB2312",
        "gb18030",
        "Big5",
        "Shift_JIS",
        "euc-kr",
        "koi8-r",
    ]
    assert None not in map(find_charset, labels)
    noise = bytes(range(256)) * 3
    for charset in CHARSETS:
        assert Page("", "text/plain", charset, "jay ".encode(charset), False).text == "jay "
        assert Page("", "text/plain", charset, noise, False).text.encode()


@pytest.mark.parametrize("body", [b"[1]", b"5", b"null", b"{", b'{"a": NaN}', b"[" * 100_000, b"9" * 5000])
def test_an_answer_that_is_no_json_object_is_refused(body):
    with pytest.raises(RequestError, match="not JSON"):
        Page("", "application/json", None, body, False).read_json()
