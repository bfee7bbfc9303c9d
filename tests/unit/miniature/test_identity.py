import random
from collections import Counter

import pytest

from omnifarm.errors import ConfigError
from omnifarm.miniature.benchmark import BenchmarkSizes, draw_benchmark
from omnifarm.miniature.identity import (
    ATTRIBUTES,
    GROUPS,
    HELDOUT_SHARE,
    LABELS,
    Identity,
    group_of,
    is_consistent,
    labels,
    sample_identity,
    space_size,
)


def test_a_sampled_identity_is_consistent_and_on_the_side_asked_for():
    rng = random.Random(0)
    for split in ("train", "heldout"):
        for group in GROUPS:
            for _ in range(100):
                identity = sample_identity(rng, split, group=group)
                assert is_consistent(identity)
                assert identity.split == split
                assert identity.group == group


def test_the_split_depends_on_the_attributes_alone():
    identity = sample_identity(random.Random(1), "heldout")
    again = Identity(identity.noun, tuple(identity.values))
    assert again.split == "heldout"


def test_about_the_stated_share_of_identities_is_held_out():
    rng = random.Random(2)
    sides = Counter(sample_identity(rng, None).split for _ in range(4000))
    assert sides["heldout"] / 4000 == pytest.approx(HELDOUT_SHARE, abs=0.03)


def test_no_benchmark_of_any_seed_shows_anybody_from_the_pre_training_side():
    sizes = BenchmarkSizes(train=3, test=2, hard_negatives=2, easy_negatives=2, edits=4, edits_per_operation=1)
    for seed in range(8):
        for concept in draw_benchmark(seed, num_persons=2, num_pets=2, num_objects=2, sizes=sizes):
            shown = [*concept.train, *concept.test, *concept.hard_negatives, *concept.easy_negatives]
            shown += [*concept.strangers, *(case.source for case in concept.train_edits)]
            assert {placed.identity.split for scene in shown for placed in scene.subjects} == {"heldout"}


def test_the_space_sizes_agree_with_counting():
    for group, num_nouns in (("pet", 5), ("object", 6)):
        names = list(ATTRIBUTES[group])
        second, first = ATTRIBUTES[group]["second"], ATTRIBUTES[group][names[0]]
        pairs = sum(a != b for a in first for b in second)
        rest = 1
        for name in names:
            if name not in (names[0], "second"):
                rest *= len(ATTRIBUTES[group][name])
        assert space_size(group) == num_nouns * pairs * rest
    assert space_size("person") > 100_000


def test_labels_name_every_attribute_of_the_group_and_no_other():
    identity = sample_identity(random.Random(3), group="pet")
    found = labels(identity)
    assert set(found) == set(LABELS)
    for head, index in found.items():
        if head == "noun":
            assert LABELS[head][index] == identity.noun
        elif head.startswith("pet."):
            assert LABELS[head][index] == identity[head.removeprefix("pet.")]
        else:
            assert index == -1


def test_an_unknown_class_is_refused_by_name():
    with pytest.raises(ConfigError, match="dragon"):
        group_of("dragon")
