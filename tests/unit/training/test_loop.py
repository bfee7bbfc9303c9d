import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import LatentSegment, Segment
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
from omnifarm.errors import ConceptError, StoreError, TrainingError
from omnifarm.training.checkpoint import load_lane, save_lane
from omnifarm.training.lane import Lane, SampleSource
from omnifarm.training.loop import Trainer
from omnifarm.training.objective import lane_loss
from omnifarm.training.sharding import Replicated
from omnifarm.training.step import shift_rows
from tests.unit.training.conftest import SPECIAL_IDS

MakeLane = Callable[..., Lane]


@pytest.fixture
def make_trainer(model: Backbone, config: BackboneConfig) -> Callable[[int], Trainer]:
    def make(lanes_per_pack: int = 1) -> Trainer:
        return Trainer(Replicated(model), special_ids=SPECIAL_IDS, config=config, lanes_per_pack=lanes_per_pack)

    return make


def run(trainer: Trainer, *lanes: Lane) -> None:
    for lane in lanes:
        trainer.add(lane)
    while trainer.lanes:
        trainer.step()


def require_equal(lane: Lane, other: Lane) -> None:
    """Hold everything two lanes learned to the last bit."""
    for one, like in ((lane.soft, other.soft), (lane.moments.first, other.moments.first),
                      (lane.moments.second, other.moments.second)):  # fmt: skip
        assert torch.equal(one, like), lane.name
    assert [one.total for one in lane.losses] == [one.total for one in other.losses]


