"""What `omnifarm perf load` sends that no well-meaning client does: method, path and the rest as httpx takes it."""

import base64
import io
import json
from typing import Any

Hostile = tuple[str, str, dict[str, Any]]
"""One such request."""


def about_somebody_elses(name: str) -> tuple[Hostile, ...]:
    """Return requests about a concept that only another tenant has: to whoever sends them, it does not exist (404)."""
    return (
        ("POST", "/v1/chat/completions", _chat(f"Who is <{name}>?", max_tokens=4)),
        ("POST", "/v1/chat/completions", _chat("Who?", model=f"bagel:<{name}>", max_tokens=4)),
        ("POST", "/v1/images/generations", {"json": {"prompt": "A photo.", "concepts": [name], "num_timesteps": 2}}),
        ("GET", f"/v1/concepts/{name}", {}),
        ("GET", f"/v1/models/bagel:{name}", {}),
    )


def a_picture() -> bytes:
    """Return a small picture, as PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((64, 64)).convert("RGB").save(buffer, format="PNG")
    return buffer.getvalue()


def _chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"json": {"messages": [{"role": "user", "content": content}], **more}}


def _image(data: bytes) -> list[dict[str, Any]]:
    url = "data:image/png;base64," + base64.b64encode(data).decode()
    return [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": "What?"}]


_BOMB = a_picture()[:16] + (60_000).to_bytes(4, "big") * 2 + a_picture()[24:]
HOSTILE: tuple[Hostile, ...] = (
    ("GET", "/v1/models", {"headers": {"Authorization": "Bearer omf_acme_" + "A" * 43}}),
    ("POST", "/v1/chat/completions", {"content": b"[" * 100_000, "headers": {"Content-Type": "application/json"}}),
    ("POST", "/v1/chat/completions", {"content": b"\xff\xfe{", "headers": {"Content-Type": "application/json"}}),
    ("POST", "/v1/chat/completions", _chat("x" * 100_000)),
    ("POST", "/v1/chat/completions", _chat("Who is <nobody-of-that-name>?")),
    ("POST", "/v1/chat/completions", _chat("Who?", concepts=["../../etc/passwd"])),
    ("POST", "/v1/chat/completions", _chat(_image(_BOMB))),
    ("POST", "/v1/chat/completions", _chat(_image(b"GIF89a" + b"\0" * 64))),
    ("POST", "/v1/chat/completions", _chat([{"type": "image_url", "image_url": {"url": "http://127.0.0.1:8265/"}}])),
    ("POST", "/v1/images/generations", {"json": {"prompt": "A dog.", "size": "99999x99999"}}),
    ("POST", "/v1/images/generations", {"json": {"prompt": "A dog.", "num_timesteps": 10**9}}),
    (
        "POST",
        "/v1/images/edits",
        {"content": b"--x\r\n", "headers": {"Content-Type": "multipart/form-data; boundary=x"}},
    ),
    ("GET", "/v1/files/..%2f..%2faccounts%2facme.json", {}),
    ("DELETE", "/v1/concepts/%3Cnobody%3E", {}),
    ("PUT", "/v1/models", {"content": json.dumps({"a": 1})}),
)
