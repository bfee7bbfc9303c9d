"""The miniature, drawing in two steps: for tests that are not about what is drawn."""

import json
from pathlib import Path
from shutil import copytree

import pytest

from omnifarm.backbone.weights import resolve_folder


@pytest.fixture(scope="session")
def hasty_miniature(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Its folder."""
    folder: Path = tmp_path_factory.mktemp("hasty") / "miniature"
    copytree(resolve_folder("miniature"), folder)
    config = json.loads((folder / "extra_config.json").read_text())
    for kind in ("generation", "editing"):
        config["defaults"][kind]["num_timesteps"] = 3
    (folder / "extra_config.json").write_text(json.dumps(config))
    return str(folder)
