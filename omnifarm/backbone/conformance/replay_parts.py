"""Replays of the parts on their own: tokenizer, tables, image path, autoencoder, guidance arithmetic."""

import re

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.config import ImageTransformConfig
from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.flow import SamplingOptions, guide, schedule
from omnifarm.backbone.image_ops import ImageTransform, patchify, patchify_vit, to_tensor, to_uint8, vit_patch_size
from omnifarm.backbone.interleave import SYSTEM_PROMPTS
from omnifarm.backbone.layers import TimestepEmbedder
from omnifarm.backbone.positions import grid_position_ids, sincos_table
from omnifarm.errors import WeightsError


def replay_static(golden: Golden, group: Group) -> None:
    """Tokenizer cases, special ids, system prompts, resize table, schedules, tables and ids."""
    _tokenizer_facts(golden, group)
    group.fact("system_prompts", SYSTEM_PROMPTS)
    for index, case in enumerate(group.param("resize_table")):
        found = _transform(case["transform"]).size(tuple(case["in_wh"]), num_images=case["img_num"])
        group.same(f"resize_table[{index}]", found, expected=case["out_wh"])
    for name in group.outputs:
        if match := re.fullmatch(r"schedule_n(\d+)_shift([\d.]+)", name):
            group.compare(name, schedule(int(match[1]), shift=float(match[2])))
        elif match := re.fullmatch(r"latent_position_ids(_interp)?_(\d+)x(\d+)", name):
            config = golden.config
            grid = int(match[2]) // config.latent_downsample, int(match[3]) // config.latent_downsample
            is_stretched = match[1] is not None
            group.compare(name, grid_position_ids(grid, side=config.max_latent_size, interpolate=is_stretched))
        elif match := re.fullmatch(r"patchify_p(\d+)", name):
            group.compare(name, patchify(group.given("patchify_in"), patch=int(match[1])))
    group.compare("time_sinusoid", TimestepEmbedder.sinusoid(group.given("time_in")))
    group.compare("time_embed", golden.model.time_embedder(group.given("time_in")))
    for name, table in (
        ("latent_pos_embed", golden.model.latent_pos_embed),
        ("vit_pos_embed_head", golden.model.vit_pos_embed),
    ):
        if group.expects(name):
            rows = group.shape(name)[0]
            group.compare(name, table.pos_embed[:rows])
            # The table of the file and the formula must both hold, whichever of them the model uses.
            group.compare(name, sincos_table(table.side, width=golden.config.hidden_size)[:rows])


def _tokenizer_facts(golden: Golden, group: Group) -> None:
    ids = golden.tokenizer.special_ids
    group.fact(
        "special_token_ids",
        {
            "bos_token_id": ids.im_start,
            "eos_token_id": ids.im_end,
            "start_of_image": ids.vision_start,
            "end_of_image": ids.vision_end,
        },
    )
    # The official number is what add_tokens returns; some versions of the library count known strings too.
    recorded = group.param("num_new_tokens")
    is_known = recorded in (golden.tokenizer.num_appended, golden.tokenizer.num_added)
    group.fact("num_new_tokens", recorded if is_known else golden.tokenizer.num_appended)
    group.fact("tokenizer_len", len(golden.tokenizer))
    for index, case in enumerate(group.param("tokenizer_cases")):
        found = golden.tokenizer.encode(case["text"])
        group.same(f"tokenizer_cases[{index}].ids", found, expected=case["ids"])
        group.same(f"tokenizer_cases[{index}].decoded", golden.tokenizer.decode(case["ids"]), expected=case["decoded"])


def _transform(name: str) -> ImageTransform:
    match = re.search(r"_(\d+)_(\d+)_(\d+)(?:_mp(\d+))?$", name)
    if match is None:
        raise WeightsError(f"resize table: {name!r} must end in max_min_stride")
    sizes = {"max_size": int(match[1]), "min_size": int(match[2]), "stride": int(match[3])}
    if match[4]:
        sizes["max_pixels"] = int(match[4])
    return ImageTransform(config=ImageTransformConfig(**sizes))


