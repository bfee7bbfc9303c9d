"""Replays of cached inference: prefill, greedy text, single velocities."""

import re
from dataclasses import replace

import torch

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.flow import SamplingOptions, guide
from omnifarm.backbone.inference import empty_context, feed_ids, generate_text, prefill, velocity
from omnifarm.backbone.interleave import Interleaver
from omnifarm.backbone.kv_cache import Context, GrowingStore
from omnifarm.backbone.packing import Start, pack
from omnifarm.backbone.segments import LatentSegment, Segment
from omnifarm.errors import WeightsError


def trusted(golden: Golden) -> Interleaver:
    """Return an interleaver that parses special strings and takes posterior means, as the vectors were recorded."""
    return Interleaver(golden.backbone, encode=golden.tokenizer.encode)


def read(golden: Golden, segments: list[Segment], *, soft_table: torch.Tensor | None = None) -> Context:
    """Return a fresh context with segments read one by one."""
    context = empty_context(golden.model)
    for segment in segments:
        context = prefill(golden.model, [context], [[segment]], soft_table=soft_table).contexts[0]
    return context


def replay_prefill(golden: Golden, group: Group) -> None:
    """Text, ViT image and latent image on one context, piece by piece."""
    interleaver = trusted(golden)
    resized = golden.latent_transform.resize(golden.image(group.param("image")))
    text = interleaver.text(group.param("text"))
    ids = golden.tokenizer.special_ids
    group.fact("text_ids", [ids.im_start, *text.ids, ids.im_end])
    context = empty_context(golden.model)
    pieces: dict[str, Segment] = {"text": text, "vit": interleaver.vit(resized), "vae": interleaver.latent(resized)}
    for name, segment in pieces.items():
        start = Start(kv_len=context.kv_len, rope=context.rope)
        packed = pack([[segment]], special_ids=ids, config=golden.config, starts=[start])
        group.compare(f"{name}_position_ids", packed.position_ids)
        result = prefill(golden.model, [context], [[segment]])
        context = result.contexts[0]
        group.compare(f"{name}_in", result.entering)
        group.compare(f"{name}_last_hidden", result.hidden)
        group.compare(f"{name}_logits", golden.model.language_model.lm_head(result.hidden))
        group.fact(f"{name}_kv_len_after", context.kv_len)
        group.fact(f"{name}_rope_after", context.rope)
    group.compare("final_cache_k", torch.stack(context.keys))
    group.compare("final_cache_v", torch.stack(context.values))


def replay_generate(golden: Golden, group: Group) -> None:
    """Greedy decoding after the inferencer's two resizes and after chat's single one; early stop."""
    image, question = golden.image(group.param("image")), group.param("question")
    max_tokens = group.param("max_length")
    model, decode = golden.model, golden.tokenizer.decode_generated
    contexts = {
        "inferencer": trusted(golden).read([image, question], output="text").main,
        "chat": read(golden, [golden.vit(group.param("image")), golden.text(question)]),
    }
    for name, context in contexts.items():
        ids = generate_text(model, context, max_tokens=max_tokens)
        group.compare(f"{name}_ids", torch.tensor(ids))
        group.fact(f"{name}_text", decode(ids))
        stepped, rows = context, []
        for token in ids:
            stepped, logits = feed_ids(model, stepped, [token])
            rows.append(logits)
        group.compare(f"{name}_step_logits", torch.cat(rows))
        top2 = torch.cat(rows).topk(2, dim=-1).values
        margin = float((top2[:, 0] - top2[:, 1]).min())
        recorded = float(group.params.get(f"{name}_min_top2_margin", margin))
        # Derived from the step logits: within twice their tolerance counts as equal.
        is_close = (
            abs(margin - recorded) <= 2 * float(group.tolerance_at(f"{name}_step_logits").get("atol", 0.0)) + 1e-6
        )
        group.same(f"{name}_min_top2_margin", recorded if is_close else margin, expected=recorded)
    group.fact("inferencer_start_position", contexts["inferencer"].rope)
    group.fact("inferencer_kv_len", contexts["inferencer"].kv_len)
    if group.expects("early_stop_ids"):
        own = model.require_special_ids()
        model.special_ids = replace(own, im_end=int(group.param("early_stop_token_id")))
        try:
            ids = generate_text(model, contexts["inferencer"], max_tokens=max_tokens)
        finally:
            model.special_ids = own
        group.compare("early_stop_ids", torch.tensor(ids))


