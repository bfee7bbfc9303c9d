import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from jobs.build_edit_pairs import main
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.edit_pairs.table import PairState, decide, read_pairs, write_pairs
from omnifarm.concept.examples import ExampleSampler
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.validate import validate
from tests.unit.concept.edit_pairs.conftest import Scene, as_png, scene

__all__ = ["as_png", "scene"]


@pytest.fixture
def place(tmp_path: Path, scene: Scene, as_png: Callable[[np.ndarray], bytes]) -> Path:
    """Two balls: two photographs of each, each elsewhere."""
    for number, name in enumerate(("ball", "boule")):
        folder = tmp_path / "set" / name
        (folder / "images").mkdir(parents=True)
        (folder / "concept.yaml").write_text("class: ball\n")
        for index in range(2):
            seed = 10 * number + index
            photo, _, _ = scene(seed, centre=(50 + 9 * seed % 30, 64))
            (folder / f"images/{index}.png").write_bytes(as_png(photo))
    return tmp_path / "set"


def run(*arguments: str | Path, exit_code: int = 0) -> dict[str, object]:
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert done.exit_code == exit_code, done.output
    return json.loads(done.stdout) if exit_code == 0 else {}


def load(place: Path, name: str) -> ConceptSpec:
    spec = dict(load_concepts(str(place)))[name]
    assert isinstance(spec, ConceptSpec), spec
    return spec


def accept_all(place: Path) -> None:
    path = place / "edit_pairs/pairs.parquet"
    pairs = read_pairs(path.read_bytes(), where="x")
    write_pairs(path, [decide(pair, state=PairState.ACCEPTED, reason="", reviewer="ana") for pair in pairs])


def test_pairs_are_made_reviewed_and_learned_from(place: Path) -> None:
    summary = run("--concepts", place)
    assert summary["states"] == {"auto_pass": 4, "auto_fail": 0, "accepted": 0, "rejected": 0}
    assert load(place, "ball").edits == ()
    assert any("wait for somebody to look" in problem.what for problem in validate(str(place)))

    table = place / "edit_pairs/pairs.parquet"
    first, second, *others = read_pairs(table.read_bytes(), where="x")
    decisions = {pair.pair_id: {"state": "rejected"} for pair in (first, *others)}
    decisions[second.pair_id] = {"state": "accepted"}
    saved = {"schema_version": 1, "reviewer": "ana", "decisions": decisions}
    (place / "edit_pairs/decisions.json").write_text(json.dumps(saved))
    again = run("--concepts", place)
    assert again["states"] == {"auto_pass": 0, "auto_fail": 0, "accepted": 1, "rejected": 3}
    assert load(place, "boule").edits == ()
    (edit,) = load(place, "ball").edits
    assert edit.instruction == "remove <ball>: ball from the photo"
    assert edit.source.path == second.source
    assert not any("wait for somebody to look" in problem.what for problem in validate(str(place)))
    recipe = TrainingRecipe(share_understanding=0.0, share_generation=0.0, share_editing=1.0)
    examples = ExampleSampler(load(place, "ball"), recipe=recipe).draw(0)
    assert {(one.kind, one.image, one.target) for one in examples} == {("edit", edit.source, edit.target)}


def test_running_again_makes_only_what_is_missing_and_keeps_decisions(place: Path) -> None:
    run("--concepts", place, "--only", "ball")
    targets = sorted((place / "edit_pairs/ball").glob("*.png"))
    times = [path.stat().st_mtime_ns for path in targets]
    assert run("--concepts", place)["pairs"] == 4
    assert [path.stat().st_mtime_ns for path in targets] == times
    assert run("--concepts", place, "--only", "ball", "--inpainter", "telea")["states"]["auto_fail"] == 2  # type: ignore[index]
    assert targets[0].stat().st_mtime_ns > times[0]


def test_others_of_the_class_may_be_kept_in_the_picture(place: Path) -> None:
    run("--concepts", place, "--only", "ball", "--keep-others", "1")
    accept_all(place)
    kept = [edit for edit in load(place, "ball").edits if edit.source.digest == edit.target.digest]
    assert [edit.source.path.split("/")[0] for edit in kept] == ["boule"]


@pytest.mark.parametrize("is_deleted", [True, False])
def test_a_photograph_that_is_gone_costs_its_pair_and_nothing_else(
    place: Path, scene: Scene, as_png: Callable[[np.ndarray], bytes], is_deleted: bool
) -> None:
    run("--concepts", place, "--keep-others", "2")
    accept_all(place)
    photo = place / "ball/images/0.png"
    photo.unlink() if is_deleted else photo.write_bytes(as_png(scene(99)[0]))
    what = "does not exist" if is_deleted else "was changed since"
    assert len(load(place, "ball").edits) == 3, "one removal and two of the other ball"
    assert len(load(place, "boule").edits) == 3, "two removals and one of the other ball"
    assert sum(what in problem.what for problem in validate(str(place))) == 2
    states = run("--concepts", place)["states"]
    assert states == {"auto_pass": 0 if is_deleted else 1, "auto_fail": 0, "accepted": 6, "rejected": 0}
    assert not any(what in problem.what for problem in validate(str(place)))


def test_a_lost_target_is_made_again(place: Path) -> None:
    run("--concepts", place, "--only", "ball")
    accept_all(place)
    lost = sorted((place / "edit_pairs/ball").glob("*[0-9a-f].png"))[0]
    lost.unlink()
    assert len(load(place, "ball").edits) == 1
    assert run("--concepts", place, "--only", "ball")["states"]["auto_pass"] == 1  # type: ignore[index]
    assert lost.is_file()


def test_a_step_that_breaks_on_one_photograph_loses_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("--concepts", place, "--only", "boule")
    accept_all(place)
    calls = 0

    def breaking(self: object, pixels: np.ndarray, *, mask: np.ndarray, seed: int) -> np.ndarray:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise RuntimeError("out of memory")
        return pixels

    monkeypatch.setattr("omnifarm.concept.edit_pairs.patch_fill.PatchInpainter.inpaint", breaking)
    app = typer.Typer()
    app.command()(main)
    done = CliRunner().invoke(app, ["--concepts", str(place), "--only", "ball"])
    assert isinstance(done.exception, RuntimeError)
    pairs = read_pairs((place / "edit_pairs/pairs.parquet").read_bytes(), where="x")
    assert sorted((pair.concept, pair.state.is_reviewed) for pair in pairs) == [
        ("ball", False), ("boule", True), ("boule", True),
    ]  # fmt: skip


def test_one_concept_that_cannot_be_read_does_not_stop_the_others(place: Path) -> None:
    (place / "boule/concept.yaml").write_text("info: no class")
    run("--concepts", place, exit_code=1)
    pairs = read_pairs((place / "edit_pairs/pairs.parquet").read_bytes(), where="x")
    assert {pair.concept for pair in pairs} == {"ball"}
    assert {pair.state for pair in pairs} == {PairState.AUTO_PASS}


def test_what_cannot_be_done_is_said_at_once(place: Path) -> None:
    run("--concepts", place, "--only", "ghost", exit_code=2)
    run("--concepts", place, "--decisions", place / "nothing.json", exit_code=2)
    run("--concepts", place, "--inpainter", "magic", exit_code=2)