def replay_vit(golden: Golden, group: Group) -> None:
    """Image to vectors of the sequence, straight and through two resizes; two images packed."""
    raw = golden.image(group.param("image"))
    group.same("image_u8", levels(raw), expected=group.given("image_u8"))
    resized = golden.latent_transform.resize(raw)
    group.compare("double_vae_resized_u8", levels(resized))
    model, config = golden.model, golden.config
    for prefix, image in (("direct", raw), ("double", resized)):
        vit_resized = golden.vit_transform.resize(image)
        group.compare(f"{prefix}_vit_resized_u8", levels(vit_resized))
        pixels = to_tensor(vit_resized)
        group.compare(f"{prefix}_pixels", pixels)
        patches, grid = patchify_vit(pixels, patch=vit_patch_size(config))
        group.compare(f"{prefix}_patches", patches)
        ids = grid_position_ids(grid, side=config.vit_max_patches_per_side, interpolate=config.interpolate_pos)
        group.compare(f"{prefix}_position_ids", ids)
        hidden = model.encode_vit(patches, position_ids=ids, seqlens=[len(ids)])
        group.compare(f"{prefix}_vit_hidden", hidden)
        vectors = model.connector(hidden)
        group.compare(f"{prefix}_connector", vectors)
        group.compare(f"{prefix}_tokens", vectors + model.vit_pos_embed(ids))
    both = [golden.vit(name) for name in ("img0", "img1")]
    ids_of = [
        grid_position_ids(s.grid, side=config.vit_max_patches_per_side, interpolate=config.interpolate_pos)
        for s in both
    ]
    lengths = [len(rows) for rows in ids_of]
    patches = torch.cat([s.patches for s in both if s.patches is not None])
    group.compare("packed2_seqlens", torch.tensor(lengths))
    group.compare("packed2_vit_hidden", model.encode_vit(patches, position_ids=torch.cat(ids_of), seqlens=lengths))


def replay_vae(golden: Golden, group: Group) -> None:
    """Autoencoder moments, mean, sample, tokens, decoding and quantisation."""
    codec = golden.codec
    group.fact("scale_factor", golden.config.autoencoder.scale_factor)
    group.fact("shift_factor", golden.config.autoencoder.shift_factor)
    resized = golden.latent_transform.resize(golden.image(group.param("image")))
    group.compare("resized_u8", levels(resized))
    pixels = to_tensor(resized)
    group.compare("pixels", pixels)
    batch = pixels[None]
    group.compare("moments", torch.cat(codec.moments(batch), dim=1))
    latent = codec.encode(batch)
    group.compare("latent_mean", latent)
    group.compare("latent_sampled", codec.encode(batch, noise=group.given("eps")))
    group.compare("latent_tokens", codec.to_tokens(latent[0]))
    decoded = codec.decode(latent)
    group.compare("decoded", decoded)
    compare_picture(group, "decoded_u8", decoded[0])


def compare_picture(group: Group, name: str, pixels: Tensor) -> None:
    """Compare an 8-bit picture twice: from our own pixels, and exactly from the recorded float tensor."""
    group.compare(name, to_uint8(pixels))
    source = group.tolerance_at(name).get("exact_when_computed_from") if group.expects(name) else None
    if source:
        quantised = to_uint8(group.given(str(source))[0])
        group.exact(name, quantised, why=f"quantising the recorded {source} must give it exactly")


def levels(image: Image.Image) -> Tensor:
    """Return (H, W, 3) uint8 of an RGB picture."""
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(image.height, image.width, 3)


def replay_guidance(golden: Golden, group: Group) -> None:
    """Guidance arithmetic on given velocities."""
    v, v_text, v_img = (group.given(name) for name in ("v", "v_T", "v_I"))
    for case in group.param("cases"):
        options = SamplingOptions(
            cfg_text_scale=case["cfg_text_scale"],
            cfg_img_scale=case["cfg_img_scale"],
            cfg_renorm_type=case["renorm"],
            cfg_renorm_min=case["renorm_min"],
        )
        group.compare(case["name"], guide(v, v_text=v_text, v_img=v_img, options=options))
