"""The benchmark as a cluster's job: learned on the farm and by tasks of its own, asked as tasks."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from omnifarm.concept.repository import ConceptRepository
from omnifarm.store.local import LocalStore

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    # What Ray and its dependencies warn about is theirs.
    pytest.mark.filterwarnings("ignore"),
]


@pytest.fixture(scope="module")
def app(cluster: Any) -> typer.Typer:
    from jobs.run_benchmark import main

    app = typer.Typer()
    app.command()(main)
    return app


def run(app: typer.Typer, store: Path, backbone: str) -> dict[str, Any]:
    options = [
        "--data",
        "miniature:1",
        "--backbone",
        backbone,
        "--store",
        str(store),
        "--quick",
        "--concepts",
        "1",
        "--steps",
        "3",
        "--json",
    ]
    rows = ["--variants", "ours,without_replay", "--baselines", "plain,unictokens_style"]
    result = CliRunner().invoke(app, [*options, *rows])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def test_a_cluster_learns_asks_and_scores_and_the_same_job_again_repeats_nothing(
    app: typer.Typer, tmp_path: Path, hasty_miniature: str
) -> None:
    report = run(app, tmp_path, hasty_miniature)
    assert set(report["cells"]) == {"ours", "without_replay", "plain", "unictokens_style", "real_images"}
    assert all(found["not_asked"] == 0 for found in report["timings"].values())
    assert report["failures"] == []
    assert report["cells"]["unictokens_style"]["rec"]["n"] > 0
    folders = [path for path in (tmp_path / "benchmark" / "training").iterdir() if path.is_dir()]
    assert sum(len(ConceptRepository(LocalStore(folder)).list()) for folder in folders) == 2
    replies = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("replies/**/*.json")}
    again = run(app, tmp_path, hasty_miniature)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("replies/**/*.json")} == replies
    assert again["cells"] == report["cells"]
