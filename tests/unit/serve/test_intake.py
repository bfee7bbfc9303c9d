"""Pictures on their way in: how large they stay, and how many are decoded at a time."""

import asyncio
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from omnifarm.backbone.config import BackboneConfig, ImageTransformConfig
from omnifarm.backbone.image_ops import ImageTransform
from omnifarm.backbone.weights import resolve_folder
from serve.pictures import MAX_DECODERS, Intake, encode_picture, fitted
from serve.settings import ServeSettings
from serve.threads import to_the_end

RELEASED = ImageTransform(config=ImageTransformConfig(max_size=1024, min_size=512, stride=16))
SMALL = ImageTransform(config=BackboneConfig.from_folder(resolve_folder("miniature")).vae_transform)


@given(width=st.integers(16, 400), height=st.integers(16, 400))
@settings(max_examples=60, deadline=None)
def test_a_fitted_picture_is_the_same_to_the_backbone_and_never_larger(width: int, height: int) -> None:
    image = Image.linear_gradient("L").resize((width, height)).convert("RGB")
    small = fitted(image, rule=SMALL)
    assert SMALL.resize(small).tobytes() == SMALL.resize(image).tobytes()
    assert small.width * small.height <= min(width * height, 96 * 96)


@given(long=st.integers(512, 8000), aspect=st.floats(1, 8), is_wide=st.booleans())
def test_the_rule_leaves_alone_what_it_has_resized(long: int, aspect: float, is_wide: bool) -> None:
    sides = (long, max(16, int(long / aspect)))
    size = RELEASED.size(sides if is_wide else sides[::-1])
    assert RELEASED.size(size) == size
    assert size[0] * size[1] <= 1024 * 1024


def test_a_photograph_is_decoded_into_what_the_backbone_takes() -> None:
    intake = Intake(ServeSettings(store="unused"), rule=SMALL)
    data = encode_picture(Image.linear_gradient("L").resize((1200, 900)).convert("RGB"))
    assert asyncio.run(intake.picture(data)).size == SMALL.size((1200, 900))


def test_few_pictures_are_decoded_at_a_time_and_who_leaves_gives_no_turn_away() -> None:
    intake = Intake(ServeSettings(store="unused"), rule=SMALL)
    may_end, counting = threading.Event(), threading.Lock()
    now = most = 0

    def decode() -> None:
        nonlocal now, most
        with counting:
            now += 1
            most = max(most, now)
        assert may_end.wait(10)
        with counting:
            now -= 1

    async def crowd() -> None:
        tasks = [asyncio.ensure_future(intake.run(decode)) for _ in range(6)]
        while now < MAX_DECODERS:
            await asyncio.sleep(0.01)
        for one in tasks[:3]:
            one.cancel()
        await asyncio.sleep(0.2)
        may_end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(crowd())
    assert most == MAX_DECODERS


def test_a_thread_is_waited_for_and_its_error_or_the_leaving_comes_through() -> None:
    done = threading.Event()

    async def leave() -> None:
        begun = threading.Event()

        def work() -> None:
            begun.set()
            done.wait(0.2)
            done.set()

        task = asyncio.ensure_future(to_the_end(work))
        await asyncio.to_thread(begun.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert done.is_set()
        with pytest.raises(ZeroDivisionError):
            await to_the_end(lambda: 1 // 0)
        assert await to_the_end(lambda: 7) == 7

    asyncio.run(leave())
