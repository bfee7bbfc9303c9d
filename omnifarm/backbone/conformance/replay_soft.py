"""Replay of soft vectors in text segments: mixed and plain routing, training with gradients and cached inference."""

import re
from typing import Any

import torch
from torch import Tensor

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.conformance.replay_cached import read
from omnifarm.backbone.conformance.replay_training import (
    PaddedLatents,
    TrainingRun,
    compare_pack,
    reduced,
    target_times,
)
from omnifarm.backbone.flow import Branches, SamplingOptions, guide, sample
from omnifarm.backbone.inference import Denoiser, empty_context, feed_ids, generate_text, prefill, velocity
from omnifarm.backbone.packed import Pack
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import Segment, SoftSlot, TextSegment


def replay_soft(golden: Golden, group: Group) -> None:
    """Run every recorded routing."""
    latents = _latents(golden, group)
    table = group.given("soft_vectors")
    noise = latents.split(group.given("noise"))
    group.fact("timestep_shift", golden.config.timestep_shift)
    for routing in ("mixed", "und"):
        samples = _samples(golden, group, latents, routing=routing)
        packed = pack(samples, special_ids=golden.tokenizer.special_ids, config=golden.config)
        if routing == "mixed":
            compare_pack(group, packed, latents.grids)
            group.compare("timesteps", target_times(packed))
            group.compare("latent_clean_tokens", packed.latent.clean)
            _compare_places(group, packed, rows=len(table))
        run = TrainingRun(golden, packed, soft_table=table)
        run.compare(group, prefix=f"{routing}_")
        run.compare_text_gradients(group, prefix=f"{routing}_grad_text_emb")
        _compare_soft_gradients(golden, group, packed, table=table, prefix=f"{routing}_grad_soft")
        times = [float(t) for t in target_times(packed)]
        _replay_drawing(golden, group, latents, noise=noise[0], t=times[0], routing=routing)
        _replay_editing(golden, group, latents, noise=noise[2], t=times[1], routing=routing)
        _replay_answer(golden, group, routing=routing)


def soft_text(golden: Golden, group: Group, name: str, *, routing: str) -> TextSegment:
    """Return the recorded segment `name` (caption, question, edit) with its soft slots."""
    ids = tuple(group.param(f"{name}_ids"))
    # The recorded offset counts the start token, a segment's ids do not.
    first = int(group.param(f"{name}_soft_offset")) - 1
    count = group.shape("soft_vectors")[0]
    routed = set(group.param("routed_relative")) if routing == "mixed" else set()
    placeholder = group.param("placeholder_id")
    group.same(f"{name}_placeholders", list(ids[first : first + count]), expected=[placeholder] * count)
    slots = tuple(
        SoftSlot(offset=first + row, row=row, expert="gen" if row in routed else "und") for row in range(count)
    )
    return TextSegment(ids=ids, soft=slots)


def _latents(golden: Golden, group: Group) -> PaddedLatents:
    images = group.param("images")
    return PaddedLatents(golden, [images["t2i"], images["edit_source"], images["edit_target"]])


def _samples(golden: Golden, group: Group, latents: PaddedLatents, *, routing: str) -> list[list[Segment]]:
    images, logits = group.param("images"), group.param("timestep_logits")
    noise = latents.split(group.given("noise"))
    return [
        [
            golden.vit(images["und"]),
            soft_text(golden, group, "question", routing=routing),
            TextSegment(ids=tuple(group.param("answer_ids")), has_loss=True),
        ],
        [
            soft_text(golden, group, "caption", routing=routing),
            latents.target(0, noise=noise[0], logit=logits[0]),
        ],
        [
            latents.clean(1),
            golden.vit(images["edit_source"]),
            soft_text(golden, group, "edit", routing=routing),
            latents.target(2, noise=noise[2], logit=logits[1]),
        ],
    ]


def _compare_places(group: Group, packed: Pack, *, rows: int) -> None:
    """Compare where the soft vectors of each occurrence stand and which go to the generation expert."""
    places = packed.soft_index.reshape(-1, rows)
    place_of_row = {int(place): row for row, place in enumerate(packed.text_index)}
    text_rows = torch.tensor([[place_of_row[int(place)] for place in occurrence] for occurrence in places])
    group.compare("soft_positions_in_sequence", places)
    group.compare("soft_rows_in_text", text_rows)
    is_gen = packed.memory_of[packed.soft_index] >= packed.num_und
    group.compare("routed_positions_in_sequence", packed.soft_index[is_gen])


