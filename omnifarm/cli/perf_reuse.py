"""What leaving denoising steps out costs in the picture, beside what a shorter schedule of as many evaluations costs."""

import statistics
from dataclasses import replace

import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Picture

_NUM_PICTURES = 8
_PROMPT = "A photo of a dog in the park."


def step_reuse(engine: Engine, *, options: SamplingOptions, size: tuple[int, int]) -> dict[str, dict[str, float]]:
    """Draw the same pictures with every step, with every second, third and fourth, and with fewer steps.

    Args:
        engine: Draws them without a concept.
        options: The whole schedule.
        size: (height, width) in pixels.

    Returns:
        By `step_reuse`: the share of velocities that were computed, and mean differences to the whole schedule in levels
        of 0..255, of what was extrapolated and of a schedule with so few steps.
    """
    found = {}
    whole = _draw(engine, options, size=size)
    for reuse in (2, 3, 4):
        reused = _draw(engine, options, size=size, reuse=reuse)
        share = reused[0].num_evaluations / whole[0].num_evaluations
        few = max(2, round((options.num_timesteps - 1) * share) + 1)
        fewer = _draw(engine, replace(options, num_timesteps=few), size=size)
        found[str(reuse)] = {
            "evaluations": round(share, 3),
            "levels": _difference(reused, whole),
            "levels_of_fewer_steps": _difference(fewer, whole),
        }
    return found


def distance(one: Image.Image, other: Image.Image) -> float:
    """Return the mean difference of two RGB pictures of one size in levels of 0..255."""
    a, b = (torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).float() for image in (one, other))
    return float((a - b).abs().mean())


def _draw(engine: Engine, options: SamplingOptions, *, size: tuple[int, int], reuse: int = 1) -> list[Picture]:
    tickets = [
        engine.submit(
            engine.door.generate(_PROMPT, size=size, options=options, seed=seed, step_reuse=reuse, replay="off")
        )
        for seed in range(_NUM_PICTURES)
    ]
    while engine.step():
        pass
    results = [ticket.result(0) for ticket in tickets]
    return [result for result in results if isinstance(result, Picture)]


def _difference(pictures: list[Picture], others: list[Picture]) -> float:
    each = (distance(one.image, other.image) for one, other in zip(pictures, others, strict=True))
    return round(statistics.mean(each), 3)
