"""The backbone as one module: packs in, per-token losses or hidden states out.

Order of a forward pass: vectors for every token (text table, soft table, vision tower, latents), the language model,
then losses at the few places that have them. Weights may be frozen or trainable, float32 or bf16; losses are float32.
Knows nothing of tokenizers, images, sampling or concepts.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnifarm.backbone.attention import AttentionPlan
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.layers import Connector, PositionTable, RowwiseLinear, TimestepEmbedder
from omnifarm.backbone.mot import KeyStore, LanguageModel
from omnifarm.backbone.packed import Pack, PackedLatents, PackedVit
from omnifarm.backbone.vit import VisionModel, plan_images
from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainOutput:
    """Losses per token, so that callers reduce them per sample as they like."""

    ce: Tensor
    """(n_ce,) float32 cross entropy of every labelled token."""
    ce_sample: Tensor
    """(n_ce,) the sample of each."""
    mse: Tensor
    """(n_target, p*p*Z) float32 squared error of every element of the velocity, noise - clean."""
    mse_sample: Tensor
    """(n_target,) the sample of each target token."""
    logits: Tensor
    """(n_ce, vocabulary) in the model's type."""
    velocity: Tensor
    """(n_target, p*p*Z) in the model's type."""


class Backbone(nn.Module):
    """The whole model but the latent autoencoder; parameter names are those of the official `ema.safetensors`.

    Args:
        config: Sizes and constants.
    """

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.special_ids: SpecialIds | None = None
        """Frame tokens; the tokenizer knows them, inference needs them."""
        width = config.hidden_size
        self.language_model = LanguageModel(config.llm)
        self.vit_model = VisionModel(config.vit)
        self.connector = Connector(int(config.vit.hidden_size), width=width, activation=config.connector_act)
        self.vit_pos_embed = PositionTable(config.vit_max_patches_per_side, width=width)
        self.latent_pos_embed = PositionTable(config.max_latent_size, width=width)
        self.time_embedder = TimestepEmbedder(width)
        self.vae2llm = RowwiseLinear(config.latent_dim, width)
        self.llm2vae = RowwiseLinear(width, config.latent_dim)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.vae2llm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights and of the hidden state."""
        return self.vae2llm.weight.dtype

    def require_special_ids(self) -> SpecialIds:
        """Return `special_ids`.

        Raises:
            ConfigError: Nobody has set them.
        """
        if self.special_ids is None:
            raise ConfigError("the backbone has no special_ids yet; set them from the tokenizer before inference")
        return self.special_ids

    def set_training_mode(
        self,
        *,
        gradient_checkpointing: bool = False,
        touch_every_parameter: bool = False,
        compiled: bool = False,
        attention_kernel: str | None = None,
    ) -> None:
        """Choose how gradients are computed; results do not change.

        Args:
            gradient_checkpointing: Recompute each layer in the backward pass instead of keeping its activations.
            touch_every_parameter: Run every module in every forward pass, on no tokens if need be, as training with
                sharded weights requires.
            compiled: Fuse what surrounds attention with torch.compile, which first takes up to a minute and needs a C++
                compiler on the CPU; results then agree within rounding.
            attention_kernel: A name in `attention_kernels.KERNELS`; None takes the usual one for the pass.
        """
        self.language_model.model.gradient_checkpointing = gradient_checkpointing
        self.vit_model.vision_model.gradient_checkpointing = gradient_checkpointing
        self.language_model.model.touch_every_parameter = touch_every_parameter
        self.language_model.model.compiled = compiled
        self.language_model.model.attention_kernel = attention_kernel

    def initialise(self, *, std: float = 0.02, generator: torch.Generator | None = None) -> None:
        """Draw new weights, in place: normal matrices, zero biases, unit norms, zero velocity output.

        Generation modules start as copies of their understanding twins, as in the original.
        """
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim == 2:
                    parameter.normal_(0.0, std, generator=generator)
                else:
                    parameter.fill_(1.0 if "norm" in name and name.endswith("weight") else 0.0)
            self.llm2vae.weight.zero_()
            values = dict(self.named_parameters())
            for name, parameter in values.items():
                if "_moe_gen" in name:
                    parameter.copy_(values[name.replace("_moe_gen", "")])
        self.vit_pos_embed.reset()
        self.latent_pos_embed.reset()

    def train_forward(self, pack: Pack, *, soft_table: Tensor | None = None) -> TrainOutput:
        """Run a training pack.

        Args:
            pack: From `packing.pack` without starts, on any device.
            soft_table: (R, D) learned vectors that the pack's soft slots point into; gradients flow into it.

        Returns:
            Losses and what they were computed from. Packs without images, targets or labels give empty tensors.

        Raises:
            ConfigError: The pack has soft slots that the table does not hold.
        """
        pack = pack.to(self.device)
        return self.losses(pack, self.run_outputs(pack, self.embed(pack, soft_table=soft_table)))

    def losses(self, pack: Pack, hidden_OD: Tensor) -> TrainOutput:
        """Take the losses of `pack` on what `run_outputs` returned."""
        logits = self.language_model.lm_head(hidden_OD.index_select(0, pack.outputs.ce))
        velocity = self.llm2vae(hidden_OD.index_select(0, pack.outputs.mse))
        target = (pack.latent.noise - pack.latent.clean)[pack.mse_rows]
        return TrainOutput(
            ce=F.cross_entropy(_at_least_float32(logits), pack.ce_labels, reduction="none"),
            ce_sample=pack.ce_sample,
            mse=(_at_least_float32(velocity) - target).square(),
            mse_sample=pack.mse_sample,
            logits=logits,
            velocity=velocity,
        )

    def run_outputs(self, pack: Pack, hidden_ND: Tensor) -> Tensor:
        """Run the language model on embedded tokens (L, D) in memory order; return the rows with a loss, (O, D)."""
        return self.language_model.model(  # type: ignore[no-any-return]
            hidden_ND,
            num_und=pack.num_und,
            positions=pack.position_ids[pack.sequence_of],
            plan=pack.plan,
            outputs=pack.outputs,
        )

    def run(self, pack: Pack, hidden_ND: Tensor, *, store: KeyStore | None = None) -> Tensor:
        """Run the language model on embedded tokens; both ends (L, D) in memory order."""
        return self.language_model.model(  # type: ignore[no-any-return]
            hidden_ND,
            num_und=pack.num_und,
            positions=pack.position_ids[pack.sequence_of],
            plan=pack.plan,
            store=store,
        )

    def embed(self, pack: Pack, *, soft_table: Tensor | None = None) -> Tensor:
        """Return the vectors that enter the language model, (L, D), in memory order.

        Raises:
            ConfigError: The pack has soft slots that the table does not hold.
        """
        parts = [self.language_model.model.embed_tokens(pack.lookup_ids)]
        if len(pack.soft_rows) or soft_table is not None:
            # Without slots, too: the losses then have a gradient in the table, which is zero, instead of none.
            parts.append(self._soft_vectors(pack.soft_rows, soft_table))
        touch = self.language_model.model.touch_every_parameter
        if len(pack.vit.index) or touch:
            parts.append(self._vit_vectors(pack.vit))
        if len(pack.latent.index) or touch:
            parts.append(self._latent_vectors(pack.latent))
        return torch.cat(parts).index_select(0, pack.source)

    def encode_vit(self, patches: Tensor, *, position_ids: Tensor, seqlens: list[int]) -> Tensor:
        """Run the vision tower on packed images, without the connector.

        Args:
            patches: (N, P*P*channels) pixels in [-1, 1].
            position_ids: (N,) table rows.
            seqlens: Patches per image.

        Returns:
            (N, V); usable as `VitSegment.features`.
        """
        device = self.device
        plan = plan_images(seqlens).to(device)
        return self._tower(patches.to(device), position_ids.to(device), plan)

    def _tower(self, patches: Tensor, position_ids: Tensor, plan: AttentionPlan) -> Tensor:
        return cast(Tensor, self.vit_model(patches, position_ids=position_ids, plan=plan))

    def _soft_vectors(self, rows: Tensor, soft_table: Tensor | None) -> Tensor:
        if soft_table is None:
            raise ConfigError(f"the pack has {len(rows)} soft slots; give the soft_table they point into")
        if soft_table.ndim != 2 or soft_table.shape[1] != self.config.hidden_size:
            raise ConfigError(
                f"soft_table must have shape (rows, {self.config.hidden_size}), found {tuple(soft_table.shape)}"
            )
        if len(rows) and (int(rows.max()) >= soft_table.shape[0] or int(rows.min()) < 0):
            raise ConfigError(f"soft slots point to row {int(rows.max())}, the table has {soft_table.shape[0]} rows")
        # Gather before the cast: a vector used many times then sums its gradients in the table's own precision.
        return soft_table.to(self.device).index_select(0, rows).to(self.dtype)

    def _vit_vectors(self, vit: PackedVit) -> Tensor:
        features = []
        if vit.patches is not None:
            features.append(self._tower(vit.patches, vit.patch_position_ids, vit.plan))
        elif self.language_model.model.touch_every_parameter:
            features.append(
                self._tower(vit.position_ids.new_zeros(0, self.config.patch_dim), vit.position_ids[:0], vit.plan)
            )
        if vit.features is not None:
            features.append(vit.features.to(self.dtype))
        rows = torch.cat(features).index_select(0, vit.source)
        return cast(Tensor, self.connector(rows) + self.vit_pos_embed(vit.position_ids))

    def _latent_vectors(self, latent: PackedLatents) -> Tensor:
        times = self.time_embedder(latent.timesteps).index_select(0, latent.image)
        tokens = self.vae2llm(latent.entering().to(self.dtype))
        return cast(Tensor, tokens + times + self.latent_pos_embed(latent.position_ids))


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
