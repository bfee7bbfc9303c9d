import sys
from pathlib import Path

import numpy as np
import pytest

from omnifarm.concept.edit_pairs.build import remove_subject
from omnifarm.concept.edit_pairs.checks import check_removal
from omnifarm.concept.edit_pairs.classical import dilate
from omnifarm.concept.edit_pairs.methods import Methods, known_methods, load_methods
from omnifarm.errors import ConfigError
from tests.unit.concept.edit_pairs.conftest import Scene


@pytest.fixture(scope="module")
def classical() -> Methods:
    return load_methods(locator="contrast", segmenter="grabcut", inpainter="patches")


def test_a_thing_on_a_texture_is_removed_and_passes_the_check(scene: Scene, classical: Methods) -> None:
    photo, background, ball = scene()
    removal = remove_subject(photo, class_noun="ball", methods=classical)
    assert removal.fault == ""
    assert (removal.hole & ball).sum() == ball.sum()
    assert removal.hole.sum() < 2 * ball.sum()
    assert np.array_equal(removal.target[~removal.hole], photo[~removal.hole])
    filled = removal.target[removal.hole].astype(int)
    # No red is left, and the grain goes on: the spread is that of the true background.
    assert filled[:, 0].max() < 170
    assert abs(filled.mean() - background.mean()) < 6
    assert filled.std() > 0.6 * background[removal.hole].astype(int).std()


def test_a_smear_on_a_texture_fails_and_says_so(scene: Scene) -> None:
    photo, _, _ = scene()
    methods = load_methods(locator="contrast", segmenter="grabcut", inpainter="telea")
    removal = remove_subject(photo, class_noun="ball", methods=methods)
    assert "smoother or rougher than its surroundings" in removal.fault


def test_a_picture_without_a_subject_gives_no_pair_that_passes(classical: Methods) -> None:
    rng = np.random.default_rng(0)
    flat = np.clip(120 + rng.normal(0, 4, (96, 96, 3)), 0, 255).astype(np.uint8)
    assert remove_subject(flat, class_noun="ball", methods=classical).fault


def test_the_same_seed_fills_the_same_way(scene: Scene, classical: Methods) -> None:
    photo, _, ball = scene()
    first, again, other = (classical.inpainter.inpaint(photo, mask=ball, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def failed(source: np.ndarray, target: np.ndarray, subject: np.ndarray, hole: np.ndarray) -> set[str]:
    return {check.name for check in check_removal(source, target, subject=subject, hole=hole) if not check.has_passed}


def test_the_true_background_passes_every_check(scene: Scene) -> None:
    photo, background, ball = scene()
    hole = dilate(ball, share=0.03)
    assert failed(photo, np.where(hole[..., None], background, photo), ball, hole) == set()


def test_each_kind_of_bad_removal_is_found(scene: Scene) -> None:
    photo, background, ball = scene()
    hole = dilate(ball, share=0.03)
    good = np.where(hole[..., None], background, photo)
    assert "change" in failed(photo, photo, ball, hole)
    assert "colours_left" in failed(photo, photo, ball, hole)
    touched = good.copy()
    touched[0, 0] ^= 1
    assert failed(photo, touched, ball, hole) == {"outside_difference"}
    flat = good.copy()
    flat[hole] = background.mean(axis=(0, 1))
    assert "texture" in failed(photo, flat, ball, hole)
    rim = hole & ~dilate(ball, share=0.01)
    framed = good.copy()
    framed[rim] = 0
    assert "seam" in failed(photo, framed, ball, hole)
    half = ball.copy()
    half[:, 64:] = False
    small_hole = dilate(half, share=0.01)
    assert "colours_around" in failed(photo, np.where(small_hole[..., None], background, photo), half, small_hole)
    assert "hole_share" in failed(photo, good, ball & False, hole & False)
    stripe = np.zeros_like(ball)
    stripe[:, :60] = True
    assert "border_share" in failed(photo, background, stripe, stripe)
    spilled = ball.copy()
    spilled[60:66, 20:120] = True
    assert "solidity" in failed(photo, background, spilled, spilled)


def test_a_detector_that_still_finds_the_subject_fails_the_pair(scene: Scene) -> None:
    photo, background, ball = scene()
    hole = dilate(ball, share=0.03)
    checks = check_removal(photo, background, subject=ball, hole=hole, found_again=(50, 46, 78, 74))
    assert [check.fault for check in checks if check.name == "found_again" and not check.has_passed]


PLUGIN = """
import numpy as np

class Flat:
    def __init__(self, grey="0"):
        self.grey = int(grey)

    def inpaint(self, pixels, *, mask, seed):
        return np.full_like(pixels, self.grey)
"""


def test_an_inpainter_of_another_package_is_found_by_its_entry_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scene: Scene
) -> None:
    (tmp_path / "flatpaint.py").write_text(PLUGIN)
    info = tmp_path / "flatpaint-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flatpaint\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[omnifarm.inpainters]\nflat = flatpaint:Flat\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert "flat" in known_methods("inpainter")
    methods = load_methods(locator="contrast", segmenter="grabcut", inpainter="flat:7")
    photo, _, _ = scene()
    removal = remove_subject(photo, class_noun="ball", methods=methods)
    assert methods.names[2] == "flat:7"
    assert (removal.target[removal.hole] == 7).all()
    # Whatever an inpainter does elsewhere is undone.
    assert np.array_equal(removal.target[~removal.hole], photo[~removal.hole])


def test_an_unknown_step_is_named_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"expected a segmenter among grabcut, found 'sam'.*omnifarm.segmenters"):
        load_methods(locator="contrast", segmenter="sam", inpainter="patches")
