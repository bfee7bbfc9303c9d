import copy
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from omnifarm.bench.asking import ask_all
from omnifarm.bench.compare import compare
from omnifarm.bench.data.load import BenchData
from omnifarm.bench.metrics.aggregate import ConceptValue
from omnifarm.bench.plan import RunPlan
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.report.build import Evidence, write_report
from omnifarm.bench.report.looks import Look, looks_table
from omnifarm.bench.rows import ROWS, SWEEPS, chosen_rows
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.errors import ConfigError
from omnifarm.store.local import LocalStore

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Gray:
    def fit(self, concept: BenchConcept) -> None:
        pass

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        return Reply(text="<b>No.</b>")

    def generate(self, prompt: str, *, seed: int) -> Reply:
        trace = {"status": "used", "question": "q", "answer": "a", "prompt": prompt, "duration_s": 0.5, "calls": 1}
        return Reply(picture=Image.new("RGB", (96, 96), (40, 90, 160)), trace=trace)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        return Reply(picture=picture)


def look_at(concept: BenchConcept) -> Look:
    """Three quarters of the attention on the left half, where the subject stands."""
    weights = np.full((8, 8), 0.25, np.float32)
    weights[:, :4] = 0.75
    subject = np.zeros((96, 96), np.bool_)
    subject[:, :48] = True
    return Look(photo=concept.test_pictures()[0], weights=weights, subject=subject)


