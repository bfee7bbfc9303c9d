import dataclasses
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnifarm.backbone.attention import Visibility, attend, padded_length, plan_attention
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.masks import split_mask
from omnifarm.backbone.packing import Pack, Start, pack, shifted
from omnifarm.backbone.segments import LatentSegment, SoftSlot, TextSegment, VitSegment
from omnifarm.errors import ConfigError

TEXT = TextSegment(ids=(1, 2, 3))


@pytest.fixture
def packed(tiny_config: BackboneConfig, special_ids: SpecialIds):
    def build(*samples: list, **options: object) -> Pack:
        return pack(samples, special_ids=special_ids, config=tiny_config, **options)  # type: ignore[arg-type]

    return build


def test_text_is_framed_and_counts_positions_up(packed) -> None:
    result = packed([TEXT, TextSegment(ids=())])
    assert result.text_ids.tolist() == [90, 1, 2, 3, 91, 90, 91]
    assert result.position_ids.tolist() == list(range(7))
    assert result.split_lens == (5, 2)
    assert result.rope_after == (7,)


def test_images_share_one_position_and_targets_do_not_advance_it(packed, vit_image, latent_image) -> None:
    target = latent_image(1, 2, timestep_logit=0.0)
    result = packed([vit_image(1, 2), target, latent_image(1, 2), TextSegment(ids=())])
    assert result.position_ids.tolist() == [0] * 4 + [1] * 4 + [1] * 4 + [2, 3]
    assert result.attn_modes == ("full", "noise", "full", "causal")
    assert result.text_ids.tolist() == [92, 93] * 3 + [90, 91]


def test_dropped_images_leave_a_gap_and_dropped_text_leaves_none(packed, vit_image, latent_image) -> None:
    gone = [
        latent_image(1, 2, dropped=True),
        vit_image(1, 2, dropped=True),
        dataclasses.replace(TEXT, dropped=True),
    ]
    result = packed([*gone, TextSegment(ids=())])
    assert result.position_ids.tolist() == [2, 3]
    assert result.sample_lens == (2,)
    assert not len(result.latent.index)
    assert not len(result.vit.index)


def test_labels_are_the_next_ids_and_the_end(packed) -> None:
    result = packed([TextSegment(ids=(9,))], [dataclasses.replace(TEXT, has_loss=True, end_label=44)])
    assert result.ce_index.tolist() == [3, 4, 5, 6, 7]
    assert result.ce_labels.tolist() == [1, 2, 3, 91, 44]
    assert result.ce_sample.tolist() == [1] * 5
    assert result.ce_weights.tolist() == [0.5, 0.5, 0.5, 0.5, 1.0]


def test_image_ends_may_carry_a_label(packed, vit_image) -> None:
    result = packed([vit_image(1, 2, end_label=90)])
    assert result.ce_index.tolist() == [3]
    assert result.ce_labels.tolist() == [90]


def test_memory_order_puts_the_generation_expert_last(packed, latent_image) -> None:
    soft = TextSegment(ids=(1, 2, 3), soft=(SoftSlot(offset=1, row=4, expert="gen"), SoftSlot(offset=2, row=1)))
    result = packed([soft, latent_image(1, 2)], [TEXT])
    assert result.num_und == 14 - 3
    assert result.sequence_of[result.num_und :].tolist() == [2, 6, 7]
    assert torch.equal(result.memory_of[result.sequence_of], torch.arange(14))
    assert result.soft_index.tolist() == [2, 3]
    assert result.soft_rows.tolist() == [4, 1]
    # Rows of the embedded parts [text, soft, ViT, latent]: soft vectors follow the ten looked-up ids.
    assert result.source[result.memory_of[2]] == 10
    assert result.source[result.memory_of[3]] == 11


def test_targets_are_mixed_at_the_shifted_time(packed, latent_image) -> None:
    target, clean = latent_image(1, 2, timestep_logit=0.8), latent_image(2, 1, seed=5)
    latents = packed([clean, target]).latent
    t = shifted(float(torch.sigmoid(torch.tensor(0.8))), shift=1.7)
    assert latents.timesteps.tolist() == pytest.approx([0.0, t])
    assert latents.timestep_logits.tolist() == pytest.approx([float("-inf")] * 2 + [0.8] * 2)
    torch.testing.assert_close(latents.entering()[:2], clean.latents)
    torch.testing.assert_close(latents.entering()[2:], (1 - t) * target.latents + t * target.noise)


def test_frames_of_a_video_are_one_split(packed, latent_image) -> None:
    frames = [
        latent_image(1, 1, seed=1, timestep_logit=0.1, split_end=False, frame_delta=2),
        latent_image(1, 1, seed=2, timestep_logit=0.1, split_start=False, split_end=False, frame_delta=3),
        latent_image(1, 1, seed=3, timestep_logit=0.1, split_start=False),
    ]
    result = packed([TextSegment(ids=()), *frames, TextSegment(ids=())])
    assert result.split_lens == (2, 9, 2)
    assert result.attn_modes == ("causal", "full", "causal")
    assert result.position_ids.tolist() == [0, 1, 2, 2, 2, 4, 4, 4, 7, 7, 7, 7, 8]
    assert len(result.mse_index) == 3


@pytest.mark.parametrize("rest", [[], [TEXT]])
def test_an_open_video_is_refused(packed, latent_image, rest: list) -> None:
    with pytest.raises(ConfigError, match="video split is still open"):
        packed([latent_image(1, 1, split_end=False), *rest])


