"""Teaching a running server somebody of the drawn world, over HTTP, as any client would.

Gives a newcomer's studio its first inhabitants. Knows the server's endpoints and nothing of what is behind them.
"""

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import httpx

from omnifarm.errors import ServingError

SAMPLES = (("pet", 11), ("person", 3))
"""Group and seed of the sample concepts."""
_POLL_S = 1.0
_UNFINISHED = ("queued", "running")


def teach_samples(
    client: httpx.Client, *, say: Callable[[str], None], wait_s: Callable[[float], None] = time.sleep
) -> None:
    """Have the sample concepts learned that the server does not know yet, one after another.

    The user comes first: a sample waits until nobody else's training is under way, and is put off when one begins.

    Args:
        client: Its base URL is the server's.
        say: Told what happens, in sentences.
        wait_s: Waits that many seconds.

    Raises:
        ServingError: The server refused a request.
    """
    for group, seed in SAMPLES:
        invention = _get(client, "/studio/api/inventions", group=group, seed=seed)
        name = invention["name"]
        if any(one["name"] == name for one in _get(client, "/v1/concepts")["data"]):
            continue
        status, body = "", None
        while not status:
            while _unfinished(client):
                wait_s(_POLL_S)
            body = body or _training(client, invention)
            say(f"learning <{name}>, a sample; this is done once")
            status = _learn_meanwhile(client, body, wait_s=wait_s)
            say(f"<{name}>: {status or 'put off, yours comes first'}")


def _learn_meanwhile(client: httpx.Client, body: dict[str, Any], *, wait_s: Callable[[float], None]) -> str:
    """Have a sample learned; return how its job ended, or nothing when it was put off for somebody else's."""
    job = _post(client, "/v1/fine_tuning/jobs", json=body)
    is_put_off = False
    while job["status"] in _UNFINISHED:
        if not is_put_off and _unfinished(client) - {job["id"]}:
            is_put_off = True
            _post(client, f"/v1/fine_tuning/jobs/{job['id']}/cancel")
        wait_s(_POLL_S)
        job = _get(client, f"/v1/fine_tuning/jobs/{job['id']}")
    # One that ended while it was being put off is learned all the same.
    return "" if is_put_off and job["status"] == "cancelled" else str(job["status"])


def _unfinished(client: httpx.Client) -> set[str]:
    jobs = _get(client, "/v1/fine_tuning/jobs")["data"]
    return {job["id"] for job in jobs if job["status"] in _UNFINISHED}


def teach(client: httpx.Client, invention: dict[str, Any], *, steps: int | None = None) -> dict[str, Any]:
    """Upload an invention of `/studio/api/inventions` and ask for it to be learned.

    Args:
        client: Its base URL is the server's.
        invention: Who.
        steps: Optimizer steps; None for the backbone's own recipe.

    Returns:
        The fine-tuning job.

    Raises:
        ServingError: The server refused a request.
    """
    body = _training(client, invention)
    if steps is not None:
        body["hyperparameters"] = {"steps": steps}
    return _post(client, "/v1/fine_tuning/jobs", json=body)


def _training(client: httpx.Client, invention: dict[str, Any]) -> dict[str, Any]:
    """Upload an invention; return the request that has it learned."""
    given = invention["document"]
    ids = {
        key: _upload(client, "vision", f"{key}.png", base64.b64decode(data))
        for key, data in invention["pictures"].items()
    }
    asked = [
        {"question": question, "answer": fact["answer"]} for fact in given["facts"] for question in fact["questions"]
    ]
    on_photos = [{**qa, "photo": ids[qa["photo"]]} if "photo" in qa else qa for qa in given["qa"]]
    document = {
        "class": given["class"],
        "group": given["group"],
        "photos": [ids[key] for key in given["photos"]],
        "captions": {ids[key]: text for key, text in given["captions"].items()},
        "info": given["info"],
        "extra_info": [fact["sentence"] for fact in given["facts"]],
        "qa": [*asked, *on_photos],
        "negatives": [ids[key] for key in given["negatives"]],
        "edits": [{**edit, "source": ids[edit["source"]], "target": ids[edit["target"]]} for edit in given["edits"]],
    }
    name = invention["name"]
    training_file = _upload(client, "fine-tune", f"{name}.json", json.dumps(document).encode())
    return {"model": "bagel", "training_file": training_file, "suffix": name}


def _upload(client: httpx.Client, purpose: str, filename: str, data: bytes) -> str:
    reply = _post(client, "/v1/files", data={"purpose": purpose}, files={"file": (filename, data)})
    return str(reply["id"])


def _get(client: httpx.Client, path: str, **parameters: Any) -> dict[str, Any]:
    return _send(lambda: client.get(path, params=parameters))


def _post(client: httpx.Client, path: str, **content: Any) -> dict[str, Any]:
    return _send(lambda: client.post(path, **content))


def _send(request: Callable[[], httpx.Response]) -> dict[str, Any]:
    """Return what the server answers; whoever asks too often waits as long as it says."""
    while (reply := request()).status_code == 429 and "retry-after" in reply.headers:
        time.sleep(float(reply.headers["retry-after"]))
    if reply.status_code != 200:
        raise ServingError(f"expected an answer from {reply.url}, found {reply.status_code}: {reply.text[:500]}")
    values: dict[str, Any] = reply.json()
    return values
