"""Losses, heads and the last layer's products are computed where there is a loss, and nowhere else."""

import dataclasses

import torch
from torch import Tensor, nn

from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import pack
from omnifarm.concept.recipe import TrainingRecipe
from tests.unit.training.conftest import SPECIAL_IDS, WIDTH, MadeUp


def test_only_rows_with_a_loss_enter_the_last_mlp_and_the_heads(
    model: Backbone, config: BackboneConfig, recipe: TrainingRecipe
) -> None:
    samples = MadeUp(config, recipe=dataclasses.replace(recipe, batch_size=6), seed=2).draw(0)
    packed = pack([one.segments for one in samples], special_ids=SPECIAL_IDS, config=config, share_prefixes=True)
    first, last = model.language_model.model.layers
    watched = {
        "first und": first.mlp, "first gen": first.mlp_moe_gen, "last und": last.mlp, "last gen": last.mlp_moe_gen,
        "last query": last.self_attn.o_proj, "words": model.language_model.lm_head, "velocity": model.llm2vae,
    }  # fmt: skip
    rows: dict[str, int] = {}

    def watch(name: str, module: nn.Module) -> torch.utils.hooks.RemovableHandle:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows[name] = rows.get(name, 0) + given[0].shape[0]

        return module.register_forward_pre_hook(note)

    handles = [watch(name, module) for name, module in watched.items()]
    table = torch.zeros(recipe.num_soft_tokens, WIDTH, requires_grad=True)
    output = model.train_forward(packed, soft_table=table)
    torch.autograd.grad(output.ce.sum() + output.mse.sum(), table)
    for handle in handles:
        handle.remove()
    words, velocities = len(packed.ce_index), len(packed.mse_index)
    assert min(words, velocities) > 0
    assert rows == {
        "first und": packed.num_und,
        "first gen": packed.num_tokens - packed.num_und,
        "last und": words,
        "last gen": velocities,
        "last query": words,
        "words": words,
        "velocity": velocities,
    }
    assert words < packed.num_und / 2, "most of a pack is not learned"
