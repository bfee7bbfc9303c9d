import random
from dataclasses import replace

import numpy as np
import pytest

from omnifarm.errors import ConfigError
from omnifarm.miniature.draw_item import FRIENDS, TOYS
from omnifarm.miniature.draw_place import PLACES
from omnifarm.miniature.identity import ALL_NOUNS, ATTRIBUTES, NONE, is_consistent, sample_identity
from omnifarm.miniature.render import SIZE, render, subject_mask
from omnifarm.miniature.scene import LIGHTS, STYLES, Item, sample_scene


def _portrait(noun: str, seed: int = 0):
    rng = random.Random(seed)
    who = sample_identity(rng, noun=noun)
    return sample_scene(rng, [who], item=False, light="day", style="photo", plain_pose=True)


def test_the_same_scene_is_always_the_same_picture():
    scene = _portrait("dog")
    first, second = render(scene), render(scene)
    assert first.shape == (SIZE, SIZE, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, second)


@pytest.mark.parametrize("noun", ALL_NOUNS)
def test_every_value_of_every_attribute_changes_the_picture(noun):
    scene = _portrait(noun)
    placed = scene.subjects[0]
    identity = placed.identity
    if identity.group == "person":
        identity = identity.replace(hat="hat", hat_color="red", glasses=NONE)
    plain = render(scene.with_subject(0, replace(placed, identity=identity)))
    for name, values in ATTRIBUTES[identity.group].items():
        for value in values:
            changed = identity.replace(**{name: value})
            if changed == identity or not is_consistent(changed):
                continue
            seen = render(scene.with_subject(0, replace(placed, identity=changed)))
            assert (np.abs(seen.astype(int) - plain).max(axis=-1) > 30).sum() >= 12, (name, value)


@pytest.mark.parametrize("noun", ALL_NOUNS)
def test_a_subject_alone_fills_much_of_the_frame(noun):
    for seed in range(4):
        scene = _portrait(noun, seed)
        rows = np.flatnonzero(subject_mask(scene, 0).any(axis=1))
        assert rows[-1] - rows[0] + 1 >= 0.4 * SIZE


def test_taking_a_subject_away_changes_only_where_it_was():
    rng = random.Random(5)
    for _ in range(6):
        scene = sample_scene(rng, [sample_identity(rng), sample_identity(rng)], style="photo")
        mask = subject_mask(scene, 0)
        seen, gone = render(scene).astype(int), render(scene.without(0)).astype(int)
        assert mask.sum() > 150
        assert np.abs(seen - gone)[~mask].max() <= 4


def test_views_of_a_place_differ_and_places_lights_and_styles_do():
    scene = replace(_portrait("mug"), place="beach", view=1)
    variants = [replace(scene, view=2)]
    variants += [replace(scene, place=place) for place in PLACES if place != "beach"]
    variants += [replace(scene, light=light) for light in LIGHTS[1:]]
    variants += [replace(scene, style=style) for style in STYLES[1:]]
    variants += [replace(scene, item=Item(kind=kind, color="red")) for kind in (*TOYS, *FRIENDS)]
    pictures = {render(one).tobytes() for one in [scene, *variants]}
    assert len(pictures) == len(variants) + 1


def test_three_subjects_are_refused():
    rng = random.Random(0)
    with pytest.raises(ConfigError, match="at most two"):
        sample_scene(rng, [sample_identity(rng) for _ in range(3)])
