"""`omnifarm studio`: the page in the browser, over a server on this machine."""

import contextlib
import subprocess
import time
import webbrowser
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer

from omnifarm.cli.local_cluster import end_processes
from omnifarm.cli.output import people
from omnifarm.cli.serve import serving
from omnifarm.cli.studio_samples import teach_samples
from omnifarm.errors import OmniFarmError, ServingError

_URL = "http://127.0.0.1:8000"
_START_TIMEOUT_S = 300.0


def studio(
    store: Annotated[
        str, typer.Option("--store", help="Where concepts are kept: a local folder or s3://bucket/prefix.")
    ] = "build/studio/store",
    backbone: Annotated[
        str,
        typer.Option("--backbone", help="`miniature`, a checkpoint folder or a hub id.", envvar="OMNIFARM_BACKBONE"),
    ] = "miniature",
    samples: Annotated[
        bool, typer.Option("--samples/--no-samples", help="Have two sample concepts learned first (miniature only).")
    ] = True,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Open the studio: teach, ask, draw and edit in the browser. Ctrl-C stops it; what was learned stays.

    Serves on loopback, port 8000; the server's own log goes to build/studio/serve.log.
    """
    if "://" not in store:
        Path(store).mkdir(parents=True, exist_ok=True)
    log = Path("build/studio/serve.log")
    log.parent.mkdir(parents=True, exist_ok=True)
    program, environment = serving(store, backbone=backbone, keys=False)
    with log.open("wb") as sink:
        process = subprocess.Popen(program, env=environment, stdout=sink, stderr=subprocess.STDOUT)
    family = [psutil.Process(process.pid)]
    try:
        with people.status("starting the server"):
            _wait_until_ready(process, log=log)
        people.print(f"the studio is at {_URL}/studio (Ctrl-C stops it)")
        if browser:
            webbrowser.open(f"{_URL}/studio")
        if samples and backbone == "miniature":
            _teach_samples()
        process.wait()
    except KeyboardInterrupt:
        people.print("stopping")
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            family += family[0].children(recursive=True)
        end_processes(family)


def _teach_samples() -> None:
    """Teach the samples; the studio works without them."""
    try:
        with httpx.Client(base_url=_URL, timeout=60.0) as client:
            teach_samples(client, say=people.print)
    except (OmniFarmError, httpx.HTTPError) as error:
        people.print(f"[yellow]no samples:[/] {error}")


def _wait_until_ready(process: "subprocess.Popen[bytes]", *, log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(f"{_URL}/ready", timeout=5.0).status_code == 200:
                return
        time.sleep(0.5)
    raise ServingError(
        f"expected the server at {_URL} within {_START_TIMEOUT_S:.0f} s, found none (is something else using the port?); "
        f"the end of its log, {log}:\n{log.read_text(errors='replace')[-1500:]}"
    )
