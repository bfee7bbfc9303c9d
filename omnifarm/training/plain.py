"""The training loop one writes first: what the packed engine is measured against, and checked against.

One concept at a time; every sample, and every noised copy of a drawing, is a row of its own; rows are padded to the
longest; pictures go through the vision tower and the autoencoder whenever they are seen. The mathematics is the
engine's: the same rows, the same losses, the same optimizer.

Shapes: B rows, L longest row, D width, H heads, d head width, N tokens of all rows, R = B * L.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from omnifarm.backbone.image_ops import ImageTransform, latent_grid, patchify_vit, to_tensor, vit_patch_size
from omnifarm.backbone.masks import split_mask
from omnifarm.backbone.model import Backbone, TrainOutput
from omnifarm.backbone.packing import Pack, pack
from omnifarm.backbone.positions import rotary_tables, rotate
from omnifarm.backbone.segments import LatentSegment, Segment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.prepared import PreparedImage, PreparedImages
from omnifarm.concept.samples import ConceptSample
from omnifarm.concept.spec import ConceptImage, ConceptSpec
from omnifarm.training.lane import Lane, SampleSource, StepLosses
from omnifarm.training.objective import lane_loss
from omnifarm.training.step import step_losses

LayerFunction = Callable[..., Tensor]


def plain_step(lane: Lane, *, backbone: LoadedBackbone, layer: LayerFunction | None = None) -> None:
    """Advance one lane by one optimizer step.

    Args:
        lane: Changed in place.
        backbone: The frozen backbone, in any precision.
        layer: `plain_layer`, or a compiled version of it.
    """
    samples = lane.source.draw(lane.step)
    rows = [list(sample.segments) for sample in samples]
    packed = pack(rows, special_ids=backbone.special_ids, config=backbone.config)
    output = plain_forward(backbone.model, packed, soft_table=lane.soft, layer=layer or plain_layer)
    tasks = [sample.task for sample in samples]
    loss = lane_loss(output, tasks=tasks, samples=range(len(samples)), recipe=lane.recipe)
    (grad_CD,) = torch.autograd.grad(loss.total, [lane.soft])
    losses: StepLosses = step_losses(loss, grad_CD, num_gen=lane.recipe.num_gen)
    lane.apply(grad_CD, losses=losses)


def plain_forward(model: Backbone, packed: Pack, *, soft_table: Tensor, layer: LayerFunction) -> TrainOutput:
    """Run the language model on padded rows.

    Args:
        model: The backbone.
        packed: Rows without shared prefixes; only its index maps are used, never its attention plan.
        soft_table: (C, D) learned vectors.
        layer: `plain_layer`, or a compiled version of it.
    """
    lens = torch.tensor(packed.sample_lens)
    longest = int(lens.max())
    row_of = torch.repeat_interleave(torch.arange(len(lens)), lens)
    place_of = torch.arange(packed.num_tokens) - (lens.cumsum(0) - lens)[row_of]
    padded_of = row_of * longest + place_of
    is_gen = torch.zeros(len(lens) * longest, dtype=torch.bool)
    is_gen[padded_of[packed.sequence_of[packed.num_und :]]] = True
    positions = torch.zeros(len(is_gen), dtype=torch.long)
    positions[padded_of] = packed.position_ids
    core = model.language_model.model
    hidden_ND = model.embed(packed, soft_table=soft_table).index_select(0, packed.memory_of)
    hidden_RD = hidden_ND.new_zeros(len(is_gen), hidden_ND.shape[1]).index_copy(0, padded_of, hidden_ND)
    cos, sin = rotary_tables(positions, head_dim=core.head_dim, theta=core.theta, dtype=hidden_RD.dtype)
    mask = _padded_mask(packed, longest)
    experts = (torch.nonzero(~is_gen)[:, 0], torch.nonzero(is_gen)[:, 0])
    for one in core.layers:
        hidden_RD = layer(one, hidden_RD, cos, sin, experts, mask)
    normed = _routed(hidden_RD, experts, core.norm, core.norm_moe_gen)
    in_memory = normed.index_select(0, padded_of).index_select(0, packed.sequence_of)
    return model.losses(packed, in_memory.index_select(0, packed.outputs.rows))


def plain_layer(
    layer: Any, hidden_RD: Tensor, cos_Rd: Tensor, sin_Rd: Tensor, experts: tuple[Tensor, Tensor], mask: Tensor
) -> Tensor:
    """Run one layer on padded rows.

    Args:
        layer: A `MoTLayer`; its parameters are used, not its forward.
        hidden_RD: Vectors of all rows, padding included.
        cos_Rd: Rotary cosines.
        sin_Rd: Rotary sines.
        experts: Places of the understanding tokens (padding among them) and of the generation tokens.
        mask: (B, 1, L, L) bool, true where a query sees a key.
    """
    attention = layer.self_attn
    batch, longest, head_dim = mask.shape[0], mask.shape[2], attention.head_dim

    def routed(x: Tensor, holder: Any, name: str) -> Tensor:
        return _routed(x, experts, getattr(holder, name), getattr(holder, f"{name}_moe_gen"))

    def heads(x_RW: Tensor) -> Tensor:
        return x_RW.reshape(*x_RW.shape[:-1], -1, head_dim)

    def batched(x_RHd: Tensor) -> Tensor:
        return x_RHd.reshape(batch, longest, *x_RHd.shape[1:]).transpose(1, 2)

    normed = routed(hidden_RD, layer, "input_layernorm")
    query = routed(heads(routed(normed, attention, "q_proj")), attention, "q_norm")
    key = routed(heads(routed(normed, attention, "k_proj")), attention, "k_norm")
    value = heads(routed(normed, attention, "v_proj"))
    query, key = rotate(query, cos_Nd=cos_Rd, sin_Nd=sin_Rd), rotate(key, cos_Nd=cos_Rd, sin_Nd=sin_Rd)
    mixed = F.scaled_dot_product_attention(
        batched(query), batched(key), batched(value), attn_mask=mask, enable_gqa=query.shape[1] != key.shape[1]
    )
    hidden_RD = hidden_RD + routed(mixed.transpose(1, 2).flatten(0, 1).flatten(1), attention, "o_proj")
    return hidden_RD + routed(routed(hidden_RD, layer, "post_attention_layernorm"), layer, "mlp")


def _routed(x: Tensor, experts: tuple[Tensor, Tensor], und: Any, gen: Any) -> Tensor:
    """Send every token through its expert's module."""
    from_und, from_gen = und(x[experts[0]]), gen(x[experts[1]])
    out: Tensor = from_und.new_zeros(len(x), *from_und.shape[1:])
    return out.index_copy(0, experts[0], from_und).index_copy(0, experts[1], from_gen)


