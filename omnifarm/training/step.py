"""One optimizer step of several lanes over one packed forward and backward.

The lanes' soft tokens are stacked into one table; every lane's slots are moved to its own rows; the loss is the sum of
the lanes' own losses, so the gradient of each lane's rows is the gradient of its own loss and nothing else.
A number that is not finite stops only the lane it belongs to: the step is then repeated lane by lane, so that guilt is
decided without neighbours. A lane whose samples cannot be fetched just now sits the step out.
Held-out losses are taken before the step, with the soft tokens it starts from.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.segments import Segment, TextSegment
from omnifarm.concept.artifact import MAX_NORM
from omnifarm.concept.recipe import Task
from omnifarm.concept.samples import ConceptSample
from omnifarm.errors import OmniFarmError, StoreError
from omnifarm.logs import event
from omnifarm.training.lane import Lane, StepLosses
from omnifarm.training.objective import LaneLoss, lane_loss
from omnifarm.training.sharding import Sharding

_logger = logging.getLogger(__name__)

EXPLOSION = 20.0
"""A loss this many times its own start (at least 1.0) after the warm-up is not coming back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackCount:
    """What the packs of some steps held."""

    num_tokens: int = 0
    """Tokens computed."""
    num_shared: int = 0
    """Tokens that samples had in common with an earlier one, not computed again."""

    def __add__(self, other: "PackCount") -> "PackCount":
        return PackCount(num_tokens=self.num_tokens + other.num_tokens, num_shared=self.num_shared + other.num_shared)

    @property
    def share_saved(self) -> float:
        """Share of all tokens that sharing saved, in [0, 1)."""
        return self.num_shared / max(1, self.num_tokens + self.num_shared)


def packed_step(
    lanes: Sequence[Lane],
    *,
    sharding: Sharding,
    special_ids: SpecialIds,
    config: BackboneConfig,
    share_prefixes: bool = True,
) -> tuple[PackCount, dict[str, StoreError]]:
    """Advance every lane by one optimizer step; a lane that diverges is stopped instead.

    A lane whose pictures cannot be fetched, because their store is away, is left out: it has not stepped and may be
    asked again.

    Args:
        lanes: Active lanes with different names; changed in place.
        sharding: The frozen backbone.
        special_ids: Ids of the frame tokens.
        config: The backbone's configuration.
        share_prefixes: Lay equal prefixes out once; off only to measure what that saves.

    Returns:
        How many tokens were computed and how many were not; and by name the lanes that were left out, with the reason.
    """
    count, waiting = _measure(lanes, sharding=sharding, special_ids=special_ids, config=config, share=share_prefixes)
    drawn, more_waiting = _draw([lane for lane in lanes if lane.is_active and lane.name not in waiting])
    waiting |= more_waiting
    if not drawn:
        return count, waiting
    lanes = [lane for lane, _ in drawn]
    packed, tasks, spans = pack_lanes(
        lanes,
        [samples for _, samples in drawn],
        special_ids=special_ids,
        config=config,
        share_prefixes=share_prefixes,
    )
    output = sharding.forward(packed.to(sharding.device), soft_table=torch.cat([lane.soft for lane in lanes]))
    losses = [
        lane_loss(output, tasks=tasks, samples=span, recipe=lane.recipe)
        for lane, span in zip(lanes, spans, strict=True)
    ]
    total = torch.stack([loss.total for loss in losses]).sum()
    grads = torch.autograd.grad(total, [lane.soft for lane in lanes])
    count += PackCount(num_tokens=packed.num_tokens, num_shared=packed.num_shared)
    measured = [
        step_losses(loss, grad_CD, num_gen=lane.recipe.num_gen)
        for lane, loss, grad_CD in zip(lanes, losses, grads, strict=True)
    ]
    if len(lanes) > 1 and not all(_is_finite(one) for one in measured):
        for lane in lanes:
            more, waits = packed_step(
                [lane], sharding=sharding, special_ids=special_ids, config=config, share_prefixes=share_prefixes
            )
            count, waiting = count + more, waiting | waits
        return count, waiting
    for lane, one, grad_CD in zip(lanes, measured, grads, strict=True):
        reason = _divergence(lane, one)
        if reason is None:
            lane.apply(grad_CD, losses=one)
            reason = _runaway(lane)
        if reason is not None:
            _stop(lane, reason)
    return count, waiting


