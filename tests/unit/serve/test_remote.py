"""Fetching a picture from a host on the allow-list: a real HTTPS server on this machine, with a certificate of its own."""

import asyncio
import contextlib
import gzip
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from omnifarm.errors import RequestError
from serve.errors import TooLargeError
from serve.remote import fetch_picture
from serve.settings import ServeSettings

PICTURE = b"\x89PNG" + b"p" * 3000


class Pictures(BaseHTTPRequestHandler):
    """Answers by the path it is asked for."""

    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Host"]))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/photo.png?from=moved")
            self.end_headers()
            return
        body = {"/photo.png": PICTURE, "/large.png": b"x" * 5000, "/bomb.png": gzip.compress(b"x" * 10**7)}.get(
            self.path.partition("?")[0]
        )
        self.send_response(404 if body is None else 200)
        if self.path == "/bomb.png":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        with contextlib.suppress(OSError):  # who asked has had enough
            self.wfile.write(body or b"")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("certificate") / "both.pem"
    subject = ["-subj", "/CN=pictures.example", "-addext", "subjectAltName=DNS:pictures.example"]
    made = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subprocess.run([*made, *subject, "-days", "2", "-keyout", path, "-out", path.with_suffix(".crt")], check=True, capture_output=True)  # fmt: skip
    path.write_text(path.read_text() + path.with_suffix(".crt").read_text())
    return path


@pytest.fixture(scope="module")
def port(certificate: Path) -> Iterator[int]:
    server = HTTPServer(("127.0.0.1", 0), Pictures)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join(10)
    server.server_close()


@pytest.fixture
def fetch(port: int, certificate: Path) -> "Fetch":
    return Fetch(port, certificate)


class Fetch:
    """Asks for a path of a host, whose name leads to this machine."""

    def __init__(self, port: int, certificate: Path) -> None:
        self._port, self._trust = port, ssl.create_default_context(cafile=str(certificate.with_suffix(".crt")))
        self.resolved: list[str] = []

    def __call__(self, path: str, *, host: str = "pictures.example") -> bytes:
        hosts = f"pictures.example:{self._port},other.example:{self._port}"
        settings = ServeSettings(store="unused", fetch_hosts=hosts, max_image_bytes=4000)

        async def resolve(name: str, port: int) -> str:
            self.resolved.append(f"{name}:{port}")
            return "127.0.0.1"

        async def ask() -> bytes:
            async with httpx.AsyncClient(verify=self._trust) as client:
                url = f"https://{host}:{self._port}{path}"
                return await fetch_picture(url, settings=settings, client=client, resolve=resolve)

        return asyncio.run(ask())


def test_a_picture_comes_from_the_address_that_was_looked_at_under_the_hosts_name(fetch: Fetch, port: int) -> None:
    assert fetch("/photo.png?size=1") == PICTURE
    assert Pictures.asked[-1] == ("/photo.png?size=1", f"pictures.example:{port}")
    assert fetch.resolved == [f"pictures.example:{port}"]


def test_a_redirection_is_not_followed(fetch: Fetch) -> None:
    with pytest.raises(RequestError, match="found status 302"):
        fetch("/moved.png")
    assert Pictures.asked[-1][0] == "/moved.png"


@pytest.mark.parametrize("path", ["/large.png", "/bomb.png"])
def test_more_bytes_than_are_read_are_refused_packed_or_not(fetch: Fetch, path: str) -> None:
    with pytest.raises(TooLargeError, match=r"at most 4000 bytes from pictures\.example"):
        fetch(path)


def test_what_is_not_there_is_no_picture(fetch: Fetch) -> None:
    with pytest.raises(RequestError, match="found status 404"):
        fetch("/nothing.png")


def test_a_host_with_another_hosts_certificate_is_refused(fetch: Fetch) -> None:
    with pytest.raises(RequestError, match=r"other\.example, found ConnectError"):
        fetch("/photo.png", host="other.example")


def test_a_host_that_is_not_named_is_not_even_looked_up(fetch: Fetch) -> None:
    with pytest.raises(RequestError, match="does not fetch"):
        fetch("/photo.png", host="third.example")
    assert fetch.resolved == []
