"""Held-out losses change nothing that is learned, and decide when to end and what to keep if asked."""

import dataclasses
import io
import math
import re
from collections.abc import Callable
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone, TrainOutput
from omnifarm.backbone.packed import Pack
from omnifarm.backbone.segments import LatentSegment, Segment
from omnifarm.concept.held_out import split_held_out
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
from omnifarm.concept.spec import QA, ConceptImage, ConceptSpec, EditPair
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.training.checkpoint import load_lane, save_lane
from omnifarm.training.curves import curve_parquet
from omnifarm.training.lane import Lane
from omnifarm.training.loop import Trainer
from omnifarm.training.sharding import Replicated
from tests.unit.training.conftest import SPECIAL_IDS, MadeUp

MakeLane = Callable[..., Lane]
PLAIN = {"steps": 6, "batch_size": 3, "learning_rate": 1e-2, "warmup_steps": 2, "num_und": 2, "num_gen": 2,
         "precision": "float32"}  # fmt: skip
MEASURED = TrainingRecipe.from_json({**PLAIN, "held_out_photos": 1, "held_out_every": 2})


@pytest.fixture
def train(model: Backbone, config: BackboneConfig) -> Callable[..., None]:
    def run(*lanes: Lane) -> None:
        trainer = Trainer(Replicated(model), special_ids=SPECIAL_IDS, config=config, lanes_per_pack=len(lanes))
        for lane in lanes:
            trainer.add(lane)
        while trainer.lanes:
            trainer.step()

    return run


def test_measuring_changes_nothing_that_is_learned(train, make_lane: MakeLane, config: BackboneConfig) -> None:
    plain, measured = make_lane("a"), make_lane("a", recipe=MEASURED)
    measured.held_out = MadeUp(config, recipe=MEASURED, seed=9)
    train(plain)
    train(measured)
    assert torch.equal(measured.soft, plain.soft)
    assert [one.step for one in measured.held_out_losses] == [2, 4, 6]
    assert all(math.isfinite(one.loss) for one in measured.held_out_losses)


def test_the_held_out_loss_is_the_loss_of_those_samples(train, make_lane: MakeLane, config: BackboneConfig) -> None:
    measured = make_lane("a", recipe=MEASURED)
    measured.held_out = MadeUp(config, recipe=MEASURED, seed=9)
    train(measured, make_lane("b", seed=4))
    at_two = make_lane("a", recipe=dataclasses.replace(MEASURED, steps=2))
    train(at_two)
    judge = make_lane("a", recipe=dataclasses.replace(MEASURED, steps=1))
    judge.source = measured.held_out
    with torch.no_grad():
        judge.soft.copy_(at_two.soft)
    train(judge)
    assert measured.held_out_losses[0].loss == pytest.approx(judge.losses[0].total, rel=1e-3)


def test_the_last_soft_tokens_are_measured_too_and_kept_if_they_are_best(train, make_lane, config) -> None:
    recipe = dataclasses.replace(MEASURED, held_out_every=100, keep="best")
    lane = make_lane("a", recipe=recipe)
    lane.held_out = MadeUp(config, recipe=recipe, seed=9)
    train(lane)
    assert [one.step for one in lane.held_out_losses] == [6]
    assert len(lane.losses) == 6
    assert torch.equal(lane.result, lane.soft.detach())


class Broken:
    """Samples whose noise is not finite."""

    def __init__(self, source: MadeUp) -> None:
        self._source = source

    def draw(self, step: int) -> list[ConceptSample]:
        return [replace(one, segments=[_broken(part) for part in one.segments]) for one in self._source.draw(step)]


def _broken(segment: Segment) -> Segment:
    if isinstance(segment, LatentSegment) and segment.noise is not None:
        return replace(segment, noise=segment.noise * math.inf)
    return segment


def test_a_lane_whose_held_out_loss_is_no_number_stops_alone_and_says_so(
    train, make_lane: MakeLane, config: BackboneConfig
) -> None:
    alone, bad, good = (make_lane(name, recipe=MEASURED, seed=ord(name)) for name in "gbg")
    bad.held_out = Broken(MadeUp(config, recipe=MEASURED, seed=9))
    for lane in (alone, good):
        lane.held_out = MadeUp(config, recipe=MEASURED, seed=9)
    train(alone)
    train(bad, good)
    assert bad.step == 2
    assert re.fullmatch("the held-out loss became (nan|inf) at step 2; lower the learning rate", bad.stopped or "")
    assert (bad.held_out_losses, bad.best) == ([], None)
    assert good.is_done
    assert torch.equal(good.soft, alone.soft)
    assert good.held_out_losses == alone.held_out_losses


