"""Removals that are looked at: the model is shown what it drew and asked whether it still sees whom it was to remove.

Drawing and recognising go different ways through a unified model, so one can check the other: a removal that failed,
by leaving the picture alone or by taking somebody else out, is seen by the model itself, and drawn anew from other noise.
What changed while the concept stayed was somebody else's: it is held to the source from then on, so that at worst nobody is
removed.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from PIL.Image import Image
from torch import Tensor

from omnifarm.backbone.image_ops import to_tensor
from omnifarm.concept.templates import USUAL_QUESTION
from omnifarm.seeding import generator
from omnifarm.serving.keeping import LOCAL

MAX_REPLY = 4
"""Tokens of the reply: it begins with Yes or No."""

LEAST_CHANGED = 0.1
"""Share of a latent token's pixels that differ clearly from the source's where it was changed."""

_REMOVAL = re.compile(
    r"\s*(?:please\s+)?(?:remove|erase|delete|take\s+out|take\s+away)\s+(<[A-Za-z0-9][A-Za-z0-9_-]{0,63}>)(?!['’]s)",
    re.IGNORECASE,
)
_SEEN = re.compile(r"\s*yes\b", re.IGNORECASE)

Drawing = Callable[[int, Tensor | None], Generator[Sequence[Any], list[Any], Image]]
"""Draws the n-th attempt, counted from 0, some of its latent tokens (N,) bool held to the source's."""
Asking = Callable[[str, Image], Generator[Sequence[Any], list[Any], str]]
"""Answers a question about a picture."""


def removed_by(instruction: str) -> str | None:
    """Return the identifier of the concept that an instruction removes, None when it removes none.

    Such as `<maeve>` of "Remove <maeve> from the image." and none of "Remove <maeve>'s hat." or "Remove the dog.".
    """
    match = _REMOVAL.match(instruction)
    return match[1] if match else None


def question_about(identifier: str) -> str:
    """Return what the model is asked about a picture."""
    return USUAL_QUESTION.question.format(c=identifier)


def noise_of(seed: int, *, attempt: int) -> torch.Generator:
    """Return what an attempt draws its noise from; the first one's is that of a drawing nobody looks at."""
    return generator(seed, "noise", *([attempt] if attempt else []))


def draw_checked(
    removed: str | None, *, source: Image, grid: tuple[int, int], draw: Drawing, ask: Asking, attempts: int
) -> Generator[Sequence[Any], list[Any], tuple[Image, int, bool | None]]:
    """Draw an edit, and draw it anew while the concept that it was to remove is still seen.

    Args:
        removed: The concept's identifier; None for an edit that removes nobody.
        source: What is edited.
        grid: (rows, columns) of its latent tokens.
        draw: Draws one attempt.
        ask: Asks the model about one.
        attempts: Pictures at most; 1 looks at none.

    Returns:
        (the last picture, attempts made, whether the concept is gone; None when nobody looked).
    """
    if removed is None or attempts == 1:
        return (yield from draw(0, None)), 1, None
    held = torch.zeros(grid[0] * grid[1], dtype=torch.bool)
    for attempt in range(attempts):
        image = yield from draw(attempt, held if held.any() else None)
        reply = yield from ask(question_about(removed), image)
        is_gone = _SEEN.match(reply) is None
        if is_gone:
            break
        # The concept is still there, so what did change is somebody else, who stays.
        held |= _changed(image, source=source, grid=grid)
    return image, attempt + 1, is_gone


def _changed(image: Image, *, source: Image, grid: tuple[int, int]) -> Tensor:
    """Return which latent tokens (N,) an edit changed."""
    change_HW = (to_tensor(image) - to_tensor(source)).abs().amax(dim=0)
    share = F.adaptive_avg_pool2d((change_HW > LOCAL[1]).float()[None], grid)
    return share.flatten() > LEAST_CHANGED
