"""The vectors notice mistakes: each wrong variant of our own code must fail, and fail where it is wrong."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnifarm.backbone import flow, image_ops, interleave, latents, packing, positions
from omnifarm.backbone.conformance import replay_parts, verify, verify_golden
from omnifarm.backbone.layers import RMSNorm, TimestepEmbedder
from omnifarm.backbone.masks import split_mask
from omnifarm.backbone.weights import LoadedBackbone, load_backbone
from tests.golden.test_conformance import SET_A, copy_of

Break = Callable[[pytest.MonkeyPatch], None]


def _mask(patch: pytest.MonkeyPatch) -> None:
    """Let later tokens see noised targets."""
    patch.setattr(
        packing,
        "split_mask",
        lambda lens, *, modes: split_mask(lens, modes=["full" if mode == "noise" else mode for mode in modes]),
    )


def _route_conditions_to_understanding(patch: pytest.MonkeyPatch) -> None:
    add = packing._Layout.add_latent

    def wrong(self, segment) -> None:
        before = list(self.gen_index)
        add(self, segment)
        if not segment.is_noised:
            self.gen_index = before

    patch.setattr(packing._Layout, "add_latent", wrong)


def _route_soft_vectors_to_understanding(patch: pytest.MonkeyPatch) -> None:
    add = packing._Layout.add_text

    def wrong(self, segment) -> None:
        slots = tuple(dataclasses.replace(slot, expert="und") for slot in segment.soft)
        add(self, dataclasses.replace(segment, soft=slots))

    patch.setattr(packing._Layout, "add_text", wrong)


def _target_advances_positions(patch: pytest.MonkeyPatch) -> None:
    add = packing._Layout.add_latent

    def wrong(self, segment) -> None:
        add(self, segment)
        if segment.is_target:
            self.rope += 1

    patch.setattr(packing._Layout, "add_latent", wrong)


def _guidance_sign(patch: pytest.MonkeyPatch) -> None:
    right = flow.guide

    def wrong(v: Tensor, *, v_text: Tensor | None, **rest: object) -> Tensor:
        return right(v, v_text=None if v_text is None else 2 * v - v_text, **rest)

    patch.setattr(flow, "guide", wrong)
    patch.setattr(replay_parts, "guide", wrong)


def _schedule_off_by_one(patch: pytest.MonkeyPatch) -> None:
    right = flow.schedule

    def wrong(num_timesteps: int, *, shift: float) -> Tensor:
        return right(num_timesteps + 1, shift=shift)[:-1]

    patch.setattr(flow, "schedule", wrong)
    patch.setattr(replay_parts, "schedule", wrong)


def _renorm_skipped(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flow, "_renormalised", lambda guided, **_: guided)


def _renorm_global_for_channel(patch: pytest.MonkeyPatch) -> None:
    right = flow._renormalised
    patch.setattr(flow, "_renormalised", lambda guided, *, per_token, **rest: right(guided, per_token=False, **rest))


def _interval_closed_below(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(flow.SamplingOptions, "scales_at", lambda self, t: (self.cfg_text_scale, self.cfg_img_scale))


def _single_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        image_ops.ImageTransform,
        "_scaled",
        lambda self, width, height, ratio: (self._divisible(width * ratio), self._divisible(height * ratio)),
    )


def _square_root_area(patch: pytest.MonkeyPatch) -> None:
    right = image_ops.ImageTransform._scaled

    def wrong(self, width: int, height: int, ratio: float) -> tuple[int, int]:
        is_area = width * height > self.config.max_pixels / 4 and ratio < 0.9
        return right(self, width, height, ratio**0.5 if is_area else ratio)

    patch.setattr(image_ops.ImageTransform, "_scaled", wrong)


def _quantised_by_rounding(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        replay_parts,
        "to_uint8",
        lambda pixels: ((pixels * 0.5 + 0.5).clamp(0, 1) * 255).round().permute(1, 2, 0).to(torch.uint8),
    )


def _time_times_thousand(patch: pytest.MonkeyPatch) -> None:
    right = TimestepEmbedder.sinusoid
    patch.setattr(TimestepEmbedder, "sinusoid", staticmethod(lambda t: right(t * 1000)))


def _channel_first_patches(patch: pytest.MonkeyPatch) -> None:
    def wrong(image: Tensor, *, patch: int) -> Tensor:
        C, H, W = image.shape
        squares = image.reshape(C, H // patch, patch, W // patch, patch)
        return squares.permute(1, 3, 0, 2, 4).reshape(-1, patch * patch * C)

    patch.setattr(latents, "patchify", wrong)


def _shift_forgotten(patch: pytest.MonkeyPatch) -> None:
    right = latents.LatentCodec.encode
    patch.setattr(
        latents.LatentCodec,
        "encode",
        lambda self, pixels, **rest: right(self, pixels, **rest) + self.config.scale_factor * self.config.shift_factor,
    )


def _vit_resized_once(patch: pytest.MonkeyPatch) -> None:
    """Hand the inferencer images that were not resized by the latent rule."""
    patch.setattr(interleave, "to_rgb", lambda image: image)
    right = image_ops.ImageTransform.resize

    def wrong(self, image, **rest):
        return image if self.config.stride == 16 and image.width % 16 else right(self, image, **rest)

    patch.setattr(image_ops.ImageTransform, "resize", wrong)


def _interleaved_rotary(patch: pytest.MonkeyPatch) -> None:
    from omnifarm.backbone import mot

    right = positions.rotate
    patch.setattr(mot, "rotate", lambda x, *, cos_Nd, sin_Nd: right(x, cos_Nd=cos_Nd, sin_Nd=-sin_Nd * 0.99))


def _norm_without_epsilon(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(RMSNorm, "forward", lambda self, x: x / x.abs().mean(-1, keepdim=True) * self.weight)


@pytest.mark.parametrize(
    ("mutate", "group"),
    [
        (_mask, "h3_chain"),
        (_route_conditions_to_understanding, "h_train"),
        (_route_conditions_to_understanding, "c_prefill"),
        (_route_soft_vectors_to_understanding, "i_soft"),
        (_target_advances_positions, "h3_chain"),
        (_guidance_sign, "e2_cfg_unit"),
        (_guidance_sign, "f_t2i"),
        (_schedule_off_by_one, "static"),
        (_schedule_off_by_one, "f_t2i"),
        (_renorm_skipped, "e2_cfg_unit"),
        (_renorm_global_for_channel, "g3_interleave"),
        (_interval_closed_below, "f3_t2i_window"),
        (_single_rounding, "static"),
        (_square_root_area, "static"),
        (_quantised_by_rounding, "b_vae"),
        (_time_times_thousand, "f_t2i"),
        (_channel_first_patches, "g_edit"),
        (_shift_forgotten, "b_vae"),
        (_vit_resized_once, "g2_understand"),
        (_interleaved_rotary, "d_generate_text"),
        (_norm_without_epsilon, "e_velocity"),
    ],
)
def test_a_wrong_variant_is_noticed(mutate: Break, group: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = copy_of(tmp_path / "set", groups=[group])
    monkeypatch.setattr(verify, "load_backbone", _load_once)
    with monkeypatch.context() as patch:
        mutate(patch)
        report = verify_golden(folder).groups[group]
    assert report.failing
    # It must fail on numbers, not because the mutation itself does not run.
    assert not any("Error" in line for line in report.failures), report.failures


def _load_once(_: Path) -> LoadedBackbone:
    return _loaded()


@functools.cache
def _loaded() -> LoadedBackbone:
    return load_backbone(SET_A / "checkpoint")
