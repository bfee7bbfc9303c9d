"""What the job says when it is asked for something it cannot do; no cluster is started."""

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings("ignore")]

CHECKPOINT = Path(__file__).parents[1] / "golden" / "a" / "checkpoint"


@pytest.fixture(scope="module")
def app() -> typer.Typer:
    pytest.importorskip("ray")
    from jobs.train_concepts import main

    app = typer.Typer()
    app.command()(main)
    return app


def run(app: typer.Typer, *arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["--backbone", str(CHECKPOINT), *arguments])
    return result.exit_code, " ".join(result.output.split())


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--store", "memory:"], "one process only"),
        (["--recipe", "[1]"], "must be a JSON object"),
        (["--recipe", '{"stepz": 1}'], "unknown settings"),
        (["--lr", "-1"], "learning_rate"),
        (["--backbone", "nowhere at all"], "backbone must be"),
        (["--only", "zoe"], "no concept named zoe"),
        (["--cells", "0"], "--cells must be auto or a number of at least 1, found '0'"),
        (["--cells", "many"], "found 'many'"),
        (["--cells", "-1"], "found '-1'"),
        (["--device", "tpu"], "is not one of"),
    ],
)
def test_a_wrong_request_ends_with_code_2_and_its_reason(
    app: typer.Typer, tmp_path: Path, arguments: list[str], expected: str
) -> None:
    from tests.unit.farm.concept_folders import write_concepts

    folder = write_concepts(tmp_path / "concepts", ["ada"])
    code, output = run(app, "--concepts", str(folder), "--store", str(tmp_path / "store"), *arguments)
    assert code == 2, output
    assert expected in output


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("1", 1), ("12", 12)])
def test_cells_are_as_many_as_fit_or_a_number(app: typer.Typer, text: str, expected: int | None) -> None:
    from jobs.train_concepts import _number_of_cells

    assert _number_of_cells(text) == expected


def test_a_relative_store_is_refused_in_rays_copy_of_the_working_directory(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "working_dir_files" / "package"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    code, output = run(app, "--concepts", str(tmp_path), "--store", "farm")
    assert code == 2
    assert "absolute path" in output


def test_a_set_of_unusable_concepts_needs_no_cluster(app: typer.Typer, tmp_path: Path) -> None:
    from tests.unit.farm.concept_folders import write_concepts

    folder = write_concepts(tmp_path / "concepts", ["eve"], bad="eve")
    code, output = run(app, "--concepts", str(folder), "--store", str(tmp_path / "store"))
    assert code == 1, output
    assert "0 of 1 concepts are learned" in output


def test_a_cluster_that_other_machines_can_reach_is_not_joined_without_a_token(
    app: typer.Typer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.unit.farm.concept_folders import write_concepts

    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    folder = write_concepts(tmp_path / "concepts", ["ada"])
    code, output = run(app, "--concepts", str(folder), "--store", str(tmp_path / "store"))
    assert code == 2, output
    assert "RAY_AUTH_MODE" in output
