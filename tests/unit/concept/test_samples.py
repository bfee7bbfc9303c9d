from pathlib import Path

import pytest
import torch

from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import LatentSegment, TextSegment, VitSegment
from omnifarm.backbone.tokenizer import BackboneTokenizer
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.examples import Example
from omnifarm.concept.prepared import PREFIX, PreparedImages, prepare
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSamples, Draws, Prompter, build_segments, draw_randomness
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.seeding import generator
from omnifarm.store.memory import MemoryStore
from tests.unit.concept.conftest import Photo, WriteConcept, draw

LAYOUT = SoftTokenLayout(num_und=2, num_gen=2)
YAML = """
class: dog
info: <sks> is a brown dog.
edits: [{source: edits/a.png, target: edits/b.png}]
"""


@pytest.fixture
def spec(tmp_path: Path, write_concept: WriteConcept, photo: Photo) -> ConceptSpec:
    folder = write_concept(tmp_path / "maeve", yaml=YAML)
    for file, seed in (("negatives/x.png", 50), ("edits/a.png", 52), ("edits/b.png", 53)):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).write_bytes(photo(seed))
    ((_, loaded),) = load_concepts(str(folder))
    assert isinstance(loaded, ConceptSpec)
    return loaded


@pytest.fixture
def prompter(tokenizer: BackboneTokenizer) -> Prompter:
    return Prompter(tokenizer=tokenizer, layout=LAYOUT, identifier="<maeve>")


def kinds(segments: object) -> list[str]:
    names = {TextSegment: "text", VitSegment: "vit", LatentSegment: "latent"}
    return [names[type(one)] + ("-dropped" if one.dropped else "") for one in segments]  # type: ignore[attr-defined]


def test_a_text_is_tokenised_once_and_dropped_only_where_asked(prompter: Prompter) -> None:
    question = "Is <maeve> in the photo?"
    assert prompter.user(question) is prompter.user(question)
    assert prompter.user(question, dropped=True).dropped
    assert not prompter.user(question).dropped
    # The same words as an answer to learn are another segment.
    assert prompter.target(question).has_loss
    assert not prompter.user(question).has_loss


def test_a_prepared_picture_holds_what_the_frozen_networks_say(backbone: LoadedBackbone) -> None:
    image = draw(3)
    prepared = prepare(backbone, image)
    rows, columns = prepared.latent_grid
    assert prepared.mean.shape == (rows * columns, backbone.config.latent_dim)
    assert prepared.features.shape[0] == prepared.vit_grid[0] * prepared.vit_grid[1]
    noise = torch.randn(prepared.mean.shape, generator=generator(0, "x"))
    assert torch.equal(prepared.latents(), prepared.mean)
    assert torch.allclose(prepared.latents(noise), prepared.mean + prepared.std * noise)
    assert bool((prepared.std > 0).all())


def test_kept_features_give_the_numbers_of_fresh_patches(backbone: LoadedBackbone) -> None:
    from omnifarm.backbone.image_ops import ImageTransform, patchify_vit, vit_patch_size

    resized = ImageTransform(config=backbone.config.vae_transform).resize(draw(3))
    pixels = ImageTransform(config=backbone.config.vit_transform).pixels(resized)
    patches, grid = patchify_vit(pixels, patch=vit_patch_size(backbone.config))
    with torch.no_grad():
        vectors = [
            backbone.model.embed(pack([[segment]], special_ids=backbone.special_ids, config=backbone.config))
            for segment in (VitSegment(patches=patches, grid=grid), prepare(backbone, draw(3)).vit())
        ]
    torch.testing.assert_close(vectors[0], vectors[1])