def test_a_start_shifts_positions_and_shows_the_past(packed, vit_image) -> None:
    result = packed([vit_image(1, 2)], [TEXT], starts=[Start(kv_len=6, rope=4), Start()])
    assert result.position_ids.tolist() == [4] * 4 + list(range(5))
    assert result.rope_after == (5, 5)
    assert max(int(group.key_rows.max()) for group in result.plan.groups) == 6 + 9 - 1
    image = next(group for group in result.plan.groups if group.key_rows.shape[1] == 16)
    assert image.mask[0, 0, :4, :10].all()
    assert not image.mask[0, 0, :4, 10:].any()


def test_ids_beyond_the_embedding_table_are_refused_only_when_looked_up(packed) -> None:
    soft = (SoftSlot(offset=0, row=0),)
    packed([TextSegment(ids=(500,), soft=soft)])
    with pytest.raises(ConfigError, match=r"\[0, 96\).*\[500\]"):
        packed([TextSegment(ids=(500,))])


def test_images_beyond_their_table_are_refused(packed, vit_image, latent_image) -> None:
    for image in (vit_image(1, 10), latent_image(8, 1)):
        with pytest.raises(ConfigError, match="position table"):
            packed([image])


def test_images_beyond_the_towers_own_table_are_refused(
    tiny_config: BackboneConfig, special_ids: SpecialIds, vit_image
) -> None:
    config = dataclasses.replace(tiny_config, vit_max_patches_per_side=20)
    with pytest.raises(ConfigError, match="which has 81"):
        pack([[vit_image(6, 1)]], special_ids=special_ids, config=config)


def test_impossible_segments_are_refused(latent_image, vit_image) -> None:
    rows = torch.zeros(2, 12)
    with pytest.raises(ConfigError, match="different offsets"):
        TextSegment(ids=(1,), soft=(SoftSlot(offset=1, row=0),))
    with pytest.raises(ConfigError, match="must have 4 rows"):
        LatentSegment(latents=rows, grid=(2, 2))
    with pytest.raises(ConfigError, match="both timestep_logit and noise"):
        LatentSegment(latents=rows, grid=(1, 2), timestep_logit=0.0)
    with pytest.raises(ConfigError, match="either a timestep"):
        LatentSegment(latents=rows, grid=(1, 2), timestep=0.5, timestep_logit=0.0, noise=rows)
    with pytest.raises(ConfigError, match="either patches or features"):
        VitSegment(grid=(1, 2))


def test_the_mask_hides_noise_and_opens_images() -> None:
    mask = split_mask([2, 2, 2, 1], modes=["full", "noise", "full", "causal"])
    visible = ["".join("1" if cell else "0" for cell in row) for row in mask]
    assert visible == ["1100000", "1100000", "1111000", "1111000", "1100110", "1100110", "1100111"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 40), st.integers(0, 20), st.booleans()), min_size=1, max_size=6))
def test_grouped_attention_is_attention_of_each_sequence(sizes: list[tuple[int, int, bool]]) -> None:
    draws = torch.Generator().manual_seed(len(sizes))
    num_queries, num_keys = sum(q for q, _, _ in sizes), sum(q + past for q, past, _ in sizes)
    query = torch.randn(num_queries, 4, 8, generator=draws, dtype=torch.float64)
    key, value = torch.randn(2, num_keys, 2, 8, generator=draws, dtype=torch.float64)
    query_rows, key_rows = torch.randperm(num_queries, generator=draws), torch.randperm(num_keys, generator=draws)
    sequences, expected = [], torch.empty(num_queries, 32, dtype=torch.float64)
    for q, past, is_causal in sizes:
        mine, query_rows = query_rows[:q], query_rows[q:]
        seen, key_rows = key_rows[: q + past], key_rows[q + past :]
        mask = torch.ones(q, q + past, dtype=torch.bool).tril(past) if is_causal else None
        sequences.append(Visibility(query_rows=mine, key_rows=seen, mask=mask))
        scores = torch.einsum("qhd,khd->hqk", query[mine], key[seen].repeat_interleave(2, dim=1)) / 8**0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        mixed = torch.einsum("hqk,khd->qhd", scores.softmax(-1), value[seen].repeat_interleave(2, dim=1))
        expected[mine] = mixed.flatten(1)
    plan = plan_attention(sequences, num_queries=num_queries)
    torch.testing.assert_close(attend(query, key, value, plan=plan), expected)


def test_padding_wastes_little() -> None:
    assert all(length <= padded_length(length) <= max(length * 9 / 8 + 1, length + 7) for length in range(1, 1000))
    assert padded_length(4900) == 4900


def test_attention_work_grows_with_the_samples_and_not_with_their_square(packed) -> None:
    sample = [TextSegment(ids=tuple(range(50)))]

    def work(count: int) -> int:
        plan = packed(*[sample] * count).plan
        return sum(group.query_rows.numel() * group.key_rows.shape[1] for group in plan.groups)

    assert work(64) == 64 * work(1)


def test_packing_costs_the_same_per_sample_however_many_there_are(packed, vit_image) -> None:
    sample = [TextSegment(ids=tuple(range(40))), vit_image(8, 8)]

    def seconds(count: int) -> float:
        best = float("inf")
        for _ in range(3):
            begin = time.process_time()
            packed(*[sample] * count)
            best = min(best, time.process_time() - begin)
        return best / count

    seconds(4)
    # Generous: a packer that is quadratic in the pack would be 16 times slower here.
    assert seconds(64) < 4 * seconds(4)
