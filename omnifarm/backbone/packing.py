"""From samples to one packed sequence: tokens, positions, routes, masks and labels.

Training and inference share this packer; inference packs one segment behind a cached context. All index maps the
model needs are made here, once per pack (BAGEL specification 3, 6).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from omnifarm.backbone.attention import AttentionPlan, Visibility, plan_attention, plan_single
from omnifarm.backbone.config import BackboneConfig, SpecialIds
from omnifarm.backbone.masks import AttentionMode, split_mask
from omnifarm.backbone.outputs import pack_outputs
from omnifarm.backbone.packed import Pack, PackedLatents, PackedVit
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.segments import Expert, LatentSegment, Segment, SoftSlot, TextSegment, VitSegment
from omnifarm.backbone.vit import plan_images
from omnifarm.errors import ConfigError

__all__ = [
    "Expert",
    "LatentSegment",
    "Pack",
    "Segment",
    "SoftSlot",
    "Start",
    "TextSegment",
    "VitSegment",
    "pack",
    "shifted",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a sample continues from: an empty start, or the state of a cached context."""

    kv_len: int = 0
    """Cached tokens, all of them visible to the new ones."""
    rope: int = 0
    """Rotary position of the first new token."""


def pack(
    samples: Sequence[Sequence[Segment]],
    *,
    special_ids: SpecialIds,
    config: BackboneConfig,
    starts: Sequence[Start] | None = None,
    share_prefixes: bool = False,
) -> Pack:
    """Lay samples out as one packed sequence on the CPU.

    Args:
        samples: Each a sequence of segments. A sample whose segments are all dropped contributes no token.
        special_ids: Frame tokens.
        config: Table sides, vocabulary size, training timestep shift.
        starts: For cached inference, what each sample continues from.
        share_prefixes: For training, lay out equal leading segments of samples once: a tree, in which a sample sees
            its own path. Losses and gradients are those of the samples apart; `sample_lens` then counts what a sample
            adds. Texts are equal by their ids and slots, pictures by being the same tensor.

    Returns:
        The pack.

    Raises:
        ConfigError: An id outside the vocabulary would be looked up, an image exceeds its position table, or a video
            split is left open.
    """
    if starts is not None and len(starts) != len(samples):
        raise ConfigError(f"starts must have one entry per sample ({len(samples)}), found {len(starts)}")
    if starts is not None and share_prefixes:
        raise ConfigError("prefixes are shared in training packs only; cached contexts share theirs already")
    layout = _Layout(special_ids=special_ids, config=config, share_prefixes=share_prefixes)
    for index, sample in enumerate(samples):
        layout.add_sample(index, sample, start=starts[index] if starts is not None else Start())
    return layout.finish(starts)


