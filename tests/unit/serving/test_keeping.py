import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from omnifarm.backbone.weights import load_backbone
from omnifarm.concept.repository import ConceptRepository
from omnifarm.serving.engine import Engine
from omnifarm.serving.keeping import keep_unchanged
from omnifarm.store.memory import MemoryStore
from tests.unit.serving.concepts import CHECKPOINT, EDIT

Pixels = NDArray[np.uint8]


@pytest.fixture
def source() -> Pixels:
    return np.random.default_rng(0).integers(60, 190, (48, 64, 3), dtype=np.uint8)


@pytest.fixture
def decoded(source: Pixels) -> Pixels:
    """The source as an autoencoder gives it back: every colour a little off."""
    noise = np.random.default_rng(1).integers(-25, 26, source.shape)
    return (source + noise).astype(np.uint8)


def kept(edited: Pixels, source: Pixels, decoded: Pixels) -> Pixels:
    pictures = (Image.fromarray(pixels) for pixels in (edited, source, decoded))
    edited_image, source_image, decoded_image = pictures
    return np.asarray(keep_unchanged(edited_image, source=source_image, decoded=decoded_image))


def test_an_edit_that_changed_nothing_gives_the_source_itself(source: Pixels, decoded: Pixels) -> None:
    small = np.random.default_rng(2).integers(-4, 5, source.shape)
    result = kept((decoded + small).astype(np.uint8), source, decoded)
    # Quantising truncates, as everywhere.
    assert np.abs(result.astype(int) - source).max() <= 1


def test_what_was_edited_is_taken_whole_and_the_rest_is_the_source(source: Pixels, decoded: Pixels) -> None:
    edited = decoded.copy()
    edited[10:30, 20:40] = 255
    result = kept(edited, source, decoded)
    assert (result[11:29, 21:39] >= 254).all()
    # Its corners are mixed with a little of what lies around them.
    assert (result[10:30, 20:40] >= 240).all()
    far = np.ones(source.shape[:2], dtype=bool)
    far[6:34, 16:44] = False
    assert np.abs(result[far].astype(int) - source[far]).max() <= 1


def test_an_edit_of_everything_is_left_as_it_is(source: Pixels, decoded: Pixels) -> None:
    darker = (decoded * 0.5).astype(np.uint8)
    assert np.abs(kept(darker, source, decoded).astype(int) - darker).max() <= 1


def test_the_engine_keeps_pixels_only_when_asked() -> None:
    engine = Engine(load_backbone(CHECKPOINT), ConceptRepository(MemoryStore()))
    photo = Image.linear_gradient("L").resize((80, 64)).convert("RGB")
    drawn, again, faithful = (
        engine.edit(photo, "make it red", options=EDIT, keep_unchanged=keep).image for keep in (None, False, True)
    )
    # The released weights suggest nothing, so an edit is what the official code gives.
    assert drawn.tobytes() == again.tobytes()
    assert faithful.tobytes() != drawn.tobytes()


def test_small_differences_are_the_edit_only_where_nearly_everything_changed(source: Pixels, decoded: Pixels) -> None:
    lighter = decoded + np.uint8(25)
    assert np.abs(kept(lighter, source, decoded).astype(int) - lighter).max() <= 1
    # The same beside a patch: the subject that was not asked for, drawn anew a little off.
    beside = decoded.copy()
    beside[:, 32:] += 25
    beside[10:30, 4:20] = 255
    result = kept(beside, source, decoded)
    assert (result[12:28, 6:18] >= 254).all()
    assert np.abs(result[:, 32:].astype(int) - source[:, 32:]).max() <= 1