def _compare_soft_gradients(golden: Golden, group: Group, packed: Pack, *, table: Tensor, prefix: str) -> None:
    """Compare gradients with respect to the table, summed over all samples that use it."""
    leaf = table.clone().requires_grad_()
    with torch.enable_grad():
        loss_ce, loss_mse = reduced(golden.model.train_forward(packed, soft_table=leaf))
        for name, loss in (("ce", loss_ce), ("mse", loss_mse), ("total", loss_ce + loss_mse)):
            (gradient,) = torch.autograd.grad(loss, leaf, retain_graph=True)
            group.compare(f"{prefix}_{name}", gradient)


def _replay_drawing(
    golden: Golden, group: Group, latents: PaddedLatents, *, noise: Tensor, t: float, routing: str
) -> None:
    model, table = golden.model, group.given("soft_vectors")
    caption = soft_text(golden, group, "caption", routing=routing)
    empty = empty_context(model)
    result = prefill(model, [empty], [[caption]], soft_table=table)
    context = result.contexts[0]
    prefix = f"{routing}_infer_"
    group.compare(prefix + "caption_last_hidden", result.hidden)
    group.compare(prefix + "caption_cache_k", torch.stack(context.keys))
    group.compare(prefix + "caption_cache_v", torch.stack(context.values))
    x_t = latents.noised(0, noise=noise, t=t)
    group.compare("infer_t2i_x_t", x_t)
    grid = latents.grids[0]
    group.fact("t2i_hw", [side * golden.config.latent_downsample for side in grid])
    v, v_text = (velocity(model, branch, x_t, t=t, grid=grid) for branch in (context, empty))
    group.compare(prefix + "t2i_v", v)
    options = _options(group.param("sampling"))
    guided = guide(v, v_text=v_text, v_img=None, options=options)
    for name in group.outputs:
        if name.startswith(prefix + "t2i_v_cfg"):
            group.compare(name, guided)
    full, without_text = (Denoiser(model, [branch], grids=[grid]) for branch in (context, empty))
    branches = Branches(
        main=lambda x, time: full([x], [time])[0],
        without_text=lambda x, time: without_text([x], [time])[0],
        without_image=lambda x, time: full([x], [time])[0],
    )
    final = sample(branches, noise=group.given("infer_t2i_init_noise"), options=options)
    group.compare(prefix + "t2i_final_latent", final)


def _replay_editing(
    golden: Golden, group: Group, latents: PaddedLatents, *, noise: Tensor, t: float, routing: str
) -> None:
    source = group.param("images")["edit_source"]
    instruction = soft_text(golden, group, "edit", routing=routing)
    segments: list[Segment] = [golden.clean(source), golden.vit(source), instruction]
    context = read(golden, segments, soft_table=group.given("soft_vectors"))
    x_t = latents.noised(2, noise=noise, t=t)
    found = velocity(golden.model, context, x_t, t=t, grid=latents.grids[2])
    group.compare(f"{routing}_infer_edit_v", found)


def _replay_answer(golden: Golden, group: Group, *, routing: str) -> None:
    model, name = golden.model, f"{routing}_infer_generated_ids"
    question = soft_text(golden, group, "question", routing=routing)
    image = golden.vit(group.param("images")["und"])
    context = read(golden, [image, question], soft_table=group.given("soft_vectors"))
    answer = [golden.tokenizer.special_ids.im_start, *group.param("answer_ids")]
    group.compare(f"{routing}_infer_answer_logits", feed_ids(model, context, answer)[1])
    if group.expects(name):
        match = re.search(r"max (\d+)", group.meaning(name))
        max_tokens = int(match[1]) if match else group.shape(name)[0]
        group.compare(name, torch.tensor(generate_text(model, context, max_tokens=max_tokens)))


def _options(recorded: dict[str, Any]) -> SamplingOptions:
    return SamplingOptions.from_mapping(
        {
            "num_timesteps": recorded["num_timesteps"],
            "timestep_shift": recorded["shift"],
            "cfg_text_scale": recorded["cfg_text_scale"],
            "cfg_img_scale": 1.0,
            "cfg_interval": recorded["cfg_interval"],
            "cfg_renorm_type": recorded["renorm"],
        }
    )
