"""A tiny random backbone and made-up samples: enough to check every claim about lanes."""

from collections.abc import Sequence

import pytest
import torch
from transformers import Qwen2Config, SiglipVisionConfig

from omnifarm.backbone.config import AutoencoderConfig, BackboneConfig, SpecialIds
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.segments import LatentSegment, SoftSlot, TextSegment, VitSegment
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.samples import ConceptSample
from omnifarm.seeding import generator
from omnifarm.training.lane import Lane

SPECIAL_IDS = SpecialIds(im_start=60, im_end=61, vision_start=62, vision_end=63)
WIDTH = 32


@pytest.fixture(scope="session")
def config() -> BackboneConfig:
    return BackboneConfig(
        llm=Qwen2Config(
            vocab_size=64, hidden_size=WIDTH, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=2, rope_theta=1e4, tie_word_embeddings=False,
        ),
        vit=SiglipVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4
        ),
        autoencoder=AutoencoderConfig(ch=32, z_channels=8, num_res_blocks=1),
        max_latent_size=4,
        vit_max_patches_per_side=4,
    )  # fmt: skip


@pytest.fixture(scope="session")
def model(config: BackboneConfig) -> Backbone:
    model = Backbone(config).eval()
    draws = torch.Generator().manual_seed(1)
    model.initialise(std=0.2, generator=draws)
    with torch.no_grad():
        # A zero velocity head would hide every gradient of the drawing losses.
        model.llm2vae.weight.normal_(0.0, 0.2, generator=draws)
    return model.requires_grad_(False)


class MadeUp:
    """Samples of all three tasks, of different lengths, drawn by (seed, step)."""

    def __init__(self, config: BackboneConfig, *, recipe: TrainingRecipe, seed: int) -> None:
        self.config, self.recipe, self.seed = config, recipe, seed

    def draw(self, step: int) -> Sequence[ConceptSample]:
        draws = generator(self.seed, "made up", step)
        samples = []
        for task, count in self.recipe.num_samples_at(step).items():
            for _ in range(count):
                if task == "understanding":
                    parts = [self._system(), self._text(draws), self._text(draws, has_loss=True)]
                else:
                    parts = [self._system(), self._text(draws)]
                    if task == "editing":
                        parts += [self._latent(draws, target=False), self._vit(draws)]
                    parts.append(self._latent(draws, target=True))
                samples.append(ConceptSample(task=task, segments=parts))
        return samples

    def _system(self) -> TextSegment:
        experts = ("und",) * (1 + self.recipe.num_und) + ("gen",) * self.recipe.num_gen
        slots = tuple(SoftSlot(offset=row, row=row, expert=expert) for row, expert in enumerate(experts))
        return TextSegment(ids=(0,) * len(slots), soft=slots)

    def _text(self, draws: torch.Generator, *, has_loss: bool = False) -> TextSegment:
        length = int(torch.randint(1, 9, (1,), generator=draws))
        return TextSegment(ids=tuple(torch.randint(0, 60, (length,), generator=draws).tolist()), has_loss=has_loss)

    def _vit(self, draws: torch.Generator) -> VitSegment:
        return VitSegment(grid=(2, 2), features=torch.randn(4, 16, generator=draws))

    def _latent(self, draws: torch.Generator, *, target: bool) -> LatentSegment:
        latents = torch.randn(4, self.config.latent_dim, generator=draws)
        if not target:
            return LatentSegment(latents=latents, grid=(2, 2))
        return LatentSegment(
            latents=latents,
            grid=(2, 2),
            timestep_logit=float(torch.randn((), generator=draws)),
            noise=torch.randn(latents.shape, generator=draws),
        )


@pytest.fixture
def recipe() -> TrainingRecipe:
    return TrainingRecipe(
        steps=6, batch_size=3, learning_rate=1e-2, warmup_steps=2, num_und=2, num_gen=2, precision="float32"
    )


@pytest.fixture
def make_lane(config: BackboneConfig, recipe: TrainingRecipe):  # type: ignore[no-untyped-def]
    def make(name: str, *, seed: int = 0, recipe: TrainingRecipe = recipe, start: float = 0.0) -> Lane:
        return Lane.start(
            name,
            recipe=recipe,
            source=MadeUp(config, recipe=recipe, seed=seed),
            soft_CD=torch.full((recipe.num_soft_tokens, WIDTH), start),
        )

    return make