def _padded_mask(packed: Pack, longest: int) -> Tensor:
    """Return (B, 1, L, L); rows of padding see the first token, because a row that sees none has no softmax."""
    mask = torch.zeros(len(packed.sample_lens), 1, longest, longest, dtype=torch.bool)
    mask[..., 0] = True
    split = 0
    for row, length in enumerate(packed.sample_lens):
        first, total = split, 0
        while total < length:
            total += packed.split_lens[split]
            split += 1
        own = split_mask(packed.split_lens[first:split], modes=packed.attn_modes[first:split])
        mask[row, 0, :length, :length] = own
    return mask


class OneRowPerCopy:
    """A source whose every noised copy of a drawing is a sample of its own, its conditions repeated.

    Args:
        source: The samples, several copies to one condition.
    """

    def __init__(self, source: SampleSource) -> None:
        self._source = source

    def draw(self, step: int) -> Sequence[ConceptSample]:
        """Return the samples of a step, one target each."""
        return [ConceptSample(task=one.task, segments=row) for one in self._source.draw(step) for row in _rows(one)]


def _rows(sample: ConceptSample) -> list[list[Segment]]:
    conditions = [part for part in sample.segments if not _is_target(part)]
    targets = [part for part in sample.segments if _is_target(part)]
    return [[*conditions, target] for target in targets] if targets else [conditions]


def _is_target(segment: Segment) -> bool:
    return isinstance(segment, LatentSegment) and segment.is_target


class UncachedImages(PreparedImages):
    """Pictures that are read, and encoded as far as they are used, every time."""

    def __init__(self, backbone: LoadedBackbone) -> None:
        super().__init__(backbone)
        self._uncached = backbone

    def get(self, spec: ConceptSpec, image: ConceptImage) -> PreparedImage:
        """Return a picture that encodes itself on use."""
        return cast(PreparedImage, _FreshImage(self._uncached, spec.open_image(image)))


class _FreshImage:
    """What `PreparedImage` offers, computed when asked for; patches are left to the training forward's own tower."""

    def __init__(self, backbone: LoadedBackbone, image: Image.Image) -> None:
        self._backbone = backbone
        self._resized = ImageTransform(config=backbone.config.vae_transform).resize(image)

    @cached_property
    def _posterior(self) -> tuple[Tensor, Tensor]:
        codec, config = self._backbone.autoencoder, self._backbone.config.autoencoder
        with torch.no_grad():
            mean, logvar = codec.moments(to_tensor(self._resized))
        scaled = config.scale_factor * (mean - config.shift_factor)
        return codec.to_tokens(scaled), codec.to_tokens(config.scale_factor * torch.exp(0.5 * logvar))

    @property
    def mean(self) -> Tensor:
        return self._posterior[0]

    def _latents(self, posterior_noise: Tensor | None) -> Tensor:
        mean, std = self._posterior
        return mean if posterior_noise is None else mean + std * posterior_noise

    def _grid(self) -> tuple[int, int]:
        return latent_grid((self._resized.height, self._resized.width), config=self._backbone.config)

    def vit(self, *, dropped: bool = False) -> VitSegment:
        config = self._backbone.config
        pixels = ImageTransform(config=config.vit_transform).pixels(self._resized)
        patches, grid = patchify_vit(pixels, patch=vit_patch_size(config))
        return VitSegment(patches=patches, grid=grid, dropped=dropped)

    def clean(self, posterior_noise: Tensor | None = None, *, dropped: bool = False) -> LatentSegment:
        return LatentSegment(latents=self._latents(posterior_noise), grid=self._grid(), dropped=dropped)

    def target(self, *, timestep_logit: float, noise: Tensor, posterior_noise: Tensor | None = None) -> LatentSegment:
        return LatentSegment(
            latents=self._latents(posterior_noise), grid=self._grid(), timestep_logit=timestep_logit, noise=noise
        )