def replay_understand(golden: Golden, group: Group) -> None:
    """A whole understanding request."""
    match = re.search(r"max (\d+)", group.about)
    inputs = [golden.image(group.param("image")), group.param("text")]
    group.fact("output_text", trusted(golden).understand(inputs, max_tokens=int(match[1]) if match else 12))


def replay_velocity(golden: Golden, group: Group) -> None:
    """One velocity of an edit and of a text-to-image context: branches, all guidance variants."""
    model, interleaver = golden.model, trusted(golden)
    contexts = interleaver.read([golden.image(group.param("image")), group.param("text")], output="image")
    branches = {"cond": contexts.main, "text": contexts.without_text, "img": contexts.without_image}
    group.fact("kv_lens", {name: context.kv_len for name, context in branches.items()})
    group.fact("ropes", {name: context.rope for name, context in branches.items()})
    group.fact("hw", contexts.size)
    t, x_t = float(group.param("t")), group.given("x_t")
    grid = _grid(golden, group.param("hw"))
    v = {name: velocity(model, context, x_t, t=t, grid=grid) for name, context in branches.items()}
    group.compare("v_cond", v["cond"])
    group.compare("v_text_branch", v["text"])
    group.compare("v_img_branch", v["img"])
    _compare_entering(golden, group, contexts.main, grid=grid)

    text_scale, img_scale = float(group.param("cfg_text_scale")), float(group.param("cfg_img_scale"))
    pattern = re.compile(r"v_cfg_(both|text|imgonly)(?:_(global|channel|text_channel))?(?:_min([\d.]+))?")
    for name in group.outputs:
        if match := pattern.fullmatch(name):
            options = SamplingOptions(
                cfg_text_scale=1.0 if match[1] == "imgonly" else text_scale,
                cfg_img_scale=1.0 if match[1] == "text" else img_scale,
                cfg_renorm_type=match[2] or "global",
                cfg_renorm_min=float(match[3] or 0.0),
            )
            group.compare(name, guide(v["cond"], v_text=v["text"], v_img=v["img"], options=options))

    drawn = interleaver.read([group.param("t2i_text")], output="image")
    t2i_t, t2i_x = float(group.param("t2i_t")), group.given("t2i_x_t")
    t2i_grid = _grid(golden, group.param("t2i_hw"))
    cond, uncond, img = (
        velocity(model, context, t2i_x, t=t2i_t, grid=t2i_grid)
        for context in (drawn.main, drawn.without_text, drawn.without_image)
    )
    group.compare("t2i_v_cond", cond)
    group.compare("t2i_v_uncond", uncond)
    pattern = re.compile(r"t2i_v_cfg_text([\d.]*)(?:_img([\d.]+))?_(global|channel|text_channel)")
    for name in group.outputs:
        if match := pattern.fullmatch(name):
            options = SamplingOptions(
                cfg_text_scale=float(match[1] or text_scale),
                cfg_img_scale=float(match[2] or 1.0),
                cfg_renorm_type=match[3],
            )
            group.compare(name, guide(cond, v_text=uncond, v_img=img, options=options))


def _compare_entering(golden: Golden, group: Group, context: Context, *, grid: tuple[int, int]) -> None:
    """Compare what enters and leaves the language model in one denoising pass."""
    segment = LatentSegment(latents=group.given("x_t"), grid=grid, timestep=float(group.param("t")))
    packed = pack(
        [[segment]],
        special_ids=golden.tokenizer.special_ids,
        config=golden.config,
        starts=[Start(kv_len=context.kv_len, rope=context.rope)],
    )
    entering = golden.model.embed(packed)
    hidden = golden.model.run(packed, entering, store=GrowingStore([context]))
    group.compare("seq_in", entering[packed.memory_of])
    group.compare("last_hidden", hidden[packed.memory_of])


def _grid(golden: Golden, size: list[int]) -> tuple[int, int]:
    if len(size) != 2:
        raise WeightsError(f"a size must be [H, W], found {size}")
    return size[0] // golden.config.latent_downsample, size[1] // golden.config.latent_downsample
