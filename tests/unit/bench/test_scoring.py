"""Photographs that come with packages, laid out as UnifyBench, through every importer and measure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from omnifarm.bench.asking import ask_all
from omnifarm.bench.data.load import BenchData, load_benchmark, with_gaps
from omnifarm.bench.judges.base import EditVerdict, Verdict, least
from omnifarm.bench.metrics.encoders import ClipEncoder, DinoEncoder, NotRun, open_clip, open_dino, open_efficientnet
from omnifarm.bench.metrics.faces import open_arcface, open_dlib, score_faces
from omnifarm.bench.metrics.similarity import mean_similarity, mean_similarity_within, nearest, normalised
from omnifarm.bench.replies import ReplyFile
from omnifarm.bench.rows import ROWS
from omnifarm.bench.scoring import Scorers, score_real_images, score_row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept, Item, Sizes
from omnifarm.store.memory import MemoryStore

PHOTOS = {"astronaut": ("person", "woman"), "chelsea": ("pet", "cat"), "coffee": ("object", "cup")}


def photograph(name: str) -> Image.Image:
    import skimage

    return Image.open(Path(skimage.__file__).parent / "data" / f"{name}.png").convert("RGB")


def views(name: str) -> list[Image.Image]:
    """Six pictures of one subject: cuts and lights of its photograph."""
    photo = photograph(name)
    width, height = photo.size
    cuts = [photo.crop((d, d, width - 3 * d, height - 3 * d)).resize((256, 256)) for d in (0, 6, 12, 18, 24, 30)]
    return [cut.point(lambda value, k=k: min(255, value + 4 * k)) for k, cut in enumerate(cuts)]


def write_photo_bench(root: Path) -> Path:
    """Write the smallest UnifyBench folder: no test_data, no edits, no prompts file; all of that is derived."""
    Image.new("RGB", (64, 64)).save(_made(root / "black_512x512.png"))
    (root / "concepts_list.json").write_text(json.dumps(list(PHOTOS)))
    (root / "concept/train").mkdir(parents=True)
    (root / "concept/train/train_images.json").write_text(
        json.dumps({c: [f"{i}.png" for i in range(4)] for c in PHOTOS})
    )
    for name, (group, noun) in PHOTOS.items():
        train, test = root / "concept/train" / name, root / "concept/test" / name
        for index, view in enumerate(views(name)):
            view.save(_made((train if index < 4 else test) / f"{index % 4}.png"))
        info = {
            "class": noun,
            "info": f"<{name}> is a {noun}.",
            "extra_info": [f"<{name}> has a red hat."],
            "conversation_type": "human" if group == "person" else group,
        }
        (train / "info.json").write_text(json.dumps(info))
        (test / "vqa.json").write_text(json.dumps({"0.png": [{"query": f"What is <{name}>?", "answer": f"A {noun}."}]}))
        (test / "text_only.json").write_text(
            json.dumps([{"query": f"What does <{name}> have?", "answer": "A red hat."}])
        )
        (test / "t2i_conditions.json").write_text(
            json.dumps([f"A photo of <{name}>.", f"A photo of <{name}> in its hat."])
        )
    return root


def _made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


class Copier:
    """Answers as the reference would and hands a training photograph back as its drawing."""

    def fit(self, concept: BenchConcept) -> None:
        self._concept = concept

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        return Reply(text="A red hat." if picture is None else "Yes.")

    def generate(self, prompt: str, *, seed: int) -> Reply:
        return Reply(picture=self._concept.train_pictures()[seed % 4])

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        return Reply(picture=picture)


class Strict:
    """A judge with one opinion a question: 1 for the reference's words, 0.5 for drawings, fixed marks for edits."""

    id = "opinion"

    def grade_answer(self, concept: BenchConcept, item: Item, answer: str) -> Verdict:
        return Verdict(score=float(answer == item.reference))

    def grade_drawing(self, concept: BenchConcept, item: Item, picture: Image.Image) -> Verdict:
        return Verdict(failure="refused") if concept.spec.group == "person" else Verdict(score=0.5)

    def grade_edit(self, concept: BenchConcept, item: Item, source: Any, result: Any, references: Any) -> EditVerdict:
        assert len(references) == 2
        if concept.spec.group == "person":
            return EditVerdict(consistency=Verdict(failure="refused"), quality=least({"naturalness": 8.0}))
        is_removal = item.operation == "object_manipulation"
        return EditVerdict(
            consistency=least({"success": 0.0 if is_removal else 10.0, "preservation": 9.0}),
            quality=least({"naturalness": 8.0, "artifacts": 6.0}),
        )

    def report(self) -> dict[str, Any]:
        return {"judge": self.id}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> BenchData:
    root = write_photo_bench(tmp_path_factory.mktemp("photos") / "data")
    sizes = Sizes(prompts=2, images_per_prompt=1, people_images=2, parg_images=2, edits_per_operation=2)
    return load_benchmark(str(root), sizes=sizes, scratch=root)


