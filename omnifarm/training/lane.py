"""A lane: one concept's optimisation, from its first soft tokens to its last.

A lane owns everything its result depends on (soft tokens, optimizer memory, step, recipe, where its samples come
from) and nothing of its neighbours. Random draws are derived from (seed, concept, step), so the step count is the
whole data cursor.

Shapes: C soft tokens of a concept (1 + N_u + N_g), D width of the language model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
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
    train_s: float = 0.0
    """Seconds of stepping so far, waiting not counted; says nothing about the result."""
    stopped: str | None = None
    """Why the lane will take no further step although it is not done; None while it is healthy."""

    @classmethod
    def start(cls, name: str, *, recipe: TrainingRecipe, source: SampleSource, soft_CD: Tensor) -> "Lane":
        """Begin a lane.

        Args:
            name: The concept's name.
            recipe: How it is learned.
            source: Its samples.
            soft_CD: Initial soft tokens (C, D); copied, as float32.
        """
        soft_CD = soft_CD.detach().to(torch.float32).clone().requires_grad_(True)
        return cls(name=name, recipe=recipe, source=source, soft=soft_CD, moments=Moments.zeros_like(soft_CD.detach()))

    @property
    def is_done(self) -> bool:
        """Whether every step of the recipe was taken."""
        return self.step >= self.recipe.steps

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

    def stop(self, reason: str) -> None:
        """Take no further step; the first reason stays."""
        if self.stopped is None:
            self.stopped = reason
