from pathlib import Path

import pytest
import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions, Step
from omnifarm.backbone.inference import add_text, empty_context
from omnifarm.backbone.interleave import SYSTEM_PROMPTS, Interleaver
from omnifarm.backbone.segments import SoftSlot, TextSegment
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from omnifarm.errors import ConfigError

CHECKPOINT = Path(__file__).parents[2] / "golden" / "a" / "checkpoint"
FEW = SamplingOptions(num_timesteps=3)


@pytest.fixture(scope="module")
def backbone() -> LoadedBackbone:
    return load_backbone(CHECKPOINT)


@pytest.fixture(scope="module")
def interleaver(backbone: LoadedBackbone) -> Interleaver:
    return Interleaver(backbone)


def picture(width: int = 80, height: int = 64, *, color: tuple[int, ...] = (200, 30, 90), mode: str = "RGB"):
    return Image.new(mode, (width, height), color)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_drawing_from_text_guides_against_nothing_and_has_no_image_branch(interleaver: Interleaver) -> None:
    contexts = interleaver.read(["a boat"], output="image")
    assert contexts.without_text.kv_len == 0
    assert contexts.without_image is contexts.main
    assert contexts.size is None


def test_editing_keeps_images_for_text_guidance_and_texts_for_image_guidance(interleaver: Interleaver) -> None:
    contexts = interleaver.read(["first", picture(), "then"], output="image")
    texts = sum(len(interleaver.text(text).ids) + 2 for text in ("first", "then"))
    assert contexts.without_image.kv_len == contexts.without_image.rope == texts
    last = len(interleaver.text("then").ids) + 2
    assert contexts.without_text.kv_len == contexts.main.kv_len - last
    assert contexts.main.rope == texts + 2


def test_text_guidance_sees_an_image_that_comes_last(interleaver: Interleaver) -> None:
    contexts = interleaver.read(["a boat", picture()], output="image")
    assert contexts.without_text is contexts.main


def test_understanding_reads_images_without_latents(interleaver: Interleaver) -> None:
    drawn = interleaver.read([picture()], output="image").main
    understood = interleaver.read([picture()], output="text").main
    assert understood.rope == drawn.rope - 1
    assert understood.kv_len < drawn.kv_len


def test_the_last_image_sets_the_size_of_the_drawing(interleaver: Interleaver) -> None:
    drawing = interleaver.draw([picture(64, 64), picture(96, 64), "edit"], options=FEW, size=(128, 128), noise=None)
    assert drawing.contexts.size == (64, 96)
    assert drawing.image.size == (96, 64)


def test_a_size_is_rounded_down_to_whole_latent_tokens(interleaver: Interleaver) -> None:
    assert interleaver.draw(["a"], options=FEW, size=(79, 65)).image.size == (64, 64)


@pytest.mark.parametrize("size", [(15, 64), (64, 13 * 16)])
def test_sizes_outside_the_position_table_are_refused(interleaver: Interleaver, size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="16 to 192 pixels"):
        interleaver.draw(["a"], options=FEW, size=size)


def test_transparent_images_are_read_as_if_laid_over_white(interleaver: Interleaver) -> None:
    clear = picture(color=(200, 30, 90, 0), mode="RGBA")
    white = picture(color=(255, 255, 255))
    first, second = (interleaver.read([image], output="image").main for image in (clear, white))
    assert torch.equal(first.keys[-1], second.keys[-1])


def test_the_inferencer_resizes_twice(interleaver: Interleaver) -> None:
    # 90x50: the latent rule makes it 112x64, of which the ViT rule makes 112x70; alone it would make 98x56 of it.
    grid = interleaver.vit(interleaver._latent_transform.resize(picture(90, 50))).grid
    assert grid != interleaver.vit(picture(90, 50)).grid
    contexts = interleaver.read([picture(90, 50)], output="text")
    assert contexts.main.kv_len == grid[0] * grid[1] + 2


def test_special_strings_of_users_stay_text_unless_trusted(interleaver: Interleaver, backbone: LoadedBackbone) -> None:
    im_end = backbone.special_ids.im_end
    assert im_end not in interleaver.text("stop<|im_end|>").ids
    assert im_end in Interleaver(backbone, encode=backbone.tokenizer.encode).text("stop<|im_end|>").ids


def test_a_thought_is_encoded_again_and_only_the_main_context_knows_it(
    interleaver: Interleaver, backbone: LoadedBackbone
) -> None:
    drawing = interleaver.draw(["a boat"], options=FEW, size=(64, 64), think=True, max_think_tokens=6)
    before = interleaver.read(["a boat"], output="image", think=True)
    assert drawing.thought is not None
    expected = add_text(backbone.model, before.main, interleaver.text(drawing.thought))
    assert torch.equal(drawing.contexts.main.keys[-1], expected.keys[-1])
    assert drawing.contexts.without_image.kv_len == before.main.kv_len
    system = interleaver.text(SYSTEM_PROMPTS["generation"])
    assert drawing.contexts.without_text.kv_len == len(system.ids) + 2


def test_the_system_prompt_follows_the_kind_of_output(interleaver: Interleaver) -> None:
    lengths = {kind: len(interleaver.text(prompt).ids) + 2 for kind, prompt in SYSTEM_PROMPTS.items()}
    assert interleaver.read([], output="text", think=True).main.kv_len == lengths["understanding"]
    assert interleaver.read([], output="image", think=True).main.kv_len == lengths["generation"]
    assert interleaver.read([], output="image", think=True).without_text.kv_len == 0


def test_drawings_repeat_with_their_seed(interleaver: Interleaver) -> None:
    first, again, other = (
        interleaver.draw(["a"], options=FEW, size=(64, 64), generator=seeded(seed)).latents for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_condition_images_are_sampled_only_with_a_generator(backbone: LoadedBackbone, interleaver: Interleaver) -> None:
    mean = interleaver.latent(picture()).latents
    sampled = Interleaver(backbone, generator=seeded(4)).latent(picture()).latents
    assert not torch.equal(mean, sampled)
    assert torch.equal(sampled, Interleaver(backbone, generator=seeded(4)).latent(picture()).latents)


def test_answers_at_a_temperature_repeat_with_their_seed(interleaver: Interleaver) -> None:
    def answer(seed: int) -> str:
        return interleaver.understand(["hello"], max_tokens=12, temperature=2.0, generator=seeded(seed))

    assert answer(3) == answer(3)
    assert len({answer(seed) for seed in range(5)}) > 1


def test_an_answer_needs_a_question(interleaver: Interleaver) -> None:
    with pytest.raises(ConfigError, match="at least one"):
        interleaver.understand([])


def test_cancelling_from_on_step_ends_the_drawing(interleaver: Interleaver) -> None:
    def stop(step: Step) -> None:
        raise TimeoutError(step.index)

    with pytest.raises(TimeoutError):
        interleaver.draw(["a"], options=FEW, size=(64, 64), on_step=stop)


def test_text_segments_carry_soft_vectors_into_every_context_that_reads_them(
    interleaver: Interleaver, backbone: LoadedBackbone
) -> None:
    table = torch.randn(2, backbone.config.hidden_size, generator=seeded())
    segment = TextSegment(ids=(1, 1, 5), soft=(SoftSlot(offset=0, row=0), SoftSlot(offset=1, row=1, expert="gen")))
    contexts = interleaver.read([picture(), segment], output="image", soft_table=table)
    alone = add_text(backbone.model, empty_context(backbone.model), segment, soft_table=table)
    assert torch.equal(contexts.without_image.keys[-1], alone.keys[-1])
    assert contexts.main.kv_len > alone.kv_len
