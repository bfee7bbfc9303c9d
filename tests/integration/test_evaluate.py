import json

import pytest
from typer.testing import CliRunner

from omnifarm.cli.main import app
from omnifarm.errors import ConfigError


def test_an_evaluation_learns_measures_and_reports(tmp_path) -> None:
    out = tmp_path / "evaluation"
    options = ["--persons", "0", "--pets", "1", "--objects", "1", "--steps", "2", "--workers", "2", "--json"]
    result = CliRunner().invoke(app, ["miniature", "evaluate", "--seed", "4", "--out", str(out), *options])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    metrics = report["metrics"]
    assert report["seed"] == 4
    assert len(report["concepts"]) == 2
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
    assert len(list(out.glob("sheet*.png"))) == 2


def test_a_folder_with_other_files_is_left_alone(tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ConfigError, match="other files"):
        CliRunner().invoke(app, ["miniature", "evaluate", "--out", str(tmp_path)], catch_exceptions=False)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"
