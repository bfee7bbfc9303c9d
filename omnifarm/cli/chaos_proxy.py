"""A proxy between the farm and its store, for proofs: it makes writes go wrong on demand, and counts commits.

It stands where a network would: requests pass unchanged, signatures included. What the store answered is seen here even
when the client never learns it, so a concept committed twice cannot hide.
"""

import contextlib
import http.client
import json
import random
import threading
import time
from collections import Counter
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

_HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "transfer-encoding"})


class Trouble(Enum):
    """What can happen to a write."""

    ANSWER_500 = "500"
    """The store never sees it; the client reads "internal error"."""
    ANSWER_503 = "503"
    """The store never sees it; the client reads "slow down"."""
    LOST_ANSWER = "lost answer"
    """The store carries it out; the connection breaks before the answer."""
    SILENCE = "timeout"
    """The store carries it out; nobody answers until the client gives up."""


class ChaosProxy:
    """Forwards loopback HTTP to `target` until closed.

    Args:
        target: "http://127.0.0.1:port".
        chance: Which writes are hit.
    """

    def __init__(self, target: str, *, chance: random.Random) -> None:
        self._target = urlsplit(target).netloc
        self._chance = chance
        self._lock = threading.Lock()
        self._waiting: list[Trouble] = []
        self.hits: Counter[str] = Counter()
        """Writes that went wrong, by kind of trouble."""
        self.commits: Counter[str] = Counter()
        """Accepted commits by key: manifests created, records that became committed."""
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 120

            def handle_one_request(self) -> None:
                with contextlib.suppress(ConnectionError, TimeoutError):
                    super().handle_one_request()

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

            def __getattr__(self, name: str) -> Any:
                # The base class calls do_GET, do_PUT and so on: all are passed on alike.
                if name.startswith("do_"):
                    return lambda: proxy._pass(self)
                raise AttributeError(name)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def endpoint(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()

    def make_trouble(self, trouble: Trouble, *, times: int) -> None:
        """Let so many of the next writes go wrong, about every second one, after those already ordered."""
        with self._lock:
            self._waiting += [trouble] * times

    def _draw(self, method: str) -> Trouble | None:
        if method not in ("PUT", "POST", "DELETE"):
            return None
        with self._lock:
            if not self._waiting or self._chance.random() < 0.5:
                return None
            trouble = self._waiting.pop(0)
            self.hits[trouble.value] += 1
            return trouble

    def _pass(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        trouble = self._draw(handler.command)
        if trouble in (Trouble.ANSWER_500, Trouble.ANSWER_503):
            _answer_error(handler, 500 if trouble is Trouble.ANSWER_500 else 503)
            return
        try:
            status, headers, answer = self._forward(handler, body)
        except (OSError, http.client.HTTPException):
            handler.close_connection = True  # the store is down: so is the line to it
            return
        if status == 200 and handler.command == "PUT":
            self._note_commit(unquote(urlsplit(handler.path).path), body)
        if trouble is not None:
            if trouble is Trouble.SILENCE:
                time.sleep(40)
            handler.close_connection = True
            return
        handler.send_response_only(status)
        for name, value in headers:
            if name.lower() not in _HOP_HEADERS | {"content-length"}:
                handler.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length")
        handler.send_header("Content-Length", length if handler.command == "HEAD" and length else str(len(answer)))
        handler.end_headers()
        if handler.command != "HEAD":
            handler.wfile.write(answer)

    def _forward(self, handler: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        line = http.client.HTTPConnection(self._target, timeout=60)
        try:
            line.putrequest(handler.command, handler.path, skip_host=True, skip_accept_encoding=True)
            for name, value in handler.headers.items():
                if name.lower() not in _HOP_HEADERS:
                    line.putheader(name, value)
            line.endheaders(body)
            answer = line.getresponse()
            return answer.status, answer.getheaders(), answer.read()
        finally:
            line.close()

    def _note_commit(self, key: str, body: bytes) -> None:
        is_commit = key.endswith("/manifest.json")
        if "/jobs/" in key:
            with contextlib.suppress(ValueError):
                is_commit = json.loads(body).get("state") == "committed"
        if is_commit:
            with self._lock:
                self.commits[key] += 1


def _answer_error(handler: BaseHTTPRequestHandler, status: int) -> None:
    code = "InternalError" if status == 500 else "SlowDown"
    answer = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>chaos</Message></Error>".encode()
    handler.send_response_only(status)
    handler.send_header("Content-Type", "application/xml")
    handler.send_header("Content-Length", str(len(answer)))
    handler.end_headers()
    handler.wfile.write(answer)
