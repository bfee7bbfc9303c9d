"""What the packer hands to the model: tensors and index maps, no behaviour but moving between devices.

Samples lie one after the other ("sequence order"). The model computes in "memory order", where all tokens of the
understanding expert come first and those of the generation expert after them, so that each expert works on one
contiguous slice.
"""

import dataclasses
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from omnifarm.backbone.attention import AttentionPlan
from omnifarm.backbone.masks import AttentionMode


class _Movable:
    """Moves every field that can be moved."""

    __slots__ = ()

    def to(self, device: torch.device | str) -> Self:
        """Return a copy with all tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]
        moved = {
            name: value.to(device)
            for name, value in values.items()
            if isinstance(value, Tensor | AttentionPlan | _Movable)
        }
        return dataclasses.replace(self, **moved)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedVit(_Movable):
    """Images of the understanding path."""

    index: Tensor
    """(n_vit,) where patches stand in the sequence."""
    position_ids: Tensor
    """(n_vit,) table rows of the patches."""
    patches: Tensor | None
    """(n_encoded, P*P*channels) patches still to be encoded."""
    patch_position_ids: Tensor
    """(n_encoded,) table rows of `patches`."""
    features: Tensor | None
    """(n_kept, V) patches encoded earlier."""
    source: Tensor
    """(n_vit,) rows into the encoded patches followed by the kept ones."""
    plan: AttentionPlan
    """Attention inside the images of `patches`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedLatents(_Movable):
    """Images of the generation path."""

    index: Tensor
    """(n_latent,) where latent tokens stand in the sequence."""
    position_ids: Tensor
    """(n_latent,) table rows of the latent tokens."""
    clean: Tensor
    """(n_latent, p*p*Z) float latent tokens; already noised where a segment came with `timestep`."""
    noise: Tensor
    """(n_latent, p*p*Z) noise of training targets, zero elsewhere."""
    mix: Tensor
    """(n_latent, 1) weight of the noise in what enters the model: t of training targets, zero elsewhere."""
    timestep_logits: Tensor
    """(n_latent,) u of training targets, -inf elsewhere."""
    timesteps: Tensor
    """(n_images,) time of every latent image."""
    image: Tensor
    """(n_latent,) the image of each token, an index into `timesteps`."""

    def entering(self) -> Tensor:
        """Return (n_latent, p*p*Z): (1 - t) * clean + t * noise, where t is zero for conditions (6.4)."""
        return (1 - self.mix) * self.clean + self.mix * self.noise


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs(_Movable):
    """The rows whose result is looked at: all that the last layer has to finish. O rows, understanding ones first."""

    rows: Tensor
    """(O,) memory rows, ascending."""
    und_rows: Tensor
    """The understanding rows among them."""
    gen_rows: Tensor
    """The generation rows among them, counted from the first generation row."""
    plan: AttentionPlan
    """Attention of these rows over all memory rows."""

    @property
    def by_expert(self) -> tuple[Tensor, Tensor]:
        """Rows within each expert's slice."""
        return self.und_rows, self.gen_rows


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedOutputs(Outputs):
    """The rows on which a loss is taken."""

    ce: Tensor
    """(n_ce,) for every label the output that predicts it."""
    mse: Tensor
    """(n_target,) for every latent token of a training target its output."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack(_Movable):
    """A packed batch. Indexes point into the sequence order unless a field says otherwise; L tokens in all."""

    sample_lens: tuple[int, ...]
    """Tokens per sample."""
    split_lens: tuple[int, ...]
    """Tokens per attention split, over all samples."""
    attn_modes: tuple[AttentionMode, ...]
    """Mode per split."""
    rope_after: tuple[int, ...]
    """Next rotary position of every sample."""
    position_ids: Tensor
    """(L,) rotary positions."""
    text_ids: Tensor
    """(n_text,) ids of all text and special tokens, placeholders of soft slots included."""
    text_index: Tensor
    """(n_text,) where they stand."""
    lookup_ids: Tensor
    """`text_ids` without the soft slots: what is read from the embedding table."""
    soft_index: Tensor
    """(n_soft,) where soft slots stand."""
    soft_rows: Tensor
    """(n_soft,) their rows in the soft table."""
    vit: PackedVit
    """Images of the understanding path."""
    latent: PackedLatents
    """Images of the generation path."""
    ce_index: Tensor
    """(n_ce,) tokens whose successor is to be predicted."""
    ce_labels: Tensor
    """(n_ce,) what is to be predicted."""
    ce_weights: Tensor
    """(n_ce,) 1/sqrt(tokens of the segment), 1 for end labels; used only by reweighted losses."""
    ce_sample: Tensor
    """(n_ce,) the sample of each."""
    mse_index: Tensor
    """(n_target,) latent tokens of training targets."""
    mse_rows: Tensor
    """(n_target,) their rows in `latent.clean`."""
    mse_sample: Tensor
    """(n_target,) the sample of each."""
    num_und: int
    """Tokens of the understanding expert: the first rows in memory order."""
    sequence_of: Tensor
    """(L,) for each memory row its place in the sequence."""
    memory_of: Tensor
    """(L,) for each place in the sequence its memory row."""
    source: Tensor
    """(L,) in memory order: rows into [looked-up text, soft, ViT, latent] vectors."""
    num_shared: int
    """Tokens that samples would have had besides, were equal prefixes not laid out once."""
    outputs: PackedOutputs
    """Rows with a loss."""
    plan: AttentionPlan
    """Attention over memory rows; keys are all samples' cached tokens, then the new ones in memory order."""

    @property
    def num_tokens(self) -> int:
        """Packed length L."""
        return self.position_ids.shape[0]
