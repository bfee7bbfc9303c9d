import numpy as np
import pytest
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import load_backbone
from omnifarm.miniature.benchmark import draw_benchmark
from omnifarm.miniature.render import render
from omnifarm.serving.prompted import Prompted


@pytest.fixture(scope="module")
def loaded():
    return load_backbone("miniature")


@pytest.fixture(scope="module")
def concept():
    (only,) = draw_benchmark(11, num_persons=1, num_pets=0, num_objects=0)
    return only


def test_a_sentence_in_front_changes_the_answer(loaded, concept) -> None:
    prompted = Prompted(loaded)
    question = "Where does <sks> live?"
    homes = {
        prompted.ask(question, known=[f"<sks> lives {where}."], max_tokens=12)
        for where in ("at the beach", "in the forest")
    }
    assert len(homes) == 2


def test_photos_may_introduce_and_be_asked_about(loaded, concept) -> None:
    prompted = Prompted(loaded)
    photo, other = (Image.fromarray(render(scene)) for scene in concept.train[:2])
    answer = prompted.ask("Is <sks> in the photo?", known=["<sks> is", photo], image=other, max_tokens=8)
    assert answer.split(",")[0].strip(". ") in ("Yes", "No")


def test_drawings_and_edits_follow_the_seed(loaded, concept) -> None:
    prompted = Prompted(loaded)
    photo = Image.fromarray(render(concept.train[0]))
    options = SamplingOptions.from_mapping({"num_timesteps": 3}, base=SamplingOptions.for_generation(loaded.config))
    drawings = [
        np.asarray(
            prompted.draw("A photo of <sks>.", known=["<sks> is", photo], size=(96, 96), options=options, seed=seed)
        )
        for seed in (1, 1, 2)
    ]
    assert (drawings[0] == drawings[1]).all()
    assert (drawings[0] != drawings[2]).any()
    edited = prompted.edit(photo, "remove <sks>: woman from the photo", known=["<sks> is", photo], options=options)
    assert edited.size == (96, 96)