def test_each_task_has_its_layout(backbone: LoadedBackbone, prompter: Prompter) -> None:
    image = prepare(backbone, draw(3))
    noise = torch.zeros_like(image.mean)

    def layout(task: str, *, has_image: bool, **draws: bool) -> list[str]:
        example = Example(task=task, kind="text", prompt="Is <maeve> here?", answer="Yes.")  # type: ignore[arg-type]
        return kinds(
            build_segments(
                example,
                prompter=prompter,
                image=image if has_image else None,
                target=None if task == "understanding" else image,
                draws=Draws(noises=(noise,), timestep_logits=(0.0,), **draws),
            )
        )

    assert layout("understanding", has_image=True) == ["text", "vit", "text", "text"]
    assert layout("understanding", has_image=False) == ["text", "text", "text"]
    assert layout("generation", has_image=False) == ["text", "text", "latent"]
    assert layout("editing", has_image=True) == ["text", "latent", "vit", "text", "latent"]
    assert layout("generation", has_image=False, is_text_dropped=True) == ["text-dropped", "text-dropped", "latent"]
    assert layout("editing", has_image=True, is_vae_dropped=True, is_text_dropped=True) == [
        "text-dropped", "latent-dropped", "vit", "text-dropped", "latent",
    ]  # fmt: skip


def test_only_the_answer_has_loss_and_only_the_target_is_noised(backbone: LoadedBackbone, prompter: Prompter) -> None:
    example = Example(task="understanding", kind="text", prompt="Is <maeve> here?", answer="Yes, <maeve> is.")
    segments = build_segments(example, prompter=prompter, image=None, target=None, draws=Draws())
    assert [one.has_loss for one in segments if isinstance(one, TextSegment)] == [False, False, True]
    image = prepare(backbone, draw(3))
    edit = Example(task="editing", kind="edit", prompt="remove <maeve>")
    draws = Draws(noises=(torch.zeros_like(image.mean),), timestep_logits=(0.5,))
    segments = build_segments(edit, prompter=prompter, image=image, target=image, draws=draws)
    assert [one.is_target for one in segments if isinstance(one, LatentSegment)] == [False, True]


def test_noised_copies_share_one_condition_and_are_normal_together(
    backbone: LoadedBackbone, prompter: Prompter
) -> None:
    image = prepare(backbone, draw(3))
    example = Example(task="generation", kind="caption", prompt="A photo of <maeve>.")
    recipe = TrainingRecipe(noise_draws=4, text_dropout=0.0)
    source = generator(0, "copies")
    drawn = [draw_randomness(example, recipe=recipe, image=None, target=image, source=source) for _ in range(300)]
    segments = build_segments(example, prompter=prompter, image=None, target=image, draws=drawn[0])
    assert [type(one).__name__ for one in segments] == ["TextSegment"] * 2 + ["LatentSegment"] * 4
    logits = torch.tensor([one.timestep_logits for one in drawn])
    assert bool((logits.diff(dim=1) > 0).all())
    assert float(logits.mean()) == pytest.approx(0, abs=0.06)
    assert float(logits.std()) == pytest.approx(1, abs=0.06)
    assert len({float(noise.sum()) for noise in drawn[0].noises}) == 4


def test_a_drawing_without_its_picture_is_refused(prompter: Prompter) -> None:
    example = Example(task="generation", kind="caption", prompt="A photo of <maeve>.")
    with pytest.raises(ConfigError, match="needs its pictures and noise"):
        build_segments(example, prompter=prompter, image=None, target=None, draws=Draws())


def test_dropout_follows_the_recipe(backbone: LoadedBackbone) -> None:
    image = prepare(backbone, draw(3))
    recipe = TrainingRecipe(text_dropout=0.1, vae_dropout=0.3, vit_dropout=0.3)
    edit = Example(task="editing", kind="edit", prompt="x")
    source = generator(0, "dropout")
    draws = [draw_randomness(edit, recipe=recipe, image=image, target=image, source=source) for _ in range(1500)]
    # Four standard deviations of the binomial at 1,500 draws.
    assert sum(one.is_text_dropped for one in draws) / 1500 == pytest.approx(0.1, abs=0.031)
    assert sum(one.is_vae_dropped for one in draws) / 1500 == pytest.approx(0.3, abs=0.048)
    assert sum(one.is_vit_dropped for one in draws) / 1500 == pytest.approx(0.3, abs=0.048)


