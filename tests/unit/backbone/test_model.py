from copy import deepcopy

import pytest
import torch
from transformers import Qwen2Config, SiglipVisionConfig

from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.inference import (
    add_latent,
    add_text,
    add_vit,
    empty_context,
    feed_ids,
    generate_text,
    generate_texts,
    prefill,
    velocity,
)
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.segments import LatentSegment, SoftSlot, TextSegment
from omnifarm.errors import ConfigError

EXACT = {"rtol": 1e-11, "atol": 1e-11}


def released_config() -> BackboneConfig:
    llm = Qwen2Config(
        vocab_size=152064, hidden_size=3584, intermediate_size=18944, num_hidden_layers=28, num_attention_heads=28,
        num_key_value_heads=4, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=False,
    )  # fmt: skip
    vit = SiglipVisionConfig(
        hidden_size=1152, intermediate_size=4304, num_hidden_layers=26, num_attention_heads=16, patch_size=14,
        image_size=980,
    )  # fmt: skip
    return BackboneConfig(llm=llm, vit=vit)


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the official file, by rule (BAGEL specification 1.4)."""
    width, keys, inner, head, vit, vit_inner = 3584, 512, 18944, 128, 1152, 4304

    def linear(name: str, out: int, into: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": (out, into)} | ({f"{name}.bias": (out,)} if bias else {})

    shapes: dict[str, tuple[int, ...]] = {
        "language_model.model.embed_tokens.weight": (152064, width),
        "language_model.lm_head.weight": (152064, width),
        "vit_pos_embed.pos_embed": (4900, width),
        "latent_pos_embed.pos_embed": (4096, width),
    }
    for suffix in ("", "_moe_gen"):
        shapes[f"language_model.model.norm{suffix}.weight"] = (width,)
        for layer in range(28):
            prefix = f"language_model.model.layers.{layer}"
            for norm in ("input_layernorm", "post_attention_layernorm"):
                shapes[f"{prefix}.{norm}{suffix}.weight"] = (width,)
            for name, out in (("q", width), ("k", keys), ("v", keys)):
                shapes |= linear(f"{prefix}.self_attn.{name}_proj{suffix}", out, width)
            shapes |= linear(f"{prefix}.self_attn.o_proj{suffix}", width, width, bias=False)
            for name in ("q_norm", "k_norm"):
                shapes[f"{prefix}.self_attn.{name}{suffix}.weight"] = (head,)
            for name, out, into in (("gate", inner, width), ("up", inner, width), ("down", width, inner)):
                shapes |= linear(f"{prefix}.mlp{suffix}.{name}_proj", out, into, bias=False)
    tower = "vit_model.vision_model"
    shapes |= linear(f"{tower}.embeddings.patch_embedding", vit, 588)
    shapes[f"{tower}.embeddings.position_embedding.weight"] = (4900, vit)
    norms = [f"{tower}.post_layernorm"]
    for layer in range(26):
        prefix = f"{tower}.encoder.layers.{layer}"
        norms += [f"{prefix}.layer_norm1", f"{prefix}.layer_norm2"]
        for name in ("q", "k", "v", "out"):
            shapes |= linear(f"{prefix}.self_attn.{name}_proj", vit, vit)
        shapes |= linear(f"{prefix}.mlp.fc1", vit_inner, vit) | linear(f"{prefix}.mlp.fc2", vit, vit_inner)
    for norm in norms:
        shapes |= {f"{norm}.weight": (vit,), f"{norm}.bias": (vit,)}
    shapes |= linear("connector.fc1", width, vit) | linear("connector.fc2", width, width)
    shapes |= linear("time_embedder.mlp.0", width, 256) | linear("time_embedder.mlp.2", width, width)
    return shapes | linear("vae2llm", width, 64) | linear("llm2vae", 64, width)


def test_released_sizes_give_the_official_tensors() -> None:
    with torch.device("meta"):
        model = Backbone(released_config())
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert shapes == released_shapes()
    assert len(shapes) == 1223
    assert sum(torch.Size(shape).numel() for shape in shapes.values()) == 14_607_260_128


def test_position_tables_are_no_parameters(tiny_model: Backbone) -> None:
    assert not any("pos_embed.pos_embed" in name for name, _ in tiny_model.named_parameters())


def soft_text(*, experts: str, row: int = 0, ids: tuple[int, ...] = (5, 6, 7, 8, 9)) -> TextSegment:
    slots = [
        SoftSlot(offset=1 + index, row=row + index, expert="gen" if expert == "g" else "und")
        for index, expert in enumerate(experts)
    ]
    return TextSegment(ids=ids, soft=tuple(slots))


def soft_table(rows: int = 6) -> torch.Tensor:
    return torch.randn(rows, 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def test_cached_inference_repeats_training_exactly(
    tiny_model: Backbone, special_ids: SpecialIds, vit_image, latent_image
) -> None:
    table = soft_table()
    target = latent_image(3, 4, seed=3, timestep_logit=0.4)
    system, answer = soft_text(experts="ugg"), TextSegment(ids=(20, 21, 22), has_loss=True)
    source, seen = latent_image(2, 5, seed=1), vit_image(3, 2, seed=2)
    samples = [[system, source, seen, TextSegment(ids=(11, 12)), target], [system, seen, answer]]
    packed = pack(samples, special_ids=special_ids, config=tiny_model.config)
    trained = tiny_model.train_forward(packed, soft_table=table)

    context = add_text(tiny_model, empty_context(tiny_model), system, soft_table=table)
    editing = add_latent(tiny_model, context, source)
    editing = add_text(tiny_model, add_vit(tiny_model, editing, seen), TextSegment(ids=(11, 12)))
    t = packed.latent.timesteps[1]
    x_t = (1 - t.double()) * target.latents + t.double() * target.noise
    cached = velocity(tiny_model, editing, packed.latent.entering()[-12:], t=float(t), grid=(3, 4))
    torch.testing.assert_close(packed.latent.entering()[-12:], x_t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(cached, trained.velocity, **EXACT)

    asking = add_vit(tiny_model, context, seen)
    _, logits = feed_ids(tiny_model, asking, [special_ids.im_start, 20, 21, 22])
    torch.testing.assert_close(logits, trained.logits, **EXACT)


def test_reading_in_one_pass_or_many_gives_the_same_context(tiny_model: Backbone, vit_image, latent_image) -> None:
    segments = [soft_text(experts="ug"), latent_image(2, 3), vit_image(2, 2), TextSegment(ids=())]
    table, start = soft_table(), empty_context(tiny_model)
    at_once = prefill(tiny_model, [start], [segments], soft_table=table).contexts[0]
    step_by_step = start
    for segment in segments:
        step_by_step = prefill(tiny_model, [step_by_step], [[segment]], soft_table=table).contexts[0]
    assert (at_once.kv_len, at_once.rope) == (step_by_step.kv_len, step_by_step.rope) == (7 + 8 + 6 + 2, 7 + 1 + 1 + 2)
    for one, other in zip((*at_once.keys, *at_once.values), (*step_by_step.keys, *step_by_step.values), strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_contexts_read_together_do_not_see_each_other(tiny_model: Backbone, vit_image) -> None:
    start = empty_context(tiny_model)
    first = add_text(tiny_model, start, TextSegment(ids=(1, 2, 3)))
    alone = [
        prefill(tiny_model, [first], [[vit_image(2, 3)]]).contexts[0],
        prefill(tiny_model, [start], [[soft_text(experts="gu")]], soft_table=soft_table()).contexts[0],
    ]
    together = prefill(
        tiny_model, [first, start], [[vit_image(2, 3)], [soft_text(experts="gu")]], soft_table=soft_table()
    )
    for one, other in zip(alone, together.contexts, strict=True):
        assert one.rope == other.rope
        torch.testing.assert_close(torch.stack(one.keys), torch.stack(other.keys), **EXACT)
    assert first.kv_len == 5


def test_texts_decoded_together_are_those_decoded_alone(tiny_model: Backbone) -> None:
    start = empty_context(tiny_model)
    contexts = [add_text(tiny_model, start, TextSegment(ids=tuple(range(n)))) for n in (1, 9, 4)]
    alone = [generate_text(tiny_model, context, max_tokens=8) for context in contexts]
    assert generate_texts(tiny_model, contexts, max_tokens=8) == alone
    assert len({tuple(ids) for ids in alone}) > 1
    assert all(ids[0] == 90 for ids in alone)
    # In bf16 attention is another kernel's, whichever one is set for training.
    rounded = deepcopy(tiny_model).to(torch.bfloat16)
    rounded.set_training_mode(attention_kernel="flex")
    contexts = [add_text(rounded, empty_context(rounded), TextSegment(ids=tuple(range(n)))) for n in (1, 9, 4)]
    alone = [generate_text(rounded, context, max_tokens=1) for context in contexts]
    assert generate_texts(rounded, contexts, max_tokens=1) == alone
    assert len(generate_texts(rounded, contexts, max_tokens=8)) == 3


def test_decoding_ends_before_the_end_token(tiny_model: Backbone) -> None:
    context = add_text(tiny_model, empty_context(tiny_model), TextSegment(ids=(3, 4)))
    ids = generate_text(tiny_model, context, max_tokens=6)
    assert len(ids) == 6
    cut = ids.index(ids[3])
    assert generate_text(tiny_model, context, max_tokens=6, end_id=ids[3]) == ids[:cut]


def test_seeded_draws_repeat(tiny_model: Backbone) -> None:
    context = add_text(tiny_model, empty_context(tiny_model), TextSegment(ids=(3, 4)))
    draws = [
        generate_text(tiny_model, context, max_tokens=8, temperature=2.0, generator=torch.Generator().manual_seed(seed))
        for seed in (1, 1, 2)
    ]
    assert draws[0] == draws[1] != draws[2]


def test_samples_of_a_pack_are_independent(
    tiny_model: Backbone, special_ids: SpecialIds, vit_image, latent_image
) -> None:
    table = soft_table()
    mine = [soft_text(experts="ug"), vit_image(2, 3), latent_image(2, 2, timestep_logit=-0.2)]
    labelled = [*mine, TextSegment(ids=(40, 41), has_loss=True)]
    others = [[TextSegment(ids=tuple(range(30)), has_loss=True)], [latent_image(4, 4, seed=9, timestep_logit=1.0)]]
    config = tiny_model.config
    alone = tiny_model.train_forward(pack([labelled], special_ids=special_ids, config=config), soft_table=table)
    packed = pack([others[0], labelled, others[1]], special_ids=special_ids, config=config)
    together = tiny_model.train_forward(packed, soft_table=table)
    torch.testing.assert_close(together.ce[together.ce_sample == 1], alone.ce, **EXACT)
    torch.testing.assert_close(together.mse[together.mse_sample == 1], alone.mse, **EXACT)


def all_hidden(model: Backbone, packed: Pack) -> torch.Tensor:
    return model.run(packed, model.embed(packed, soft_table=soft_table())).index_select(0, packed.memory_of)


def test_soft_slots_run_through_the_expert_they_name(tiny_model: Backbone, special_ids: SpecialIds) -> None:
    def last_hidden(experts: str) -> torch.Tensor:
        packed = pack([[soft_text(experts=experts)]], special_ids=special_ids, config=tiny_model.config)
        return all_hidden(tiny_model, packed)

    und, mixed = last_hidden("uuu"), last_hidden("ugu")
    # Position 3 is the routed slot: earlier tokens cannot know, it and all later ones must.
    torch.testing.assert_close(mixed[:3], und[:3], **EXACT)
    assert ((mixed[3:] - und[3:]).abs().amax(dim=1) > 1e-3).all()


def test_placeholder_ids_do_not_matter(tiny_model: Backbone, special_ids: SpecialIds) -> None:
    hidden = []
    for filler in (0, 10_000):
        segment = soft_text(experts="ug", ids=(5, filler, filler, 8))
        packed = pack([[segment]], special_ids=special_ids, config=tiny_model.config)
        hidden.append(all_hidden(tiny_model, packed))
    assert torch.equal(*hidden)


def test_gradients_reach_the_soft_table_and_nothing_else(
    tiny_model: Backbone, special_ids: SpecialIds, latent_image
) -> None:
    table = soft_table().requires_grad_()
    answer = TextSegment(ids=(1, 2), has_loss=True)
    samples = [[soft_text(experts="ug"), answer], [soft_text(experts="ug"), latent_image(2, 2, timestep_logit=0.0)]]
    output = tiny_model.train_forward(
        pack(samples, special_ids=special_ids, config=tiny_model.config), soft_table=table
    )
    (output.ce.sum() + output.mse.sum()).backward()
    assert (table.grad[:2].abs().sum(dim=1) > 0).all()
    assert not table.grad[2:].any()
    assert all(parameter.grad is None for parameter in tiny_model.parameters())


def test_gradients_match_finite_differences(tiny_model: Backbone, special_ids: SpecialIds, latent_image) -> None:
    samples = [[soft_text(experts="ug"), latent_image(1, 2, timestep_logit=0.3), TextSegment(ids=(3,), has_loss=True)]]
    packed = pack(samples, special_ids=special_ids, config=tiny_model.config)
    table, direction = soft_table(2), soft_table(4)[2:]

    def loss(step: float) -> torch.Tensor:
        output = tiny_model.train_forward(packed, soft_table=table + step * direction)
        return output.ce.sum() + output.mse.sum()

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    loss(step).backward()
    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    torch.testing.assert_close(step.grad, numeric, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("mode", [{"gradient_checkpointing": True}, {"touch_every_parameter": True}])
def test_training_modes_change_no_number(tiny_model: Backbone, special_ids: SpecialIds, mode: dict[str, bool]) -> None:
    packed = pack(
        [[soft_text(experts="uu"), TextSegment(ids=(4,), has_loss=True)]],
        special_ids=special_ids,
        config=tiny_model.config,
    )
    gradients = []
    for options in ({}, mode):
        tiny_model.set_training_mode(**options)
        table = soft_table().requires_grad_()
        tiny_model.train_forward(packed, soft_table=table).ce.sum().backward()
        gradients.append(table.grad)
    tiny_model.set_training_mode()
    torch.testing.assert_close(*gradients, **EXACT)


def test_packs_may_lack_images_targets_or_labels(
    tiny_model: Backbone, special_ids: SpecialIds, vit_image, latent_image
) -> None:
    for sample in ([TextSegment(ids=(1,))], [vit_image(1, 2)], [latent_image(2, 1)], []):
        output = tiny_model.train_forward(pack([sample], special_ids=special_ids, config=tiny_model.config))
        assert output.ce.shape == (0,)
        assert output.mse.shape == (0, 12)


def test_kept_features_replace_patches(tiny_model: Backbone, special_ids: SpecialIds, vit_image) -> None:
    images = [vit_image(2, 3, seed=1), vit_image(1, 4, seed=2), vit_image(3, 3, seed=3)]
    side = tiny_model.config.vit_max_patches_per_side
    ids = [torch.tensor([row * side + column for row in range(r) for column in range(c)]) for r, c in ((2, 3), (3, 3))]
    features = tiny_model.encode_vit(
        torch.cat((images[0].patches, images[2].patches)), position_ids=torch.cat(ids), seqlens=[6, 9]
    )
    kept = [
        type(image)(grid=image.grid, features=part)
        for image, part in zip((images[0], images[2]), features.split([6, 9]), strict=True)
    ]
    packs = [
        pack([sample], special_ids=special_ids, config=tiny_model.config)
        for sample in (images, [kept[0], images[1], kept[1]])
    ]
    plain, mixed = (tiny_model.run(packed, tiny_model.embed(packed))[packed.memory_of] for packed in packs)
    torch.testing.assert_close(mixed, plain, **EXACT)


def test_bf16_weights_stay_close_and_losses_are_float32(
    tiny_config: BackboneConfig, tiny_model: Backbone, special_ids: SpecialIds, vit_image, latent_image
) -> None:
    model = Backbone(tiny_config)
    model.load_state_dict(tiny_model.state_dict())
    samples = [
        [soft_text(experts="ug"), vit_image(2, 2), TextSegment(ids=(9, 8), has_loss=True)],
        [soft_text(experts="ug"), latent_image(2, 3, timestep_logit=0.1)],
    ]
    packed = pack(samples, special_ids=special_ids, config=tiny_config)
    table = soft_table().float()
    exact = model.requires_grad_(False).train_forward(packed, soft_table=table)
    rough = model.bfloat16().requires_grad_(True).train_forward(packed, soft_table=table.requires_grad_())
    assert rough.ce.dtype == torch.float32
    assert rough.velocity.dtype == torch.bfloat16
    assert (rough.ce - exact.ce).abs().max() < 0.3
    (rough.ce.sum() + rough.mse.sum()).backward()
    assert table.grad.dtype == torch.float32
    used = model.language_model.model.layers[0].mlp_moe_gen.up_proj.weight
    assert used.grad is not None
    assert used.grad.dtype == torch.bfloat16


def test_noised_images_are_never_cached(tiny_model: Backbone, latent_image) -> None:
    clean = latent_image(2, 2)
    noised = LatentSegment(latents=clean.latents, grid=clean.grid, timestep=0.5)
    with pytest.raises(ConfigError, match="only clean latents"):
        add_latent(tiny_model, empty_context(tiny_model), noised)


def test_soft_slots_need_their_table(tiny_model: Backbone, special_ids: SpecialIds) -> None:
    packed = pack([[soft_text(experts="ug", row=5)]], special_ids=special_ids, config=tiny_model.config)
    with pytest.raises(ConfigError, match="give the soft_table"):
        tiny_model.train_forward(packed)
    with pytest.raises(ConfigError, match="the table has 6 rows"):
        tiny_model.train_forward(packed, soft_table=soft_table())