class _Layout:
    """Lists under construction, one call per segment."""

    def __init__(self, *, special_ids: SpecialIds, config: BackboneConfig, share_prefixes: bool) -> None:
        self.special_ids, self.config = special_ids, config
        self.share_prefixes = share_prefixes
        self.prefixes: dict[tuple[int, Hashable], _Prefix] = {}
        self.ancestors: list[list[range]] = []
        self.length = 0
        self.rope = 0
        self.sample = 0
        self.sample_lens: list[int] = []
        self.rope_after: list[int] = []
        self.split_lens: list[int] = []
        self.modes: list[AttentionMode] = []
        self.splits_of_sample: list[int] = []
        self.position_ids: list[int] = []
        self.text_ids: list[int] = []
        self.text_index: list[int] = []
        self.soft_index: list[int] = []
        self.soft_rows: list[int] = []
        self.gen_index: list[int] = []
        self.vit_index: list[int] = []
        self.vit: list[VitSegment] = []
        self.latent_index: list[int] = []
        self.latent: list[LatentSegment] = []
        self.ce: list[tuple[int, int, float, int]] = []
        self.mse: list[tuple[int, int, int]] = []

    def add_sample(self, index: int, sample: Sequence[Segment], *, start: Start) -> None:
        self.sample, self.rope = index, start.rope
        open_frames = 0
        first_token, first_split = self.length, len(self.split_lens)
        path: list[range] = []
        node, is_prefix = 0, self.share_prefixes
        for segment in sample:
            is_prefix = is_prefix and _is_shareable(segment)
            key = (node, _content(segment)) if is_prefix else None
            if key is not None and (known := self.prefixes.get(key)) is not None:
                node, self.rope = known.node, known.rope
                path.append(known.tokens)
                continue
            if segment.dropped:
                # Dropped images leave a gap of one position; dropped text leaves none (6.2).
                self.rope += 0 if isinstance(segment, TextSegment) else 1
                continue
            before = self.length
            is_frame = isinstance(segment, LatentSegment) and not (segment.split_start and segment.split_end)
            if open_frames and not (is_frame and not segment.split_start):  # type: ignore[union-attr]
                raise ConfigError("a video split is still open; its last frame must have split_end=True")
            if isinstance(segment, TextSegment):
                self.add_text(segment)
                mode: AttentionMode = "causal"
            elif isinstance(segment, VitSegment):
                self.add_vit(segment)
                mode = "full"
            else:
                self.add_latent(segment)
                # Frames with a delta are visible to later tokens even as targets: an official quirk (3).
                mode = "noise" if segment.is_noised and segment.frame_delta is None else "full"
            if open_frames:
                self.split_lens[-1] += self.length - before
            else:
                self.split_lens.append(self.length - before)
                self.modes.append(mode)
            open_frames = open_frames + 1 if is_frame and not segment.split_end else 0  # type: ignore[union-attr]
            if key is not None:
                node = len(self.prefixes) + 1
                self.prefixes[key] = _Prefix(node=node, tokens=range(before, self.length), rope=self.rope)
        self.ancestors.append(path)
        if open_frames:
            raise ConfigError("a video split is still open; its last frame must have split_end=True")
        self.sample_lens.append(self.length - first_token)
        self.rope_after.append(self.rope)
        self.splits_of_sample.append(len(self.split_lens) - first_split)

    def add_text(self, segment: TextSegment) -> None:
        first, count = self.length, len(segment.ids) + 2
        self.text_ids += (self.special_ids.im_start, *segment.ids, self.special_ids.im_end)
        self.text_index += range(first, first + count)
        self.position_ids += range(self.rope, self.rope + count)
        for slot in segment.soft:
            at = first + 1 + slot.offset
            self.soft_index.append(at)
            self.soft_rows.append(slot.row)
            if slot.expert == "gen":
                self.gen_index.append(at)
        if segment.has_loss:
            weight = 1.0 / (len(segment.ids) + 1) ** 0.5
            for place, label in enumerate((*segment.ids, self.special_ids.im_end)):
                self.ce.append((first + place, label, weight, self.sample))
        self.length, self.rope = self.length + count, self.rope + count
        self.add_end_label(segment.end_label)

    def add_vit(self, segment: VitSegment) -> None:
        self.vit_index += self.add_image(segment.grid)
        self.vit.append(segment)
        self.rope += 1
        self.add_end_label(segment.end_label)

    def add_latent(self, segment: LatentSegment) -> None:
        places = self.add_image(segment.grid)
        if segment.is_target:
            self.mse += [(at, len(self.latent_index) + row, self.sample) for row, at in enumerate(places)]
        self.latent_index += places
        self.gen_index += places
        self.latent.append(segment)
        if segment.frame_delta is not None:
            self.rope += segment.frame_delta
        elif not segment.is_noised:
            self.rope += 1
        self.add_end_label(segment.end_label)

    def add_image(self, grid: tuple[int, int]) -> range:
        count = grid[0] * grid[1]
        self.text_ids += (self.special_ids.vision_start, self.special_ids.vision_end)
        self.text_index += (self.length, self.length + count + 1)
        self.position_ids += [self.rope] * (count + 2)
        places = range(self.length + 1, self.length + 1 + count)
        self.length += count + 2
        return places

    def add_end_label(self, label: int | None) -> None:
        if label is not None:
            self.ce.append((self.length - 1, label, 1.0, self.sample))

    def finish(self, starts: Sequence[Start] | None) -> Pack:
        is_gen = torch.zeros(self.length, dtype=torch.bool)
        is_gen[_long(self.gen_index)] = True
        sequence_of = torch.cat((torch.nonzero(~is_gen)[:, 0], torch.nonzero(is_gen)[:, 0]))
        memory_of = torch.empty_like(sequence_of)
        memory_of[sequence_of] = torch.arange(self.length)

        text_ids, text_index = _long(self.text_ids), _long(self.text_index)
        is_soft = torch.zeros(self.length, dtype=torch.bool)
        is_soft[_long(self.soft_index)] = True
        looked_up = ~is_soft[text_index]
        lookup_ids = text_ids[looked_up]
        self.check_ids(lookup_ids)
        ordered = torch.cat(
            (text_index[looked_up], _long(self.soft_index), _long(self.vit_index), _long(self.latent_index))
        )
        source = torch.empty(self.length, dtype=torch.long)
        source[ordered] = torch.arange(self.length)

        ce = list(zip(*self.ce, strict=True)) or [(), (), (), ()]
        mse = list(zip(*self.mse, strict=True)) or [(), (), ()]
        ce_rows, mse_rows = memory_of[_long(ce[0])], memory_of[_long(mse[0])]
        num_und, sequences = self.length - int(is_gen.sum()), self.visibilities(memory_of, starts)
        return Pack(
            sample_lens=tuple(self.sample_lens),
            split_lens=tuple(self.split_lens),
            attn_modes=tuple(self.modes),
            rope_after=tuple(self.rope_after),
            position_ids=_long(self.position_ids),
            text_ids=text_ids,
            text_index=text_index,
            lookup_ids=lookup_ids,
            soft_index=_long(self.soft_index),
            soft_rows=_long(self.soft_rows),
            vit=self.finish_vit(),
            latent=self.finish_latent(),
            ce_index=_long(ce[0]),
            ce_labels=_long(ce[1]),
            ce_weights=torch.tensor(ce[2], dtype=torch.float32),
            ce_sample=_long(ce[3]),
            mse_index=_long(mse[0]),
            mse_rows=_long(mse[1]),
            mse_sample=_long(mse[2]),
            num_und=num_und,
            sequence_of=sequence_of,
            memory_of=memory_of,
            source=source[sequence_of],
            num_shared=sum(len(span) for path in self.ancestors for span in path),
            outputs=pack_outputs(ce_rows, mse_rows, num_und=num_und, sequences=sequences),
            plan=self.plan(sequence_of, sequences, starts),
        )

    def finish_vit(self) -> PackedVit:
        ids = [self.grid_ids(segment) for segment in self.vit]
        encoded = [index for index, segment in enumerate(self.vit) if segment.features is None]
        kept = [index for index, segment in enumerate(self.vit) if segment.features is not None]
        lens = [len(image) for image in ids]
        # Rows lie encoded images first, kept ones after; `source` brings them back into the order of the sequence.
        start, rows = 0, [torch.empty(0, dtype=torch.long)] * len(ids)
        for index in (*encoded, *kept):
            rows[index] = torch.arange(start, start + lens[index])
            start += lens[index]
        patches = [patch for index in encoded if (patch := self.vit[index].patches) is not None]
        features = [feature for index in kept if (feature := self.vit[index].features) is not None]
        return PackedVit(
            index=_long(self.vit_index),
            position_ids=_cat(ids),
            patches=torch.cat(patches) if patches else None,
            patch_position_ids=_cat([ids[index] for index in encoded]),
            features=torch.cat(features) if features else None,
            source=_cat(rows),
            plan=plan_images([lens[index] for index in encoded]),
        )

    def finish_latent(self) -> PackedLatents:
        side, width = self.config.max_latent_size, self.config.latent_dim
        interpolate = self.config.interpolate_pos
        counts = torch.tensor([segment.latents.shape[0] for segment in self.latent], dtype=torch.long)
        logits, times, mix = [], [], []
        for segment in self.latent:
            if segment.latents.shape[1] != width:
                raise ConfigError(f"latent tokens must have {width} numbers, found {segment.latents.shape[1]}")
            u = segment.timestep_logit
            logits.append(float("-inf") if u is None else u)
            mix.append(0.0 if u is None else shifted(_sigmoid(u), shift=self.config.timestep_shift))
            times.append(mix[-1] if segment.timestep is None else segment.timestep)
        clean = torch.cat([segment.latents for segment in self.latent]) if self.latent else torch.zeros(0, width)
        noises = [torch.zeros_like(s.latents) if s.noise is None else s.noise for s in self.latent]
        image = torch.repeat_interleave(torch.arange(len(self.latent)), counts)
        return PackedLatents(
            index=_long(self.latent_index),
            position_ids=_cat([grid_position_ids(s.grid, side=side, interpolate=interpolate) for s in self.latent]),
            clean=clean,
            noise=torch.cat(noises) if noises else clean,
            mix=torch.tensor(mix, dtype=clean.dtype)[image][:, None].to(clean.device),
            timestep_logits=torch.tensor(logits)[image],
            timesteps=torch.tensor(times),
            image=image,
        )

    def grid_ids(self, segment: VitSegment) -> Tensor:
        config = self.config
        ids = grid_position_ids(segment.grid, side=config.vit_max_patches_per_side, interpolate=config.interpolate_pos)
        if int(ids.max()) >= config.vit_position_rows:
            raise ConfigError(
                f"image grid {segment.grid} needs row {int(ids.max())} of the vision tower's position table, which has "
                f"{config.vit_position_rows}; vit_max_patches_per_side and the vit image_size disagree"
            )
        return ids

    def check_ids(self, ids: Tensor) -> None:
        limit = int(self.config.llm.vocab_size)
        bad = ids[(ids < 0) | (ids >= limit)]
        if len(bad):
            raise ConfigError(
                f"token ids must lie in [0, {limit}), the rows of the embedding table; found {sorted(set(bad.tolist()))}. "
                "The tokenizer has more tokens than the checkpoint"
            )

    def visibilities(self, memory_of: Tensor, starts: Sequence[Start] | None) -> list[Visibility]:
        pasts = [0] * len(self.sample_lens) if starts is None else [start.kv_len for start in starts]
        sequences: list[Visibility] = []
        token = split = past = 0
        laid_out = zip(self.sample_lens, self.splits_of_sample, pasts, self.ancestors, strict=True)
        for length, num_splits, kv_len, path in laid_out:
            span = slice(split, split + num_splits)
            mask = split_mask(self.split_lens[span], modes=self.modes[span])
            mask = torch.cat((torch.ones(length, kv_len, dtype=torch.bool), mask), dim=1)
            rows = memory_of[token : token + length]
            above = [memory_of[span.start : span.stop] for span in path]
            keys = torch.cat((*above, torch.arange(past, past + kv_len), sum(pasts) + rows))
            mask = torch.cat((torch.ones(length, len(keys) - kv_len - length, dtype=torch.bool), mask), dim=1)
            sequences.append(Visibility(query_rows=rows, key_rows=keys, mask=mask))
            token, split, past = token + length, split + num_splits, past + kv_len
        return sequences

    def plan(
        self, sequence_of: Tensor, sequences: Sequence[Visibility], starts: Sequence[Start] | None
    ) -> AttentionPlan:
        if starts is not None and len(sequences) == 1:
            # One sequence in memory order needs no gathers, only its mask in that order.
            past = starts[0].kv_len
            columns = torch.cat((torch.arange(past), past + sequence_of))
            mask = sequences[0].mask[sequence_of][:, columns]  # type: ignore[index]
            return plan_single(None if bool(mask.all()) else mask)
        return plan_attention(sequences, num_queries=self.length)


