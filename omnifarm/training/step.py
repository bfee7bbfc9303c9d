"""One optimizer step of several lanes over one packed forward and backward.

The lanes' soft tokens are stacked into one table; every lane's slots are moved to its own rows; the loss is the sum of
the lanes' own losses, so the gradient of each lane's rows is the gradient of its own loss and nothing else.
A number that is not finite stops only the lane it belongs to: the step is then repeated lane by lane, so that guilt is
decided without neighbours.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import Segment, TextSegment
from omnifarm.concept.recipe import Task
from omnifarm.concept.samples import ConceptSample
from omnifarm.errors import OmniFarmError
from omnifarm.logs import event
from omnifarm.training.lane import Lane, StepLosses
from omnifarm.training.objective import LaneLoss, lane_loss
from omnifarm.training.sharding import Sharding

_logger = logging.getLogger(__name__)

EXPLOSION = 20.0
"""A loss this many times its own start (at least 1.0) after the warm-up is not coming back."""


def packed_step(lanes: Sequence[Lane], *, sharding: Sharding, special_ids: SpecialIds, config: BackboneConfig) -> None:
    """Advance every lane by one optimizer step; a lane that diverges is stopped instead.

    Args:
        lanes: Active lanes with different names; changed in place.
        sharding: The frozen backbone.
        special_ids: Ids of the frame tokens.
        config: The backbone's configuration.
    """
    drawn = _draw(lanes)
    lanes = [lane for lane in lanes if lane.is_active]
    if not lanes:
        return
    losses, grads = _forward_backward(lanes, drawn, sharding=sharding, special_ids=special_ids, config=config)
    measured = [_measured(loss, grad_CD) for loss, grad_CD in zip(losses, grads, strict=True)]
    if len(lanes) > 1 and not all(_is_finite(one) for one in measured):
        for lane in lanes:
            packed_step([lane], sharding=sharding, special_ids=special_ids, config=config)
        return
    for lane, one, grad_CD in zip(lanes, measured, grads, strict=True):
        if (reason := _divergence(lane, one)) is not None:
            lane.stop(reason)
            event(_logger, "lane_stopped", level=logging.WARNING, concept=lane.name, step=lane.step, reason=reason)
        else:
            lane.apply(grad_CD, losses=one)


def _draw(lanes: Sequence[Lane]) -> list[Sequence[ConceptSample]]:
    """Return the samples of every lane that has them; a lane whose data fail is stopped."""
    drawn = []
    for lane in lanes:
        try:
            drawn.append(lane.source.draw(lane.step))
        except OmniFarmError as error:
            lane.stop(f"the samples of step {lane.step} cannot be made: {error}")
            event(_logger, "lane_stopped", level=logging.WARNING, concept=lane.name, step=lane.step, reason=str(error))
    return drawn


def _forward_backward(
    lanes: Sequence[Lane],
    drawn: Sequence[Sequence[ConceptSample]],
    *,
    sharding: Sharding,
    special_ids: SpecialIds,
    config: BackboneConfig,
) -> tuple[list[LaneLoss], list[Tensor]]:
    """Return each lane's loss and the gradient of its soft tokens, changing nothing."""
    sequences: list[list[Segment]] = []
    tasks: list[Task] = []
    spans: list[range] = []
    row = 0
    for lane, samples in zip(lanes, drawn, strict=True):
        spans.append(range(len(sequences), len(sequences) + len(samples)))
        sequences += [shift_rows(sample.segments, by=row) for sample in samples]
        tasks += [sample.task for sample in samples]
        row += lane.soft.shape[0]
    packed = pack(sequences, special_ids=special_ids, config=config, share_prefixes=True).to(sharding.device)
    tables = [lane.soft for lane in lanes]
    output = sharding.forward(packed, soft_table=torch.cat(tables))
    losses = [
        lane_loss(output, tasks=tasks, samples=span, recipe=lane.recipe)
        for lane, span in zip(lanes, spans, strict=True)
    ]
    grads = torch.autograd.grad(torch.stack([loss.total for loss in losses]).sum(), tables)
    return losses, list(grads)


def shift_rows(segments: Sequence[Segment], *, by: int) -> list[Segment]:
    """Return a sequence whose soft slots point `by` rows further down the table."""
    return [
        replace(segment, soft=tuple(replace(slot, row=slot.row + by) for slot in segment.soft))
        if by and isinstance(segment, TextSegment) and segment.soft
        else segment
        for segment in segments
    ]


def _measured(loss: LaneLoss, grad_CD: Tensor) -> StepLosses:
    terms = {task: float(term) for task, term in loss.terms.items()}
    return StepLosses(
        total=float(loss.total.detach()),
        understanding=terms.get("understanding", math.nan),
        generation=terms.get("generation", math.nan),
        editing=terms.get("editing", math.nan),
        grad_norm=float(torch.linalg.vector_norm(grad_CD, dtype=torch.float64)),
    )


def _is_finite(one: StepLosses) -> bool:
    return math.isfinite(one.total) and math.isfinite(one.grad_norm)


def _divergence(lane: Lane, one: StepLosses) -> str | None:
    """Say why a lane cannot go on, or None."""
    if not math.isfinite(one.total):
        return f"the loss became {one.total} at step {lane.step}; lower the learning rate"
    if not math.isfinite(one.grad_norm):
        return f"the gradient's norm became {one.grad_norm} at step {lane.step}; lower the learning rate"
    if lane.step >= lane.recipe.warmup_steps and lane.losses:
        start = max(1.0, lane.losses[0].total)
        if one.total > EXPLOSION * start:
            return (
                f"the loss exploded: {one.total:.3g} at step {lane.step} after {lane.losses[0].total:.3g} at the start; "
                "lower the learning rate"
            )
    return None