def test_measuring_takes_a_pass_of_its_own_and_no_step_behind_the_last(
    make_lane: MakeLane, model: Backbone, config: BackboneConfig
) -> None:
    passes: list[str] = []

    class Counting(Replicated):
        def forward(self, pack: Pack, *, soft_table: torch.Tensor) -> TrainOutput:
            passes.append("forward")
            return super().forward(pack, soft_table=soft_table)

        def measure(self, pack: Pack, *, soft_table: torch.Tensor) -> TrainOutput:
            output = super().measure(pack, soft_table=soft_table)
            passes[-1] = "measure"
            return output

    lane = make_lane("a", recipe=MEASURED)
    lane.held_out = MadeUp(config, recipe=MEASURED, seed=9)
    trainer = Trainer(Counting(model), special_ids=SPECIAL_IDS, config=config)
    trainer.add(lane)
    while trainer.lanes:
        trainer.step()
    assert passes == ["forward", "forward", "measure"] * 3


def lane_with(losses: list[float], **settings: object) -> Lane:
    recipe = dataclasses.replace(MEASURED, **settings)

    class Nothing:
        def draw(self, step: int) -> list[object]:
            return []

    lane = Lane.start("a", recipe=recipe, source=Nothing(), soft_CD=torch.zeros(5, 4))
    for loss in losses:
        with torch.no_grad():
            lane.soft.fill_(loss)
        lane.measured(loss)
        lane.step += 2
    return lane


def test_a_lane_ends_when_patience_runs_out() -> None:
    assert not lane_with([3.0, 2.0, 2.5], patience=2, steps=100).is_done
    assert lane_with([3.0, 2.0, 2.5, 2.1], patience=2, steps=100).is_done
    assert not lane_with([3.0, 2.0, 2.5, 2.1], steps=100).is_done, "off by default"


def test_the_best_soft_tokens_are_kept_if_asked() -> None:
    assert torch.all(lane_with([3.0, 2.0, 2.5], keep="best").result == 2.0)
    assert torch.all(lane_with([3.0, 2.0, 2.5]).result == 2.5)


def test_measurements_survive_a_checkpoint() -> None:
    lane = lane_with([3.0, 2.0, 2.5], keep="best", steps=6)
    lane.step = 0
    back = load_lane(save_lane(lane, identity="x"), identity="x", recipe=lane.recipe, source=lane.source)
    assert back.held_out_losses == lane.held_out_losses
    assert torch.equal(back.result, lane.result)


@pytest.mark.parametrize("wrong", [{"held_out_every": 2}, {"held_out_photos": 1}, {"patience": 1}, {"keep": "best"}])
def test_settings_that_need_each_other_are_refused_alone(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        TrainingRecipe.from_json({**PLAIN, **wrong})


def test_the_parquet_curve_holds_every_step(train, make_lane: MakeLane, config: BackboneConfig) -> None:
    lane = make_lane("a", recipe=MEASURED)
    lane.held_out = MadeUp(config, recipe=MEASURED, seed=9)
    train(lane)
    table = pq.read_table(io.BytesIO(curve_parquet(lane))).to_pydict()
    assert table["step"] == list(range(7))
    assert table["total"] == [*(one.total for one in lane.losses), None]
    at_two, at_four, at_end = (one.loss for one in lane.held_out_losses)
    assert table["held_out"] == [None, None, at_two, None, at_four, None, at_end]
    assert table["learning_rate"][0] == lane.recipe.learning_rate_at(0)
    norms = (table[name][:6] for name in ("grad_norm", "grad_norm_und", "grad_norm_gen"))
    for whole, und, gen in zip(*norms, strict=True):
        assert whole == pytest.approx(math.hypot(und, gen))
        assert min(und, gen) > 0


def image(digest: str) -> ConceptImage:
    return ConceptImage(path=f"{digest}.png", digest=digest, size=(8, 8))


def test_questions_and_edits_go_with_their_photograph() -> None:
    spec = ConceptSpec(
        name="a", class_noun="dog", images=(image("1"), image("2"), image("3")),
        qa=(QA(question="q", answer="a", image=image("3"), kind="vqa"), QA(question="q", answer="a")),
        edits=(EditPair(source=image("3"), target=image("3t"), instruction="i"),
               EditPair(source=image("1"), target=image("1t"), instruction="i")),
    )  # fmt: skip
    learned, measured = split_held_out(spec, count=1)
    assert [one.digest for one in learned.images] == ["1", "2"]
    assert [one.digest for one in measured.images] == ["3"]
    assert ([qa.image is None for qa in learned.qa], len(measured.qa)) == ([True], 1)
    assert ([one.source.digest for one in learned.edits], [one.source.digest for one in measured.edits]) == (
        ["1"],
        ["3"],
    )
    with pytest.raises(ConceptError, match="hold out fewer"):
        split_held_out(spec, count=3)
