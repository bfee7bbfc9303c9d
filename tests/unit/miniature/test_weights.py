"""What is shipped: small enough, and a judge that reads what it is asked to measure."""

import numpy as np
import pytest
import torch
from PIL import Image

from omnifarm.backbone.image_ops import to_image, to_tensor
from omnifarm.backbone.weights import load_backbone, resolve_folder
from omnifarm.miniature.judge import Judge
from omnifarm.miniature.pretrain.corpus import make_group
from omnifarm.miniature.pretrain.judge_stage import judge_accuracy
from omnifarm.miniature.render import render

_LARGEST = 25 * 10**6
_NUM_GROUPS = 10


@pytest.fixture(scope="module")
def groups():
    return [make_group(1, index, "heldout") for index in range(_NUM_GROUPS)]


@pytest.fixture(scope="module")
def pictures(groups):
    return np.stack([np.stack([render(scene) for scene in group.scenes]) for group in groups])


def test_everything_that_is_shipped_is_at_most_25_megabytes():
    assert sum(path.stat().st_size for path in resolve_folder("miniature").iterdir()) <= _LARGEST


def test_the_judge_reads_clean_pictures_of_people_it_never_met(groups, pictures):
    accuracy = judge_accuracy(Judge.load(resolve_folder("miniature")), pictures=pictures, groups=groups)
    assert accuracy["mean"] >= 0.97, accuracy


@torch.inference_mode()
def test_the_judge_reads_what_the_codec_makes_of_them(groups, pictures):
    codec = load_backbone("miniature").autoencoder
    again = np.zeros_like(pictures[: _NUM_GROUPS // 2])
    for place in np.ndindex(again.shape[:2]):
        again[place] = np.asarray(to_image(codec.decode(codec.encode(to_tensor(Image.fromarray(pictures[place]))))))
    accuracy = judge_accuracy(Judge.load(resolve_folder("miniature")), pictures=again, groups=groups[: len(again)])
    assert accuracy["mean"] >= 0.97, accuracy