class _Prefix(NamedTuple):
    """A node of the tree of shared prefixes: a segment behind its ancestors."""

    node: int
    tokens: range
    rope: int


def _is_shareable(segment: Segment) -> bool:
    """Say whether a sample may still be sharing its prefix behind this segment: it has no loss, noise or gap."""
    if segment.end_label is not None:
        return False
    if isinstance(segment, TextSegment):
        return not segment.has_loss
    is_whole = isinstance(segment, VitSegment) or (segment.split_start and segment.split_end and not segment.is_noised)
    return is_whole and not segment.dropped


def _content(segment: Segment) -> Hashable:
    """Return what makes two shareable segments the same."""
    if isinstance(segment, TextSegment):
        return (segment.dropped, segment.ids, segment.soft)
    if isinstance(segment, VitSegment):
        return (segment.grid, id(segment.patches if segment.features is None else segment.features))
    return (segment.grid, id(segment.latents))


def shifted(t: float, *, shift: float) -> float:
    """Return shift*t / (1 + (shift-1)*t) (6.4): above 1 it moves time towards noise."""
    return shift * t / (1 + (shift - 1) * t)


def _sigmoid(u: float) -> float:
    return float(torch.sigmoid(torch.tensor(u, dtype=torch.float64)))


def _long(values: Sequence[int]) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def _cat(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.empty(0, dtype=torch.long)