def _measure(
    lanes: Sequence[Lane], *, sharding: Sharding, special_ids: SpecialIds, config: BackboneConfig, share: bool
) -> tuple[PackCount, dict[str, StoreError]]:
    """Take the held-out losses that are due, each lane's in a pass of its own: no gradient is asked for there."""
    count = PackCount()
    drawn, waiting = _draw([lane for lane in lanes if lane.wants_held_out], held_out=True)
    for lane, samples in drawn:
        packed, tasks, [span] = pack_lanes(
            [lane], [samples], special_ids=special_ids, config=config, share_prefixes=share
        )
        output = sharding.measure(packed.to(sharding.device), soft_table=lane.soft)
        loss = float(lane_loss(output, tasks=tasks, samples=span, recipe=lane.recipe).total.detach())
        count += PackCount(num_tokens=packed.num_tokens, num_shared=packed.num_shared)
        if math.isfinite(loss):
            lane.measured(loss)
        else:
            _stop(lane, f"the held-out loss became {loss} at step {lane.step}; lower the learning rate")
    return count, waiting


def _draw(
    lanes: Sequence[Lane], *, held_out: bool = False
) -> tuple[list[tuple[Lane, Sequence[ConceptSample]]], dict[str, StoreError]]:
    """Return the samples of every lane that has them, and who has to wait; a lane whose data fail is stopped."""
    drawn, waiting = [], {}
    for lane in lanes:
        try:
            source = lane.held_out if held_out and lane.held_out is not None else lane.source
            drawn.append((lane, source.draw(0 if held_out else lane.step)))
        except StoreError as error:
            waiting[lane.name] = error
        except OmniFarmError as error:
            _stop(lane, f"the samples of step {lane.step} cannot be made: {error}")
    return drawn, waiting


def _stop(lane: Lane, reason: str) -> None:
    lane.stop(reason)
    event(_logger, "lane_stopped", level=logging.WARNING, concept=lane.name, step=lane.step, reason=reason)


def pack_lanes(
    lanes: Sequence[Lane],
    drawn: Sequence[Sequence[ConceptSample]],
    *,
    special_ids: SpecialIds,
    config: BackboneConfig,
    share_prefixes: bool = True,
) -> tuple[Pack, list[Task], list[range]]:
    """Return the lanes' samples as one pack, every sample's task, and which samples are each lane's own."""
    sequences: list[list[Segment]] = []
    tasks: list[Task] = []
    spans: list[range] = []
    row = 0
    for lane, samples in zip(lanes, drawn, strict=True):
        spans.append(range(len(sequences), len(sequences) + len(samples)))
        sequences += [shift_rows(sample.segments, by=row) for sample in samples]
        tasks += [sample.task for sample in samples]
        row += lane.soft.shape[0]
    packed = pack(sequences, special_ids=special_ids, config=config, share_prefixes=share_prefixes)
    return packed, tasks, spans


def shift_rows(segments: Sequence[Segment], *, by: int) -> list[Segment]:
    """Return a sequence whose soft slots point `by` rows further down the table."""
    return [
        _shifted(segment, by) if by and isinstance(segment, TextSegment) and segment.soft else segment
        for segment in segments
    ]


@lru_cache(maxsize=4096)
def _shifted(segment: TextSegment, by: int) -> TextSegment:
    # The same texts come step after step, and a lane keeps its place until a neighbour leaves.
    return replace(segment, soft=tuple(replace(slot, row=slot.row + by) for slot in segment.soft))


def step_losses(loss: LaneLoss, grad_CD: Tensor, *, num_gen: int) -> StepLosses:
    """Return the numbers of one step: loss per task (nan without a sample), and lengths of the gradient.

    Args:
        loss: Of the lane.
        grad_CD: Its gradient with respect to the lane's soft tokens, the generation expert's rows last.
        num_gen: How many those are.
    """
    terms = {task: float(term) for task, term in loss.terms.items()}
    cut = len(grad_CD) - num_gen
    norms = [float(torch.linalg.vector_norm(part, dtype=torch.float64)) for part in (grad_CD[:cut], grad_CD[cut:])]
    return StepLosses(
        total=float(loss.total.detach()),
        understanding=terms.get("understanding", math.nan),
        generation=terms.get("generation", math.nan),
        editing=terms.get("editing", math.nan),
        grad_norm=math.hypot(*norms),
        grad_norm_und=norms[0],
        grad_norm_gen=norms[1],
    )


def _is_finite(one: StepLosses) -> bool:
    return math.isfinite(one.total) and math.isfinite(one.grad_norm)


def _runaway(lane: Lane) -> str | None:
    """Say why a lane's soft tokens can be no artifact, or None; norms inside the model hide their growth from losses."""
    longest = float(lane.soft.detach().norm(dim=1).max())
    if longest <= MAX_NORM:
        return None
    return (
        f"the soft tokens grew to a length of {longest:.3g} at step {lane.step}, expected at most {MAX_NORM:g}; "
        "lower the learning rate"
    )


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
