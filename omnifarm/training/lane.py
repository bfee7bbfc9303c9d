"""A lane: one concept's optimisation, from its first soft tokens to its last.

A lane owns everything its result depends on (soft tokens, optimizer memory, step, recipe, where its samples come
from) and nothing of its neighbours. Random draws are derived from (seed, concept, step), so the step count is the
whole data cursor.

Shapes: C soft tokens of a concept (1 + N_u + N_g), D width of the language model.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
from omnifarm.concept.self_description import Looks
from omnifarm.training.optimizer import Moments, adamw_, clip


class SampleSource(Protocol):
    """Where the samples of a lane come from; `concept.samples.ConceptSamples` is the one that trains."""

    def draw(self, step: int) -> Sequence[ConceptSample]:
        """Return the samples of optimizer step `step`: the same ones whenever and wherever it is asked."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class StepLosses:
    """What one lane measured in one step; a task that had no sample is nan."""

    total: float
    """The weighted sum that was minimised."""
    understanding: float
    """Mean cross-entropy per answer token, nats."""
    generation: float
    """Mean squared velocity error of drawings."""
    editing: float
    """Mean squared velocity error of edits."""
    grad_norm: float
    """Length of the gradient before clipping."""
    grad_norm_und: float = math.nan
    """Its part in the identifier's and the understanding expert's soft tokens."""
    grad_norm_gen: float = math.nan
    """Its part in the generation expert's soft tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOutLoss:
    """One measurement on samples that are not learned from."""

    step: int
    """Optimizer steps taken before it."""
    loss: float
    """The weighted sum that training minimises."""


@dataclass(kw_only=True, slots=True, eq=False)
class Lane:
    """One concept being learned."""

    name: str
    """The concept's name; unique within a pack."""
    recipe: TrainingRecipe
    """How it is learned."""
    source: SampleSource
    """Its samples."""
    soft: Tensor
    """Soft tokens (C, D), float32 leaf that requires grad: identifier, then N_u of und, then N_g of gen."""
    moments: Moments
    """Optimizer memory."""
    step: int = 0
    """Optimizer steps taken."""
    losses: list[StepLosses] = field(default_factory=list)
    """One entry per step taken."""
    held_out: SampleSource | None = None
    """What its held-out loss is measured on: always the samples of step 0."""
    held_out_losses: list[HeldOutLoss] = field(default_factory=list)
    """Every measurement so far."""
    best: Tensor | None = None
    """Soft tokens (C, D) at the best measurement; None before the first."""
    train_s: float = 0.0
    """Seconds of stepping so far, waiting not counted; says nothing about the result."""
    looks: Looks = ()
    """What the backbone said of its photographs before its first step, which its samples teach too."""
    stopped: str | None = None
    """Why the lane will take no further step although it is not done; None while it is healthy."""

    @classmethod
    def start(
        cls,
        name: str,
        *,
        recipe: TrainingRecipe,
        source: SampleSource,
        soft_CD: Tensor,
        held_out: SampleSource | None = None,
        looks: Looks = (),
    ) -> "Lane":
        """Begin a lane.

        Args:
            name: The concept's name.
            recipe: How it is learned.
            source: Its samples.
            soft_CD: Initial soft tokens (C, D); copied, as float32.
            held_out: Samples to measure on, if the recipe asks for it.
            looks: What `source` teaches of its looks, to be asked once.
        """
        soft_CD = soft_CD.detach().to(torch.float32).clone().requires_grad_(True)
        moments = Moments.zeros_like(soft_CD.detach())
        return cls(
            name=name, recipe=recipe, source=source, soft=soft_CD, moments=moments, held_out=held_out, looks=looks
        )

    @property
    def is_done(self) -> bool:
        """Whether every step was taken and its outcome measured if it may be kept, or the held-out loss has stopped falling."""
        return (self.step >= self.recipe.steps and not self.wants_held_out) or self.has_converged

    @property
    def has_converged(self) -> bool:
        """Whether the last `patience` held-out measurements brought no new best."""
        if not self.recipe.patience or not self.held_out_losses:
            return False
        losses = [one.loss for one in self.held_out_losses]
        return len(losses) - 1 - losses.index(min(losses)) >= self.recipe.patience

    @property
    def wants_held_out(self) -> bool:
        """Whether the next pass measures the held-out loss as well; after the last step there is one for that alone."""
        if (
            self.held_out is None
            or self.step == 0
            or (self.held_out_losses and self.held_out_losses[-1].step == self.step)
        ):
            return False
        return self.step % self.recipe.held_out_every == 0 or self.step >= self.recipe.steps

    @property
    def result(self) -> Tensor:
        """The soft tokens (C, D) the recipe keeps: the last, or the best measured."""
        return self.best if self.recipe.keep == "best" and self.best is not None else self.soft.detach()

    @property
    def is_active(self) -> bool:
        """Whether the lane wants another step."""
        return self.stopped is None and not self.is_done

    def apply(self, grad_CD: Tensor, *, losses: StepLosses) -> None:
        """Take one optimizer step with this lane's own clip, rate and memory.

        Args:
            grad_CD: Gradient of the lane's loss with respect to its soft tokens; finite.
            losses: What was measured; recorded with the gradient's norm.
        """
        clipped_CD, _ = clip(grad_CD, max_norm=self.recipe.max_grad_norm)
        adamw_(self.soft.detach(), grad_CD=clipped_CD, moments=self.moments, step=self.step, recipe=self.recipe)
        self.losses.append(losses)
        self.step += 1

    def measured(self, loss: float) -> None:
        """Take note of the held-out loss of the present soft tokens; one that is not finite has stopped the lane instead."""
        if self.best is None or loss < min(one.loss for one in self.held_out_losses):
            self.best = self.soft.detach().clone()
        self.held_out_losses.append(HeldOutLoss(step=self.step, loss=loss))

    def stop(self, reason: str) -> None:
        """Take no further step; the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
