"""What a removal is made with, as three exchangeable steps: locate, segment, inpaint.

A step is a class registered under one of the entry-point groups below; its instance is made once per run with the
string after the colon (`mymodel:/weights/sam`), usually a folder of weights, and called once per photograph. The
classical ones (`classical.py`, `patch_fill.py`) come with OmniFarm and need no weights; models of transformers or
diffusers are a small class in the user's own package:

    [project.entry-points."omnifarm.inpainters"]
    sdxl = "mypackage.removal:SdxlInpainter"
"""

from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from omnifarm.errors import ConfigError

Pixels = NDArray[np.uint8]
"""(H, W, 3) RGB, 0..255."""
Mask = NDArray[np.bool_]
"""(H, W), true where the subject is."""
Box = tuple[int, int, int, int]
"""(left, top, right, bottom) in pixels, right and bottom exclusive."""


class Locator(Protocol):
    """Finds where a subject is."""

    def locate(self, pixels: Pixels, *, class_noun: str) -> Box | None:
        """Return the subject's box, or None when there is none."""


class Segmenter(Protocol):
    """Finds which pixels of a box are the subject."""

    def segment(self, pixels: Pixels, *, box: Box, class_noun: str) -> Mask:
        """Return the subject's pixels; all false when there is none."""


class Inpainter(Protocol):
    """Makes up what is behind a mask."""

    def inpaint(self, pixels: Pixels, *, mask: Mask, seed: int) -> Pixels:
        """Return the picture with the mask filled; what lies outside is replaced by the source anyway."""


GROUPS = {"locator": "omnifarm.locators", "segmenter": "omnifarm.segmenters", "inpainter": "omnifarm.inpainters"}
"""Entry-point group of each step."""

_BUILT_IN = {
    ("locator", "contrast"): ("omnifarm.concept.edit_pairs.classical", "ContrastLocator"),
    ("segmenter", "grabcut"): ("omnifarm.concept.edit_pairs.classical", "GrabCutSegmenter"),
    ("inpainter", "telea"): ("omnifarm.concept.edit_pairs.classical", "TeleaInpainter"),
    ("inpainter", "patches"): ("omnifarm.concept.edit_pairs.patch_fill", "PatchInpainter"),
}

_Step = TypeVar("_Step")


@dataclass(frozen=True, kw_only=True, slots=True)
class Methods:
    """The three steps of a run, with the names they are recorded under."""

    locator: Locator
    """Finds the subject."""
    segmenter: Segmenter
    """Finds its pixels."""
    inpainter: Inpainter
    """Fills the hole."""
    names: tuple[str, str, str]
    """Names of locator, segmenter and inpainter as given."""


def load_methods(*, locator: str, segmenter: str, inpainter: str) -> Methods:
    """Make the three steps of a run.

    Args:
        locator: `name` or `name:argument`.
        segmenter: Likewise.
        inpainter: Likewise.

    Raises:
        ConfigError: No such step is registered, or it cannot be made.
    """
    return Methods(
        locator=_make("locator", locator),
        segmenter=_make("segmenter", segmenter),
        inpainter=_make("inpainter", inpainter),
        names=(locator, segmenter, inpainter),
    )


def known_methods(step: str) -> list[str]:
    """Return the names registered for a step (`locator`, `segmenter` or `inpainter`)."""
    own = [name for kind, name in _BUILT_IN if kind == step]
    return sorted({*own, *(point.name for point in entry_points(group=GROUPS[step]))})


def _make(step: str, given: str) -> Any:
    name, _, argument = given.partition(":")
    try:
        factory = _factory(step, name)
        return factory(argument) if argument else factory()
    except ImportError as error:
        fix = "pip install 'omnifarm[edits]'" if (error.name or "").startswith("cv2") else "install what it needs"
        raise ConfigError(f"the {step} {name!r} cannot be used, {error}: {fix}") from error
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"the {step} {given!r} cannot be made: {error}") from error


def _factory(step: str, name: str) -> Any:
    if (step, name) in _BUILT_IN:
        module, attribute = _BUILT_IN[step, name]
        return getattr(__import__(module, fromlist=[attribute]), attribute)
    for point in entry_points(group=GROUPS[step]):
        if point.name == name:
            return point.load()
    raise ConfigError(
        f"expected a {step} among {', '.join(known_methods(step))}, found {name!r}; "
        f"register yours under the entry-point group {GROUPS[step]}"
    )
