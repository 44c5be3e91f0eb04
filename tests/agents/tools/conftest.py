"""Local HTTP server and name resolution for the tests of tools."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """Ignore clients that close the connection."""


class Site:
    """Server whose routes map a path to `(content type, body)` or to a function of the handler."""

    def __init__(self, routes):
        self.paths, self.hosts = [], []
        site = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                site.paths.append(self.path)
                site.hosts.append(self.headers["Host"])
                route = routes.get(self.path.partition("?")[0])
                if route is None:
                    self.send_error(404)
                elif callable(route):
                    route(self)
                else:
                    self.answer(*route)

            def answer(self, kind, body, status=200, **headers):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                for name, value in headers.items():
                    self.send_header(name.replace("_", "-"), value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = Server(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def stop(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


@pytest.fixture
def serve():
    sites = []

    def start(routes):
        sites.append(Site(routes))
        return sites[-1]

    yield start
    for site in sites:
        site.stop()


@pytest.fixture
def resolve(monkeypatch):
    """Resolve names to a list of answers in order, and connect public addresses to a local server."""
    queries, connections = [], []
    real_connect = socket.socket.connect

    def start(answers, port):
        def getaddrinfo(host, number, *_, **__):
            queries.append(host)
            ip = answers[host].pop(0) if len(answers[host]) > 1 else answers[host][0]
            family = socket.AF_INET6 if ":" in ip else socket.AF_INET
            return [(family, socket.SOCK_STREAM, 6, "", (ip, number))]

        def connect(self, address):
            connections.append(address[0])
            real_connect(self, ("127.0.0.1", port))

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr(socket.socket, "connect", connect)
        return queries, connections

    return start