def test_no_weight_changes_by_one_bit(
    model: Backbone, make_trainer: Callable[..., Trainer], make_lane: MakeLane
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run(make_trainer(2), make_lane("a"), make_lane("b", seed=1))
    after = model.state_dict()
    assert set(before) == set(after)
    for name, value in before.items():
        assert torch.equal(value, after[name]), name
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_leaves_zero_and_lowers_the_loss(make_trainer: Callable[..., Trainer], make_lane: MakeLane) -> None:
    class Same:
        """The same samples in every step, so that the losses can be compared."""

        def __init__(self, source: SampleSource) -> None:
            self._samples = source.draw(0)

        def draw(self, step: int) -> Sequence[ConceptSample]:
            return self._samples

    lane = make_lane("a", recipe=TrainingRecipe(
        steps=40, batch_size=3, learning_rate=3e-2, warmup_steps=2, num_und=2, num_gen=2, precision="float32"
    ))  # fmt: skip
    lane.source = Same(lane.source)
    run(make_trainer(), lane)
    assert lane.is_done
    assert lane.stopped is None
    assert torch.all(lane.soft.detach().abs().amax(dim=1) > 0), "every soft token, und and gen, has moved"
    assert lane.losses[-1].total < 0.9 * lane.losses[0].total


def test_one_lane_per_pack_gives_what_the_lane_gives_alone(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane
) -> None:
    alone, among = make_lane("a"), make_lane("a")
    run(make_trainer(1), alone)
    run(make_trainer(1), make_lane("z", seed=7), among, make_lane("y", seed=8))
    assert torch.equal(alone.soft, among.soft)
    assert alone.losses == among.losses or [one.total for one in alone.losses] == [one.total for one in among.losses]


def test_a_shared_pack_gives_what_the_lane_gives_alone(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane
) -> None:
    alone, among = make_lane("a", start=0.1), make_lane("a", start=0.1)
    run(make_trainer(1), alone)
    run(make_trainer(3), make_lane("z", seed=7, start=0.1), among, make_lane("y", seed=8, start=0.1))
    assert torch.equal(alone.soft, among.soft)
    assert [one.total for one in alone.losses] == [one.total for one in among.losses]


def test_a_lane_has_no_gradient_in_its_neighbours_tokens(
    model: Backbone, config: BackboneConfig, make_lane: MakeLane
) -> None:
    first, second = make_lane("a", start=0.1), make_lane("b", seed=1, start=0.2)
    drawn = [*first.source.draw(0)], [*second.source.draw(0)]
    rows = first.soft.shape[0]
    sequences = [sample.segments for sample in drawn[0]] + [shift_rows(one.segments, by=rows) for one in drawn[1]]
    output = Replicated(model).forward(
        pack(sequences, special_ids=SPECIAL_IDS, config=config), soft_table=torch.cat([first.soft, second.soft])
    )
    tasks = [sample.task for sample in (*drawn[0], *drawn[1])]
    loss = lane_loss(output, tasks=tasks, samples=range(len(drawn[0])), recipe=first.recipe)
    own, other = torch.autograd.grad(loss.total, [first.soft, second.soft])
    assert torch.count_nonzero(own) > 0
    assert torch.count_nonzero(other) == 0


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_a_resumed_lane_ends_bit_for_bit_the_same(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, cut: int
) -> None:
    whole = make_lane("a")
    run(make_trainer(), whole)
    broken = make_lane("a")
    trainer = make_trainer()
    trainer.add(broken)
    for _ in range(cut):
        trainer.step()
    data = save_lane(trainer.remove("a"), identity="x")
    resumed = load_lane(data, identity="x", recipe=broken.recipe, source=make_lane("a").source)
    run(make_trainer(), resumed)
    assert torch.equal(whole.soft, resumed.soft)
    assert [one.total for one in whole.losses] == [one.total for one in resumed.losses]


@pytest.mark.parametrize("lanes_per_pack", [1, 3])
def test_a_lane_with_a_broken_number_stops_alone(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, lanes_per_pack: int
) -> None:
    broken, healthy = make_lane("bad", start=float("nan")), make_lane("good", seed=3)
    expected = make_lane("good", seed=3)
    run(make_trainer(), expected)
    run(make_trainer(lanes_per_pack), broken, healthy)
    assert broken.stopped is not None
    assert "nan" in broken.stopped
    assert broken.step == 0
    assert healthy.is_done
    assert healthy.stopped is None
    assert torch.equal(healthy.soft, expected.soft), "it went on alone, as if it always had been"


class Away:
    """Samples that cannot be drawn while `error` is set."""

    def __init__(self, source: SampleSource, *, error: Exception | None = None) -> None:
        self._source, self.error = source, error

    def draw(self, step: int) -> Sequence[ConceptSample]:
        if self.error is not None:
            raise self.error
        return self._source.draw(step)


@pytest.mark.parametrize("lanes_per_pack", [1, 2])
def test_a_lane_whose_pictures_cannot_be_fetched_waits_while_the_others_step(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, lanes_per_pack: int
) -> None:
    expected, waits, steps = make_lane("a"), make_lane("a"), make_lane("b", seed=3)
    run(make_trainer(), expected)
    waits.source = away = Away(waits.source, error=StoreError("the store is away"))
    trainer = make_trainer(lanes_per_pack)
    trainer.add(waits)
    trainer.add(steps)
    assert trainer.step() == []
    assert (waits.step, steps.step, list(trainer.waiting)) == (0, 1, ["a"])
    away.error = None
    run(trainer)
    assert trainer.waiting == {}
    assert waits.stopped is None
    assert torch.equal(waits.soft, expected.soft)


def test_a_bad_held_out_picture_stops_its_lane_alone(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, recipe: TrainingRecipe
) -> None:
    bad = make_lane("a", recipe=replace(recipe, held_out_photos=1, held_out_every=2))
    bad.held_out = Away(bad.source, error=ConceptError("7.png was changed"))
    good = make_lane("b", seed=3)
    run(make_trainer(2), bad, good)
    assert (bad.step, good.is_done) == (2, True)
    assert bad.stopped == "the samples of step 2 cannot be made: 7.png was changed"


class Loud:
    """From step 3 on the noise to be predicted is a thousand times too loud."""

    def __init__(self, source: SampleSource) -> None:
        self._source = source

    def draw(self, step: int) -> Sequence[ConceptSample]:
        samples = self._source.draw(step)
        if step < 3:
            return samples
        return [replace(one, segments=[_louder(part) for part in one.segments]) for one in samples]


def _louder(segment: Segment) -> Segment:
    if isinstance(segment, LatentSegment) and segment.noise is not None:
        return replace(segment, noise=segment.noise * 1000)
    return segment


def test_an_exploding_lane_stops_alone_with_its_numbers(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane
) -> None:
    alone, loud, calm = make_lane("b", seed=1), make_lane("a"), make_lane("b", seed=1)
    loud.source = Loud(loud.source)
    run(make_trainer(), alone)
    run(make_trainer(2), loud, calm)
    assert loud.step == 3
    assert loud.stopped is not None
    assert "exploded" in loud.stopped
    assert (calm.is_done, calm.stopped) == (True, None)
    require_equal(calm, alone)


def test_a_lane_whose_soft_tokens_run_away_stops_though_its_loss_does_not_show_it(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, recipe: TrainingRecipe
) -> None:
    alone = make_lane("b", seed=1)
    run(make_trainer(), alone)
    wild, calm = make_lane("a", recipe=replace(recipe, learning_rate=1e6, warmup_steps=0)), make_lane("b", seed=1)
    run(make_trainer(), wild, calm)
    assert wild.step == 1, "it stopped at once"
    assert all(math.isfinite(one.total) for one in wild.losses)
    assert re.search("soft tokens grew to a length of .* lower the learning rate", wild.stopped or "")
    assert calm.is_done
    assert torch.equal(calm.soft, alone.soft)


def test_lanes_join_and_leave_while_others_run_and_learn_what_they_learn_alone(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane
) -> None:
    alone = {name: make_lane(name, seed=seed) for name, seed in (("a", 0), ("b", 1), ("c", 2))}
    for lane in alone.values():
        run(make_trainer(), lane)
    early, late, moved = make_lane("a"), make_lane("b", seed=1), make_lane("c", seed=2)
    trainer, elsewhere = make_trainer(4), make_trainer(4)
    trainer.add(early)
    trainer.add(moved)
    for _ in range(4):
        trainer.step()
    elsewhere.add(trainer.remove("c"))
    trainer.add(late)
    assert trainer.step() == []
    assert trainer.step() == [early]
    assert trainer.lanes == (late,)
    assert late.step == 2
    run(trainer)
    run(elsewhere)
    for lane in (early, late, moved):
        require_equal(lane, alone[lane.name])


def test_lanes_of_one_pack_have_rates_clips_and_soft_tokens_of_their_own(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, recipe: TrainingRecipe
) -> None:
    settings = {
        "a": {},
        "b": {"learning_rate": 3e-2, "warmup_steps": 0},
        "c": {"max_grad_norm": 1e-3},
        "d": {"num_und": 4, "num_gen": 1},
        "e": {"weight_decay": 0.1, "batch_size": 2, "steps": 4},
    }

    def lanes() -> list[Lane]:
        return [make_lane(name, recipe=replace(recipe, **given), start=0.1) for name, given in settings.items()]

    alone, among = lanes(), lanes()
    for lane in alone:
        run(make_trainer(), lane)
    run(make_trainer(len(among)), *among)
    for lane, other in zip(among, alone, strict=True):
        require_equal(lane, other)
    plain = among[0].soft
    for lane in among[1:]:
        assert lane.soft.shape != plain.shape or not torch.equal(lane.soft, plain), (
            f"{lane.name}'s settings did nothing"
        )


def test_what_sharing_saved_is_logged_at_the_start_and_when_a_lane_ends(
    make_trainer: Callable[..., Trainer], make_lane: MakeLane, recipe: TrainingRecipe, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(2)
    with caplog.at_level(logging.INFO, logger="omnifarm.training.loop"):
        run(trainer, make_lane("a"), make_lane("b", seed=1, recipe=replace(recipe, steps=4)))
    told = [record.fields for record in caplog.records if record.message == "tokens_packed"]
    assert [one["steps"] for one in told] == [1, 4, 6]
    assert told[-1]["num_tokens"] == trainer.count.num_tokens
    assert told[-1]["share_saved"] == round(trainer.count.share_saved, 4) > 0


def test_two_lanes_of_one_name_are_refused(make_trainer: Callable[..., Trainer], make_lane: MakeLane) -> None:
    trainer = make_trainer()
    trainer.add(make_lane("a"))
    with pytest.raises(TrainingError, match="already training"):
        trainer.add(make_lane("a"))


def test_a_trainable_backbone_is_refused(config: BackboneConfig) -> None:
    with pytest.raises(ValueError, match="frozen"):
        Replicated(Backbone(config))


def test_steps_without_any_soft_token_change_nothing(make_trainer: Callable[..., Trainer], make_lane: MakeLane) -> None:
    class WithoutText:
        """Drawings whose text is left out, as `text_dropout` does now and then; with a batch of one, all there is."""

        def __init__(self, source: SampleSource) -> None:
            self._source = source

        def draw(self, step: int) -> Sequence[ConceptSample]:
            return [
                replace(sample, segments=[part for part in sample.segments if isinstance(part, LatentSegment)])
                for sample in self._source.draw(step)
            ]

    lane = make_lane("a", start=0.1, recipe=TrainingRecipe(
        steps=2, batch_size=1, share_understanding=0.0, share_generation=1.0, share_editing=0.0, num_und=2, num_gen=2,
        precision="float32",
    ))  # fmt: skip
    lane.source = WithoutText(lane.source)
    before = lane.soft.detach().clone()
    run(make_trainer(), lane)
    assert (lane.step, lane.stopped) == (2, None)
    assert all(math.isfinite(one.total) and one.total > 0 for one in lane.losses)
    assert torch.equal(lane.soft.detach(), before)
