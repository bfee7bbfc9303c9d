"""A benchmark run from data to report, in this process, on the miniature: small, real, and interrupted."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from omnifarm.bench.asking import ask_all
from omnifarm.cli import bench_run, bench_work
from omnifarm.cli.bench_settings import plan_of, scoring_of
from omnifarm.cli.main import app
from omnifarm.concept.repository import ConceptRepository
from omnifarm.errors import ConfigError
from omnifarm.store.local import LocalStore

ROWS = {"variants": "ours,without_decoupling,without_replay", "baselines": "plain"}


class InterruptedWorkError(Exception):
    """What a killed process would be."""


class Stopping(bench_work.LocalWork):
    """Works in this process and dies in the middle of asking the second share."""

    def each(self, do: Callable[[Mapping[str, Any]], object], shares: Sequence[Mapping[str, Any]]) -> None:
        if do is not bench_work.ask_share:
            super().each(do, shares)
            return
        do(shares[0])
        system = _Dying()
        values = shares[1]
        prepared = self.prepared
        row = next(row for row in prepared.plan.chosen() if row.key == values["row"])
        replies = bench_run.ReplyFile(prepared.store, prefix=prepared.plan.replies_key(row, seed=values["seed"]))
        ask_all(system, prepared.data.benchmark, replies, tasks=row.tasks, base_seed=values["seed"])

    prepared: bench_run.Prepared


class _Dying:
    def fit(self, concept: object) -> None:
        raise InterruptedWorkError


@pytest.fixture(scope="module")
def plan(hasty_miniature: str) -> Callable[[str], Any]:
    """A run of this module by its name."""

    def make(name: str) -> Any:
        rows = {**ROWS, "backbone": hasty_miniature}
        return plan_of(data="miniature:1", quick=True, concepts=1, steps=1, name=name, **rows)

    return make


def tables(folder: Path) -> tuple[Any, Any]:
    report = json.loads((folder / "report.json").read_text())
    parquet = pq.read_table(io.BytesIO((folder / "report.parquet").read_bytes())).to_pylist()
    return report["cells"], parquet


@pytest.fixture(scope="module")
def finished(plan: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a run that was never interrupted."""
    store = tmp_path_factory.mktemp("bench") / "store"
    prepared = bench_run.prepare(plan("whole"), store_url=str(store))
    work = bench_work.LocalWork(workers=1)
    bench_run.carry_out(prepared, work)
    bench_run.score(prepared, scoring_of())
    return store


@pytest.mark.slow
def test_a_run_leaves_a_report_in_every_form(finished: Path) -> None:
    folder = finished / "benchmark" / "whole"
    cells, parquet = tables(folder)
    assert {"ours", "without_decoupling", "without_replay", "plain", "real_images"} == set(cells)
    for metric in ("rec", "vqa_bleu", "vqa_gpt", "qa_gpt", "parg_score", "sema_c", "qual_i", "avg", "world_identity"):
        assert cells["ours"][metric]["n"] > 0, metric
        assert 0 <= cells["ours"][metric]["value"] <= 1
    assert cells["without_replay"]["rec"]["reason"] == "-"
    assert cells["ours"]["face_simi"]["reason"].startswith("not run: give --arcface")
    assert cells["ours"]["avg"]["value"] == pytest.approx(
        (cells["ours"]["sema_c"]["value"] + cells["ours"]["qual_i"]["value"]) / 2
    )
    assert {line["metric"] for line in parquet} >= {"rec", "avg", "world_parg"}
    markdown = (folder / "report.md").read_text()
    assert "| OmniPersona (ours) |" in markdown
    assert "not measured here" in markdown
    page = (folder / "report.html").read_text()
    assert "measured here" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="http' not in page


@pytest.mark.slow
def test_coupled_rows_are_learned_coupled_and_rows_of_one_recipe_learn_once(finished: Path) -> None:
    folders = [path for path in (finished / "benchmark" / "training").iterdir() if path.is_dir()]
    manifests = [manifest for folder in folders for manifest in ConceptRepository(LocalStore(folder)).list()]
    assert sorted(manifest.is_coupled for manifest in manifests) == [False, True]


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_tables(finished: Path, plan: Callable[[str], Any]) -> None:
    prepared = bench_run.prepare(plan("cut"), store_url=str(finished))
    work = Stopping(workers=1)
    work.prepared = prepared
    with pytest.raises(InterruptedWorkError):
        bench_run.carry_out(prepared, work)
    half = set(prepared.store.list("benchmark/cut/replies/"))
    assert half
    again = bench_run.prepare(plan("cut"), store_url=str(finished))
    first = prepared.store.get(sorted(half)[0]).data
    bench_run.carry_out(again, bench_work.LocalWork(workers=1))
    bench_run.score(again, scoring_of())
    assert prepared.store.get(sorted(half)[0]).data == first, "what is on file is not asked again"
    assert tables(finished / "benchmark" / "cut") == tables(finished / "benchmark" / "whole")


@pytest.mark.slow
def test_a_name_stands_for_one_plan(finished: Path) -> None:
    other = plan_of(data="miniature:1", quick=True, concepts=1, steps=2, name="whole", **ROWS)
    with pytest.raises(ConfigError, match="another plan"):
        bench_run.prepare(other, store_url=str(finished))


@pytest.mark.slow
def test_runs_are_compared_and_a_regression_ends_with_exit_code_1(finished: Path) -> None:
    folder = finished / "benchmark" / "whole"
    same = CliRunner().invoke(app, ["bench", "compare", str(folder), str(folder / "report.json"), "--json"])
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["worse"] == 0
    report = json.loads((folder / "report.json").read_text())
    report["cells"]["ours"]["vqa_bleu"]["value"] -= 0.2
    worse = finished / "worse"
    worse.mkdir(exist_ok=True)
    (worse / "report.json").write_text(json.dumps(report))
    found = CliRunner().invoke(app, ["bench", "compare", str(folder), str(worse)])
    assert found.exit_code == 1
    assert "1 worse of" in found.output


@pytest.mark.slow
def test_a_run_is_scored_again_from_its_name(finished: Path) -> None:
    before = tables(finished / "benchmark" / "whole")
    done = CliRunner().invoke(app, ["bench", "score", "--store", str(finished), "--name", "whole", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["run"] == "whole"
    assert tables(finished / "benchmark" / "whole") == before