@pytest.fixture(scope="module")
def scored(photos: BenchData) -> dict[tuple[str, str], Any]:
    """(concept, metric) to value of a system that copies, with every encoder that is installed."""
    store = MemoryStore()
    replies = ReplyFile(store, prefix="r")
    ask_all(Copier(), photos.benchmark, replies, tasks=ROWS["ours"].tasks, base_seed=0)
    scorers = Scorers(judge=Strict(), efficientnet=open_efficientnet(), dlib=open_dlib())
    values = score_row(ROWS["ours"], seed=0, benchmark=photos.benchmark, replies=replies, scorers=scorers)
    return {(value.concept, value.metric): value for value in values}


def test_what_the_folder_lacks_is_built_and_said(photos: BenchData) -> None:
    notes = " ".join(photos.benchmark.notes)
    assert "recognition questions were built" in notes
    assert "edits were built" in notes
    rec = photos.benchmark.items_of("chelsea", "rec")
    assert sorted(item.reference[:1] for item in rec) == ["N", "N", "Y", "Y"]
    assert len(photos.benchmark.items_of("chelsea", "edit")) == 10
    assert photos.benchmark.items_of("chelsea", "pure")[0].text.startswith("a <chelsea> ")
    gaps = [note for note in with_gaps(photos).benchmark.notes if note.startswith("chelsea: has no edit pairs")]
    assert gaps
    assert "editing" in gaps[0], "who would have needed it"
    assert with_gaps(photos).benchmark.digest() == photos.benchmark.digest()


def test_always_yes_is_half_right_and_parsed(scored: dict[tuple[str, str], Any]) -> None:
    assert scored["coffee", "rec"].value == 0.5
    assert scored["coffee", "rec_unparsed"].value == 0
    assert scored["coffee", "qa_bleu"].value == pytest.approx(1)
    assert scored["coffee", "qa_gpt"].value == 1
    assert scored["coffee", "vqa_gpt"].value == 0


def test_refusals_are_counted_and_never_scored(scored: dict[tuple[str, str], Any]) -> None:
    refused = scored["astronaut", "parg_score"]
    assert (refused.value, refused.n, refused.failures) == (None, 0, 2)
    assert scored["chelsea", "parg_score"].value == 0.5
    assert [(one.value, one.n, one.failures) for one in (scored["astronaut", key] for key in ("qual_i", "avg"))] == [
        (0.8, 10, 0),
        (None, 0, 10),
    ]


def test_edits_are_the_least_sub_score_over_items_then_kinds(scored: dict[tuple[str, str], Any]) -> None:
    assert scored["chelsea", "sema_c"].value == pytest.approx(0.9 * 4 / 5)
    assert scored["chelsea", "qual_i"].value == pytest.approx(0.6)
    assert scored["chelsea", "avg"].value == pytest.approx((0.72 + 0.6) / 2)
    assert scored["chelsea", "edit_overall"].value == pytest.approx(np.sqrt(0.9 * 0.6) * 4 / 5)


def test_a_copier_is_found_out(scored: dict[tuple[str, str], Any]) -> None:
    if isinstance(open_efficientnet(), NotRun):
        pytest.skip("the stand-in encoder is not installed")
    assert scored["chelsea", "efficientnet_copy"].value == pytest.approx(1, abs=1e-4)
    assert 0.5 < scored["chelsea", "efficientnet_i"].value < 1


