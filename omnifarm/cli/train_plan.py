"""`omnifarm train plan`: operations counted on real packs, a rate measured on a few steps, a prediction of the rest."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.training.compiling import compiling_pays, has_compiler
from omnifarm.training.lane import Lane
from omnifarm.training.plan import Prediction, StepCost, predict
from omnifarm.training.workbench import Workbench

COUNTED_STEPS = 8
"""Steps whose packs are counted."""
MEASURED_STEPS = 8
"""Steps of which each gives a rate, after one that is not counted; their median is not moved by a hiccup."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanReport:
    """A prediction and what it rests on."""

    num_concepts: int
    """Concepts planned for."""
    lanes: int
    """Concepts in one pack."""
    steps: int
    """Optimizer steps per concept."""
    step: StepCost
    """A typical packed step."""
    measuring: StepCost | None
    """One held-out measurement of all lanes of a pack; None: the recipe has none."""
    compiled: bool
    """Whether the rate was measured compiled, as a run of this length trains."""
    flops_per_s: float
    """Operations per second of one device."""
    rate_from: str
    """Where that number comes from."""
    prediction: Prediction
    """What one device would take."""
    opening_s: float
    """Seconds before the first lane, compiling included, measured here; paid once a worker."""
    beginning_s: float
    """Seconds a concept needs before its first step, measured here: it describes itself, for which its photos are encoded."""

    def wall_s(self, *, devices: int) -> float:
        """Return the seconds from the start to the last concept on as many devices."""
        each = self.prediction.seconds + self.num_concepts * self.beginning_s
        return self.opening_s + each / devices


def plan_training(
    concepts: str,
    *,
    backbone: str,
    overrides: Mapping[str, Any],
    num_concepts: int | None,
    lanes: int,
    devices: int = 1,
    price_per_hour: float = 0.0,
    flops_per_s: float | None = None,
    device: str = "cpu",
    compiled: bool | None = None,
    now_s: Callable[[], float] = time.perf_counter,
) -> PlanReport:
    """Predict a training of concepts like those at a place.

    Args:
        concepts: Where typical concepts lie.
        backbone: Name or folder.
        overrides: Recipe settings other than the backbone's own.
        num_concepts: How many to plan for; None: those at the place.
        lanes: Concepts in one pack; fewer when the place holds fewer.
        devices: Devices that share the concepts; decides whether compiling pays.
        price_per_hour: Of one device.
        flops_per_s: Of one device; None measures it here.
        device: Where to measure.
        compiled: Measure compiled; None does where the run would compile.
        now_s: The clock of the measurement, in seconds.

    Raises:
        ConceptError: No concept there can be learned.
        ConfigError: The recipe or the rate cannot be used.
    """
    chosen = inspect_backbone(backbone, overrides=dict(overrides))
    specs = [spec for _, spec in load_concepts(concepts) if isinstance(spec, ConceptSpec)]
    if not specs:
        raise ConceptError(f"{concepts} holds no concept that can be learned; see `omnifarm concept validate`")
    together, count, recipe = min(lanes, len(specs)), num_concepts or len(specs), chosen.recipe
    if compiled is None:
        compiled = compiling_pays(num_concepts=count, steps=recipe.steps, num_workers=devices)
    # A rate that is given needs no measurement, and so no minute of compiling.
    compiled = compiled and flops_per_s is None and has_compiler(device)
    started_s = now_s()
    workbench = Workbench.open(
        chosen.name, precision=recipe.precision, device=device, lanes_per_pack=together, compiled=compiled
    )
    opened_s = now_s()
    # Measured are as many steps as it takes, however few are planned and whenever training would end early.
    rehearsed = recipe.with_overrides({"steps": max(recipe.steps, 1 + MEASURED_STEPS), "patience": 0})
    members = [workbench.lane(spec, recipe=rehearsed, identity="plan") for spec in specs[:together]]
    begun_s = now_s()
    step, measuring = workbench.step_cost(members, steps=range(COUNTED_STEPS)), workbench.measuring_cost(members)
    rate_from = "given"
    if flops_per_s is None:
        flops_per_s = _measured_rate(workbench, members, now_s)
        rate_from = f"measured here on {device}, {'compiled' if compiled else 'eager'}"
    prediction = predict(
        step,
        num_concepts=count,
        lanes=together,
        steps=recipe.steps,
        flops_per_s=flops_per_s,
        weight_bytes=workbench.weight_bytes,
        soft_numbers=members[0].soft.numel(),
        measuring=measuring,
        measurements=math.ceil(recipe.steps / recipe.held_out_every) if recipe.held_out_every else 0,
        price_per_hour=price_per_hour,
    )
    return PlanReport(
        num_concepts=count, lanes=together, steps=recipe.steps, step=step, measuring=measuring, compiled=compiled,
        flops_per_s=flops_per_s, rate_from=rate_from, prediction=prediction,
        opening_s=opened_s - started_s, beginning_s=(begun_s - opened_s) / together,
    )  # fmt: skip


def _measured_rate(workbench: Workbench, members: list[Lane], now_s: Callable[[], float]) -> float:
    """Take a few steps and return operations per second."""
    for lane in members:
        workbench.trainer.add(lane)
    workbench.trainer.step()
    rates = []
    for step in range(1, 1 + MEASURED_STEPS):
        flops = workbench.step_cost(members, steps=range(step, step + 1)).flops
        if due := workbench.measuring_cost([lane for lane in members if lane.wants_held_out]):
            flops += due.flops
        started = now_s()
        workbench.trainer.step()
        rates.append(flops / (now_s() - started))
    return statistics.median(rates)