def test_a_step_packs_and_is_the_same_wherever_it_is_asked(spec: ConceptSpec, backbone: LoadedBackbone) -> None:
    recipe = TrainingRecipe(batch_size=6, num_und=2, num_gen=2)
    samples = ConceptSamples(spec, recipe=recipe, backbone=backbone, images=PreparedImages(backbone))
    samples.draw(0)
    here = samples.draw(5)
    elsewhere = ConceptSamples(spec, recipe=recipe, backbone=backbone, images=PreparedImages(backbone)).draw(5)
    assert [one.task for one in here] == ["understanding"] * 2 + ["generation"] * 2 + ["editing"] * 2
    for one, other in zip(here, elsewhere, strict=True):
        for mine, theirs in zip(one.segments, other.segments, strict=True):
            if isinstance(mine, LatentSegment) and isinstance(theirs, LatentSegment):
                assert torch.equal(mine.latents, theirs.latents)
                assert mine.timestep_logit == theirs.timestep_logit
            elif isinstance(mine, TextSegment):
                assert mine == theirs
    packed = pack([one.segments for one in here], special_ids=backbone.special_ids, config=backbone.config)
    table = torch.zeros(LAYOUT.num_rows, backbone.config.hidden_size, requires_grad=True)
    output = backbone.model.train_forward(packed, soft_table=table)
    (output.ce.mean() + output.mse.mean()).backward()
    assert table.grad is not None
    assert bool((table.grad.abs().sum(dim=1) > 0).all())


def test_pictures_are_prepared_once_and_all_before_training(spec: ConceptSpec, backbone: LoadedBackbone) -> None:
    images = PreparedImages(backbone)
    assert images.get_all(spec) == 7
    assert images.get(spec, spec.images[0]) is images.get(spec, spec.images[0])
    small = PreparedImages(backbone, capacity=1)
    first = small.get(spec, spec.images[0])
    small.get(spec, spec.images[1])
    assert small.get(spec, spec.images[0]) is not first


def test_what_one_process_prepared_the_next_one_reads(
    spec: ConceptSpec, backbone: LoadedBackbone, tmp_path: Path
) -> None:
    store = MemoryStore()
    first = PreparedImages(backbone, store=store)
    assert first.get_all(spec) == 7
    keys = list(store.list(PREFIX))
    assert len(keys) == 7
    assert all(backbone.fingerprint[:32] in key for key in keys)
    # With the photograph gone, only the store can answer.
    (tmp_path / "maeve" / spec.images[0].path).unlink()
    for name in ("features", "mean", "std"):
        expected = getattr(first.get(spec, spec.images[0]), name)
        assert torch.equal(getattr(PreparedImages(backbone, store=store).get(spec, spec.images[0]), name), expected)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: data[:-8]])
def test_a_damaged_prepared_picture_is_prepared_anew(spec: ConceptSpec, backbone: LoadedBackbone, damage) -> None:
    store = MemoryStore()
    expected = PreparedImages(backbone, store=store).get(spec, spec.images[0])
    (key,) = store.list(PREFIX)
    whole = store.get(key).data
    store.put(key, damage(whole))
    assert torch.equal(PreparedImages(backbone, store=store).get(spec, spec.images[0]).mean, expected.mean)
    assert store.get(key).data == whole


def test_a_picture_that_was_taken_away_fails_before_training(
    spec: ConceptSpec, backbone: LoadedBackbone, tmp_path: Path
) -> None:
    (tmp_path / "maeve/edits/b.png").unlink()
    with pytest.raises(ConceptError, match="does not exist"):
        PreparedImages(backbone).get_all(spec)
