"""A measuring script's smoke mode, run as on a machine that has torch, transformers and safetensors alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]
ABSENT = ("ray", "deepspeed", "diffusers", "boto3", "typer", "pyarrow", "fastapi", "rich")


def smoke_report(script: str, *options: str) -> dict[str, Any]:
    """Run `jobs/<script> --smoke` and return the JSON document it prints."""
    program = (
        "import runpy, sys\n"
        f"sys.modules.update(dict.fromkeys({ABSENT!r}))\n"
        f"sys.argv = {[script, '--smoke', *options]!r}\n"
        f"runpy.run_path('jobs/{script}', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    return report
