import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from omnifarm.cli.main import app
from omnifarm.errors import ConfigError


def test_an_evaluation_learns_measures_and_reports(tmp_path: Path, hasty_miniature: str) -> None:
    out = tmp_path / "evaluation"
    options = ["--persons", "0", "--pets", "1", "--objects", "0", "--steps", "2", "--workers", "2", "--json"]
    options += ["--seed", "4", "--out", str(out), "--backbone", hasty_miniature]
    result = CliRunner().invoke(app, ["miniature", "evaluate", *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    metrics = report["metrics"]
    assert report["seed"] == 4
    assert len(report["concepts"]) == 1
    assert {
        "rec",
        "vqa",
        "qa_facts",
        "qa_untaught",
        "gen_identity",
        "gen_place",
        "parg_replay",
        "parg_no_replay",
    } <= set(metrics)
    assert {"removal_right", "removal_psnr_gap_db", "edit_mean", "edit_min"} <= set(metrics)
    assert metrics["codec_subject_psnr"] > 20
    assert all(0 <= value <= 1 for name, value in metrics.items() if not name.endswith(("_db", "_psnr")))
    assert set(report["baselines"]) == {"tp", "ip", "none"}
    assert {"rec", "gen_identity"} <= set(report["baselines"]["tp"])
    assert report["minutes"] > 0
    assert json.loads((out / "report.json").read_text()) == report
    assert len(list(out.glob("sheet*.png"))) == 1


def test_a_folder_with_other_files_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        CliRunner().invoke(app, ["miniature", "evaluate", "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def _report(path, *, seed: int, rec: dict[str, float]) -> str:
    concepts = {name: {"learned": {"rec": value}} for name, value in rec.items()}
    path.write_text(json.dumps({"seed": seed, "concepts": concepts}))
    return str(path)


def test_two_ways_of_learning_are_compared_concept_by_concept(tmp_path) -> None:
    first = _report(tmp_path / "a.json", seed=1, rec={"x": 0.5, "y": 0.7})
    second = _report(tmp_path / "b.json", seed=1, rec={"y": 0.9, "x": 0.6})
    result = CliRunner().invoke(app, ["miniature", "compare", "--first", first, "--second", second, "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["metrics"]["rec"]["difference"] == pytest.approx(0.15)
    assert found["metrics"]["rec"]["interval"] == pytest.approx([0.1, 0.2])
    assert found["num_concepts"] == 2


def test_reports_about_other_concepts_are_refused(tmp_path) -> None:
    first = _report(tmp_path / "a.json", seed=1, rec={"x": 0.5})
    second = _report(tmp_path / "b.json", seed=2, rec={"x": 0.5})
    with pytest.raises(ConfigError, match="same concepts"):
        CliRunner().invoke(app, ["miniature", "compare", "--first", first, "--second", second], catch_exceptions=False)
