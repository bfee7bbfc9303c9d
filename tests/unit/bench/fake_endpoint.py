"""A chat endpoint on loopback that misbehaves to order: a real HTTP server, asked by the real client."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Words = Callable[[dict[str, Any]], str]


@dataclass
class FakeEndpoint:
    """What it will do next, and what it has been asked.

    Attributes:
        words: From a request's body to the reply's text.
        script: Misbehaviours, one a request, before it behaves: a status number, "garbage", "refuse", "filter",
            "hang", "empty", "no message", "no usage", "numbers" (JSON of the right names with wrong types).
    """

    words: Words = lambda body: "1"
    script: list[int | str] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    most_at_once: int = 0
    url: str = ""
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)
    released: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(endpoint: FakeEndpoint) -> Iterator[FakeEndpoint]:
    """Serve an endpoint while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with endpoint._lock:
                endpoint.asked.append(body)
                endpoint.keys.append(self.headers.get("Authorization", ""))
                endpoint._now += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
                act = endpoint.script.pop(0) if endpoint.script else ""
            try:
                self._reply(body, act)
            finally:
                with endpoint._lock:
                    endpoint._now -= 1

        def _reply(self, body: dict[str, Any], act: int | str) -> None:
            if act == "hang":
                endpoint.released.wait(timeout=20)
                return
            if act == "garbage":
                self._send(200, b"<html>proxy says hello</html>")
            elif act == "filter":
                self._send(
                    400,
                    json.dumps({"error": {"message": "blocked by content filter", "code": "content_filter"}}).encode(),
                )
            elif isinstance(act, int):
                self._send(act, b'{"error": {"message": "later"}}')
            else:
                message = {"role": "assistant", "content": "" if act == "empty" else endpoint.words(body)}
                if act == "refuse":
                    message |= {"content": None, "refusal": "I cannot identify people."}
                reply = {
                    "id": "1",
                    "object": "chat.completion",
                    "created": 0,
                    "model": f"{body['model']}-served",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
                }
                if act == "no message":
                    reply["choices"] = [{}]
                elif act == "no usage":
                    reply["usage"] = {}
                elif act == "numbers":
                    reply |= {"choices": [{"message": {"content": 7}}], "usage": 3, "model": None}
                self._send(200, json.dumps(reply).encode())

        def _send(self, status: int, data: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            # Read by the client: its pauses would make tests slow.
            self.send_header("retry-after-ms", "1")
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        yield endpoint
    finally:
        endpoint.released.set()
        server.shutdown()
        server.server_close()
        thread.join()