@pytest.fixture(scope="module")
def written(drawn: BenchData, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A report over made-up values: the folder, and its contents."""
    folder = tmp_path_factory.mktemp("report")
    store = LocalStore(folder)
    plan = RunPlan(
        data="miniature:3",
        rows=("ours", "without_replay", "three_stage", "exemplars_0", "exemplars_6", "plain"),
        name="r",
    )
    rng = np.random.default_rng(0)
    values = []
    for row in plan.chosen():
        ask_all(
            Gray(),
            drawn.benchmark,
            ReplyFile(store, prefix=plan.replies_key(row, seed=0)),
            tasks=row.tasks,
            base_seed=0,
        )
        for concept in drawn.benchmark.concepts:
            for metric in ("rec", "vqa_bleu", "parg_score", "sema_c", "qual_i", "avg", "world_parg"):
                number = float(rng.uniform(0.3, 0.9))
                values.append(
                    ConceptValue(
                        row=row.key, seed=0, concept=concept.name, metric=metric, value=number, n=4, failures=1
                    )
                )
    tables = {concept.name: rng.normal(size=(33, 8)).astype(np.float32) for concept in drawn.benchmark.concepts}
    evidence = Evidence(
        plan=plan,
        benchmark=drawn.benchmark,
        store=store,
        values=values,
        reasons={"clip_i": "no weights <here>"},
        judge="tester",
        judge_report={"cost": 1.5},
        protocol="strict",
        soft_tokens={"ours": tables},
        looks={"ours": {concept.name: look_at(concept) for concept in drawn.benchmark.concepts}},
        train_s={"ours": 12.0},
        about={
            "hardware": "a test",
            "commit": "abc",
            "date": "2026-11-21",
            "backbone": "miniature",
            "fingerprint": "f" * 64,
            "benchmark": drawn.benchmark.digest(),
            "recipe": TrainingRecipe().to_json(),
            "command": "test & <see>",
        },
    )
    report = write_report(evidence)
    return folder / report["folder"], report


def test_the_page_keeps_measured_and_published_apart_and_holds_everything(written: tuple[Path, dict[str, Any]]) -> None:
    page = (written[0] / "report.html").read_text()
    assert page.index("measured here") < page.index("not measured here")
    assert page.count('class="published"') == 2
    for name in ("overview", "exemplars", "latency", "soft_tokens", "attention"):
        assert f'id="figure-{name}"' in page
    assert "no weights &lt;here&gt;" in page
    assert "test &amp; &lt;see&gt;" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert "incomplete" in page, "one of five items failed in every cell"


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
def test_a_browser_shows_the_page(written: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    shot = tmp_path / "page.png"
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    command += ["--window-size=1300,2600", f"--screenshot={shot}", (written[0] / "report.html").as_uri()]
    subprocess.run(command, check=True, capture_output=True, timeout=240)
    with Image.open(shot) as opened:
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape[0] == 2600
    # Ours stands on light blue, the published tables on sand, the text is dark: all three must be on the page.
    for color in ((234, 242, 251), (247, 243, 234)):
        assert (np.abs(pixels - color).max(axis=-1) <= 2).sum() > 5000, color
    assert (pixels.max(axis=-1) < 80).sum() > 2000
    white = (pixels.min(axis=-1) > 250).mean(axis=1)
    assert white[:2000].mean() < 0.97, "the first screens are not empty"


def test_the_text_form_holds_the_same_cells(written: tuple[Path, dict[str, Any]]) -> None:
    folder, report = written
    text = (folder / "report.md").read_text()
    assert f"| OmniPersona (ours) | {report['cells']['ours']['rec']['value']:.3f}" in text
    assert "not run" in text
    assert report["cells"]["without_replay"]["rec"]["reason"] == "-"
    assert report["timings"]["ours"]["replay_s"] == 0.5


def test_every_ablation_has_a_table_with_its_figure(written: tuple[Path, dict[str, Any]]) -> None:
    folder, report = written
    tables = {table["key"]: table for table in report["ablations"]}
    assert list(tables) == ["exemplars", "latency", "soft_tokens", "attention"]
    assert [line[0] for line in tables["exemplars"]["lines"][1:]] == [ROWS[f"exemplars_{k}"].title for k in (0, 6)]
    ways = {line[0]: line for line in tables["latency"]["lines"][1:]}
    assert [ways[way][1] for way in ("no replay", "one call (unified)", "three calls")] == ["0", "1", "3"]
    assert ways["three calls"][2] == "0.500"
    assert ways["three calls"][-2:] == ["1.87", "0.635"]
    assert "timed by itself" in tables["latency"]["note"]
    (look,) = tables["attention"]["lines"][1:]
    assert look[3:] == ["0.750", "0.500"]
    page, text = ((folder / f"report.{kind}").read_text() for kind in ("html", "md"))
    for title in ("Fig. 6b", "Table 3", "Fig. 6a", "Fig. 8"):
        assert page.count(f"(paper: {title})</h2>") == 1
        assert f"(paper: {title})\n" in text


def moved(report: dict[str, Any], by: float, *, concepts: int) -> dict[str, Any]:
    changed = copy.deepcopy(report)
    changed["cells"]["ours"]["rec"]["value"] += by
    for name in list(changed["concepts"]["ours"])[:concepts]:
        changed["concepts"]["ours"][name]["rec"] += by
    return changed


def changes(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    found = compare(before, after, tolerance=0.02)
    return {one.change for one in found if (one.row, one.column) == ("ours", "rec")}


def test_a_fall_of_all_concepts_is_a_regression_and_one_of_a_single_concept_is_not(
    written: tuple[Path, dict[str, Any]],
) -> None:
    report = written[1]
    assert changes(report, report) == {"same"}
    assert changes(report, moved(report, -0.2, concepts=3)) == {"worse"}
    assert changes(report, moved(report, 0.2, concepts=3)) == {"better"}
    assert changes(report, moved(report, -0.01, concepts=3)) == {"same"}
    assert changes(report, moved(report, -0.2, concepts=1)) == {"same"}


def test_what_is_no_longer_measured_is_a_regression_but_not_what_could_not_run(
    written: tuple[Path, dict[str, Any]],
) -> None:
    report = written[1]
    gone = copy.deepcopy(report)
    gone["cells"]["ours"]["rec"] = {**gone["cells"]["ours"]["rec"], "value": None, "failures": 9}
    assert changes(report, gone) == {"worse"}
    assert changes(report, {**gone, "reasons": {**gone["reasons"], "rec": "not set up"}}) == set()


@pytest.mark.parametrize(("key", "value"), [("judge", "another"), ("protocol", "compat"), ("num_items", 1)])
def test_runs_under_other_conditions_are_not_compared(
    written: tuple[Path, dict[str, Any]], key: str, value: Any
) -> None:
    with pytest.raises(ConfigError, match=f"only under the same {key}"):
        compare(written[1], {**written[1], key: value}, tolerance=0.02)


def test_rows_come_in_one_order_and_sweeps_stand_for_their_rows() -> None:
    assert [row.key for row in chosen_rows(["plain", "ours", "ours"])] == ["ours", "plain"]
    assert [row.key for row in chosen_rows(["exemplars"])] == [f"exemplars_{k}" for k in range(7)]
    assert [ROWS[key].recipe["num_und"] + ROWS[key].recipe["num_gen"] for key in SWEEPS["tokens"]] == [4, 8, 16, 32, 64]
    with pytest.raises(ConfigError, match="no row is called"):
        chosen_rows(["best"])


def test_a_row_gives_the_shares_it_does_not_train_to_the_others() -> None:
    base = TrainingRecipe(share_understanding=0.5, share_generation=0.25, share_editing=0.25)
    without = ROWS["without_edit_data"].recipe_of(base)
    assert without.shares == pytest.approx({"understanding": 2 / 3, "generation": 1 / 3, "editing": 0})
    assert ROWS["yollava_style"].recipe_of(base).shares["understanding"] == 1
    assert ROWS["without_replay"].recipe_of(base) == ROWS["ours"].recipe_of(base), "they share their training"
    assert all("-style" not in row.title or "re-implementation" in row.note for row in ROWS.values())


def test_rows_of_one_recipe_share_a_training_unless_they_learn_in_another_way() -> None:
    plan, base = RunPlan(data="d", rows=("ours",)), TrainingRecipe()

    def key(row: str, *, seed: int = 0) -> str:
        recipe = plan.recipe_of(ROWS[row], base, seed=seed)
        return plan.training_key(ROWS[row], recipe, fingerprint="f", data="d")

    assert key("ours") == key("without_replay") == key("shuffled") == key("tokens_32")
    assert key("ours") != key("ours", seed=1)
    coupled = ROWS["yochameleon_style"].recipe_of(base).with_overrides({"init": "visual"})
    assert coupled == ROWS["unictokens_style"].recipe_of(base)
    staged = plan.training_key(ROWS["unictokens_style"], coupled, fingerprint="f", data="d")
    assert staged != plan.training_key(ROWS["yochameleon_style"], coupled, fingerprint="f", data="d")


def test_a_look_is_concentrated_and_on_its_subject_where_that_is_known() -> None:
    weights = np.ones((10, 10), np.float32)
    look = Look(photo=Image.new("RGB", (20, 20)), weights=weights)
    assert look.concentration == pytest.approx(0.1)
    assert look.on_subject is None
    weights[0] = 91
    assert Look(photo=look.photo, weights=weights).concentration == pytest.approx(0.91)
    assert looks_table({"ours": {"a": look}}, {"ours": "Ours"})[1] == ["Ours", "1", "0.910", "unknown", "unknown"]


def test_a_plan_names_its_run_after_what_it_does() -> None:
    plan = RunPlan(data="/data/unictokens_data", rows=("ours",))
    assert plan.run.startswith("unictokens-data-")
    assert plan.run != RunPlan(data="/data/unictokens_data", rows=("ours",), seeds=(1,)).run
    assert RunPlan.from_json(plan.to_json()) == plan
    with pytest.raises(ConfigError):
        RunPlan(data="x", rows=())
    with pytest.raises(ConfigError, match="plan of a benchmark run"):
        RunPlan.from_json({"rows": ["ours"]})
