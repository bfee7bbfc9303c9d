from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
from omnifarm.errors import TrainingError
from omnifarm.training.checkpoint import load_lane, save_lane
from omnifarm.training.curves import loss_curve
from omnifarm.training.lane import Lane, StepLosses


class Empty:
    def draw(self, step: int) -> Sequence[ConceptSample]:
        return []


RECIPE = TrainingRecipe(steps=5, warmup_steps=0, learning_rate=1e-2)
LOSSES = StepLosses(total=1.5, understanding=1.0, generation=0.5, editing=float("nan"), grad_norm=7.0)


@pytest.fixture
def lane() -> Lane:
    lane = Lane.start("maeve", recipe=RECIPE, source=Empty(), soft_CD=torch.zeros(33, 4))
    for step in range(3):
        lane.apply(torch.full((33, 4), 0.1 * (step + 1)), losses=LOSSES)
    return lane


def reload(data: bytes, identity: str = "abc") -> Lane:
    return load_lane(data, identity=identity, recipe=RECIPE, source=Empty())


def test_a_lane_comes_back_bit_for_bit(lane: Lane) -> None:
    back = reload(save_lane(lane, identity="abc"))
    assert torch.equal(back.soft, lane.soft)
    assert torch.equal(back.moments.first, lane.moments.first)
    assert torch.equal(back.moments.second, lane.moments.second)
    assert (back.name, back.step, back.stopped) == ("maeve", 3, None)
    assert back.soft.requires_grad
    assert [one.total for one in back.losses] == [1.5, 1.5, 1.5]


def test_a_lane_goes_on_as_if_it_had_never_left(lane: Lane) -> None:
    back = reload(save_lane(lane, identity="abc"))
    for one in (lane, back):
        one.apply(torch.full((33, 4), -0.3), losses=LOSSES)
    assert torch.equal(back.soft, lane.soft)


def test_a_checkpoint_of_something_else_is_refused(lane: Lane) -> None:
    with pytest.raises(TrainingError, match="start the lane anew"):
        reload(save_lane(lane, identity="abc"), identity="abd")


@pytest.mark.parametrize("cut", [0, 4, 50, 400])
def test_a_torn_checkpoint_is_refused(lane: Lane, cut: int) -> None:
    with pytest.raises(TrainingError, match="expected a lane checkpoint"):
        reload(save_lane(lane, identity="abc")[:cut])


def test_a_stopped_lane_stays_stopped(lane: Lane) -> None:
    lane.stop("it exploded")
    lane.stop("a later reason")
    assert reload(save_lane(lane, identity="abc")).stopped == "it exploded"


def test_the_curve_is_json_without_nan(lane: Lane) -> None:
    curve = loss_curve(lane)
    assert curve["step"] == [0.0, 1.0, 2.0]
    assert curve["total"] == [1.5, 1.5, 1.5]
    assert curve["editing"] == [None, None, None]


def test_a_long_curve_is_thinned_to_window_means(lane: Lane) -> None:
    lane.losses = [replace(LOSSES, total=float(step), editing=2.0) for step in range(10)]
    curve = loss_curve(lane, max_points=4)
    assert curve["step"] == [0.0, 3.0, 6.0, 9.0]
    assert curve["total"] == [1.0, 4.0, 7.0, 9.0]
    assert curve["editing"] == [2.0] * 4
