"""docs/api.md is true: every example on it runs, in order, against a server that learns."""

import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from serve.assembly import build_trainer
from tests.integration.serve.conftest import Server, picture

pytestmark = [
    pytest.mark.slow,
    # Examples are short: they leave files to be closed by Python.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
PAGE = Path(__file__).parents[3] / "docs" / "api.md"


def test_every_example_runs(
    serve_with: Callable[..., Server],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server = serve_with()
    trainer = build_trainer(server.services.settings)
    threading.Thread(target=lambda: trainer.run_forever(poll_s=0.1), daemon=True).start()
    for number in (1, 2):
        (tmp_path / f"photo{number}.png").write_bytes(picture(seed=number))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMNIFARM_URL", server.url)
    monkeypatch.setenv("OMNIFARM_KEY", server.key("acme"))
    examples = re.findall(r"^```(python|bash)\n(.*?)^```$", PAGE.read_text(), flags=re.M | re.S)
    assert {language for language, _ in examples} == {"python", "bash"}
    names: dict[str, object] = {}
    for language, text in examples:
        if language == "python":
            exec(compile(text, PAGE.name, "exec"), names)
        else:
            subprocess.run(["bash", "-euo", "pipefail", "-c", text], check=True, timeout=60)
    assert "<rex> is learned and can be used" in capfd.readouterr().out
    assert (tmp_path / "rex.png").read_bytes().startswith(b"\x89PNG")
    assert b"b64_json" in (tmp_path / "edited.json").read_bytes()
    with server.http(server.key("acme")) as http:
        assert http.get("/v1/concepts/rex").status_code == 404