def test_a_persons_face_is_found_again_and_a_cat_is_not_asked_for_one(scored: dict[tuple[str, str], Any]) -> None:
    if isinstance(open_dlib(), NotRun):
        pytest.skip("the stand-in for faces is not installed")
    assert scored["astronaut", "dlib_detected"].value == 1
    assert scored["astronaut", "dlib_distance"].value < 0.6
    assert ("chelsea", "dlib_distance") not in scored


def test_what_is_absent_says_why(tmp_path: Path) -> None:
    reasons = Scorers(
        clip=open_clip(str(tmp_path)), dino=open_dino(str(tmp_path)), arcface=open_arcface(None)
    ).reasons()
    assert "--clip FOLDER" in reasons["clip_i"]
    assert "--dino FOLDER" in reasons["dino"]
    assert "--arcface FOLDER" in reasons["face_simi"]
    assert reasons["world_vqa"] == "only where pictures are drawn"
    assert isinstance(open_arcface(str(tmp_path)), NotRun)


class Words:
    """Stands for a tokenizer: every text three ids and an end."""

    def __call__(self, texts: list[str], **options: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([[len(text) % 50, ord(text[0]) % 50, 7, 49] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def tiny_clip(*, is_squeezed: bool) -> ClipEncoder:
    from transformers import CLIPConfig, CLIPModel

    small = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**small, "vocab_size": 50, "eos_token_id": 49, "bos_token_id": 48, "pad_token_id": 0},
        vision_config={**small, "image_size": 32, "patch_size": 16},
        projection_dim=8,
    )
    return ClipEncoder(CLIPModel(config), Words(), is_squeezed=is_squeezed)


def tiny_dino() -> DinoEncoder:
    from transformers import Dinov2Config, Dinov2Model

    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 224, "patch_size": 56}
    return DinoEncoder(Dinov2Model(Dinov2Config(**small)))


def test_clip_and_dino_measure_every_column_of_theirs(photos: BenchData) -> None:
    replies = ReplyFile(MemoryStore(), prefix="r")
    ask_all(Copier(), photos.benchmark, replies, tasks=("pure", "parg"), base_seed=0, concepts=["coffee"])
    scorers = Scorers(clip=tiny_clip(is_squeezed=False), dino=tiny_dino())
    values = score_row(ROWS["ours"], seed=0, benchmark=photos.benchmark, replies=replies, scorers=scorers)
    found = {value.metric: value.value for value in values if value.concept == "coffee"}
    assert {"clip_i", "clip_t", "dino", "parg_clip_i", "clip_i_test", "clip_copy"} <= set(found)
    assert found["clip_copy"] == pytest.approx(1, abs=1e-5)
    real = {value.metric for value in score_real_images(photos.benchmark, seed=0, scorers=scorers)}
    assert real == {"clip_i", "dino"}


def test_compat_washes_pictures_out_before_clip() -> None:
    photo = [photograph("chelsea"), photograph("coffee")]
    plain, squeezed = (tiny_clip(is_squeezed=squeezed).embed(photo) for squeezed in (False, True))
    assert np.linalg.norm(plain, axis=1) == pytest.approx([1, 1])
    assert not np.allclose(plain, squeezed, atol=1e-3)


def test_real_images_leave_themselves_out_but_in_compat() -> None:
    rows = normalised(np.array([[1.0, 0.0], [0.0, 1.0]]))
    assert mean_similarity_within(rows) == 0
    assert mean_similarity_within(rows, with_self=True) == 0.5
    assert np.isnan(mean_similarity_within(rows[:1]))
    assert mean_similarity(rows, rows) == 0.5
    assert nearest(rows, rows).tolist() == [1, 1]


def test_a_picture_without_a_face_counts_as_zero_beside_the_mean_over_faces() -> None:
    class Half:
        def embed(self, picture: Image.Image) -> Any:
            return np.array([1.0, 0.0], np.float32) if picture.getpixel((0, 0)) == (255, 255, 255) else None

    white, black = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4))
    score = score_faces(Half(), [white, black], [white])
    assert (score.similarity, score.detected, score.with_zeros) == (1.0, 0.5, 0.5)
    nobody = score_faces(Half(), [black], [white])
    assert (nobody.similarity, nobody.detected, nobody.with_zeros) == (None, 0.0, 0.0)
    assert score_faces(Half(), [white], [black]).with_zeros is None
