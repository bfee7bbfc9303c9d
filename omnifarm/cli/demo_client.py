"""What the demo does with learned concepts: ask, draw and edit over HTTP, and keep what came back.

Knows the server's JSON and the summary's layout (`demo_page`); knows nothing of clusters or training.
"""

import base64
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from omnifarm.cli.demo_trials import Trials
from omnifarm.errors import ServingError

_TIMEOUT_S = 300.0


class DemoClient:
    """Asks one running server and saves every picture it gets.

    Args:
        url: Where the server listens, "http://127.0.0.1:8000".
        folder: Where pictures are written; the summary names them relative to it.
    """

    def __init__(self, url: str, *, folder: Path) -> None:
        self._http = httpx.Client(base_url=url, timeout=_TIMEOUT_S)
        self._folder = folder

    def close(self) -> None:
        """Close the connection."""
        self._http.close()

    def run(self, trials: Trials, *, on_trial: Callable[[], None]) -> dict[str, list[dict[str, Any]]]:
        """Ask, draw and edit everything in `trials`.

        Args:
            trials: What to try on one concept.
            on_trial: Called after each request, for a progress bar.

        Returns:
            "answers", "drawings" and "edits" as the page wants them.

        Raises:
            ServingError: The server refused a request; the message is the server's own.
        """
        concepts = [trials.name]
        answers, drawings, edits = [], [], []
        for question in trials.questions:
            parts: list[dict[str, Any]] = [{"type": "text", "text": question.text}]
            if question.image is not None:
                parts.append({"type": "image_url", "image_url": {"url": _data_url(question.image)}})
            body: dict[str, Any] = {"messages": [{"role": "user", "content": parts}], "concepts": concepts}
            reply, seconds = self._post("/v1/chat/completions", json=body)
            said = reply["choices"][0]["message"]["content"]
            answers.append(
                {
                    "kind": question.kind,
                    "question": question.text,
                    "image": None if question.image is None else self.keep(question.image),
                    "answer": said,
                    "expected": question.expected,
                    "correct": None if question.expected is None else is_right(said, question.expected),
                    "seconds": seconds,
                }
            )
            on_trial()
        for number, (prompt, replay) in enumerate(trials.drawings):
            body = {"prompt": prompt, "concepts": concepts, "replay": replay}
            reply, seconds = self._post("/v1/images/generations", json=body)
            drawn = reply["data"][0]
            trace = next((entry for entry in drawn["replay"] if entry["status"] != "off"), None)
            drawings.append(
                {
                    "prompt": prompt,
                    "image": self._save(drawn, f"{trials.name}-drawn-{number}.png"),
                    "replay": trace and {key: trace[key] for key in ("status", "question", "answer", "prompt")},
                    "seconds": seconds,
                }
            )
            on_trial()
        for number, edit in enumerate(trials.edits):
            reply, seconds = self._post(
                "/v1/images/edits",
                data={"prompt": edit.instruction, "concepts": concepts},
                files={"image": (edit.source.name, edit.source.read_bytes(), "image/png")},
            )
            edits.append(
                {
                    "instruction": edit.instruction,
                    "before": self.keep(edit.source),
                    "after": self._save(reply["data"][0], f"{trials.name}-edited-{number}.png"),
                    "truth": None if edit.target is None else self.keep(edit.target),
                    "seconds": seconds,
                }
            )
            on_trial()
        return {"answers": answers, "drawings": drawings, "edits": edits}

    def _post(self, path: str, **content: Any) -> tuple[dict[str, Any], float]:
        started = time.monotonic()
        response = self._http.post(path, **content)
        if response.status_code != 200:
            raise ServingError(f"expected an answer from {path}, found {response.status_code}: {response.text[:500]}")
        reply: dict[str, Any] = response.json()
        return reply, round(time.monotonic() - started, 3)

    def _save(self, image: dict[str, Any], name: str) -> str:
        path = self._folder / "pictures" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(image["b64_json"]))
        return str(path.relative_to(self._folder))

    def keep(self, source: Path) -> str:
        """Copy a photo beside the page once; return its relative path."""
        path = self._folder / "pictures" / f"{source.parent.parent.name}-{source.parent.name}-{source.name}"
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(source.read_bytes())
        return str(path.relative_to(self._folder))


def is_right(answer: str, expected: str) -> bool:
    """Whether an answer says what was expected: the expected words stand in it, whatever case and punctuation.

    For "Yes."/"No." the first word decides, so that "No, it is not." is not taken for a yes.
    """
    said, wanted = (_words(text) for text in (answer, expected))
    if wanted in (["yes"], ["no"]):
        return said[:1] == wanted
    return any(said[start : start + len(wanted)] == wanted for start in range(len(said) - len(wanted) + 1))


def _words(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
