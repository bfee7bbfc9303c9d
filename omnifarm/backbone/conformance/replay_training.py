"""Replays of the packed training forward: losses, gradients, packing structure."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from omnifarm.backbone.conformance.comparison import Group
from omnifarm.backbone.conformance.golden import Golden
from omnifarm.backbone.conformance.replay_cached import read
from omnifarm.backbone.inference import velocity
from omnifarm.backbone.masks import split_mask
from omnifarm.backbone.model import TrainOutput
from omnifarm.backbone.packed import Pack
from omnifarm.backbone.packing import pack
from omnifarm.backbone.segments import LatentSegment, Segment, TextSegment, VitSegment
from omnifarm.errors import WeightsError


def replay_training(golden: Golden, group: Group) -> None:
    """Understanding, drawing and editing in one pack, with gradients; the same edit through the cache."""
    images = group.param("images")
    latents = PaddedLatents(golden, [images["t2i"], images["edit_source"], images["edit_target"]])
    noise = latents.split(group.given("noise"))
    logits = group.param("timestep_logits")
    edit: list[Segment] = [latents.clean(1), golden.vit(images["edit_source"]), golden.text(group.param("edit"))]
    samples: list[list[Segment]] = [
        [
            golden.vit(images["und"]),
            golden.text(group.param("question")),
            golden.text(group.param("answer"), has_loss=True),
        ],
        [golden.text(group.param("caption")), latents.target(0, noise=noise[0], logit=logits[0])],
        [*edit, latents.target(2, noise=noise[2], logit=logits[1])],
    ]
    group.fact("timestep_shift", golden.config.timestep_shift)
    packed = pack(samples, special_ids=golden.tokenizer.special_ids, config=golden.config)
    compare_pack(group, packed, latents.grids)
    group.fact("split_lens", packed.split_lens)
    group.fact("attn_modes", packed.attn_modes)
    group.compare("padded_latent", latents.padded)
    group.compare("latent_clean_tokens", packed.latent.clean)
    group.compare("timesteps", target_times(packed))

    run = TrainingRun(golden, packed)
    run.compare(group)
    run.compare_text_gradients(group, prefix="grad_text_emb")
    _compare_weight_gradients(golden, group, packed)

    dropped = [_as_dropped(edit[0]), _as_dropped(edit[1]), edit[2], samples[2][3]]
    without_images = pack([dropped], special_ids=golden.tokenizer.special_ids, config=golden.config)
    group.fact("rope_start_of_text_when_images_dropped_in_training", int(without_images.position_ids[0]))

    alone = golden.clean(images["edit_source"])
    solo = golden.codec.encode(golden.latent_transform.pixels(golden.image(images["edit_source"])))
    group.compare("latent_edit_source_solo", solo[None])
    context = read(golden, [alone, edit[1], edit[2]])
    t = float(target_times(packed)[1])
    x_t = latents.noised(2, noise=noise[2], t=t)
    found = velocity(golden.model, context, x_t, t=t, grid=latents.grids[2])
    group.compare("infer_edit_v_solo_encode", found)


def replay_chain(golden: Golden, group: Group) -> None:
    """An edit chain whose first target must stay hidden from everything after it."""
    latents = PaddedLatents(golden, ["img0", "img3", "img3", "img2"])
    noise = latents.split(group.given("noise"))
    logits = group.param("timestep_logits")
    samples: list[list[Segment]] = [
        [golden.vit("img1"), golden.text(group.param("question")), golden.text(group.param("answer"), has_loss=True)],
        [
            latents.clean(0),
            golden.vit("img0"),
            golden.text(group.param("edit")),
            latents.target(1, noise=noise[1], logit=logits[0]),
            latents.clean(2),
            golden.vit("img3"),
            golden.text(group.param("caption")),
            latents.target(3, noise=noise[3], logit=logits[1]),
        ],
    ]
    group.fact("timestep_shift", golden.config.timestep_shift)
    packed = pack(samples, special_ids=golden.tokenizer.special_ids, config=golden.config)
    compare_pack(group, packed, latents.grids)
    group.compare("padded_latent", latents.padded)
    group.compare("latent_clean_tokens", packed.latent.clean)
    group.compare("timesteps", target_times(packed))
    TrainingRun(golden, packed).compare(group)


class PaddedLatents:
    """Latents of images encoded as one padded batch, as the official training does."""

    def __init__(self, golden: Golden, names: Sequence[str]) -> None:
        pixels = [golden.latent_transform.pixels(golden.image(name)) for name in names]
        self.grids = [golden.grid(image) for image in pixels]
        self.padded = golden.codec.encode_padded(pixels)
        side = golden.config.latent_patch_size
        self.tokens = [
            golden.codec.to_tokens(latent[:, : h * side, : w * side])
            for latent, (h, w) in zip(self.padded, self.grids, strict=True)
        ]

    def split(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Cut rows of all latent tokens into images."""
        return torch.split(rows, [len(tokens) for tokens in self.tokens])

    def clean(self, index: int) -> LatentSegment:
        """Return an image as a condition."""
        return LatentSegment(latents=self.tokens[index], grid=self.grids[index])

    def target(self, index: int, *, noise: Tensor, logit: float) -> LatentSegment:
        """Return an image as a training target."""
        return LatentSegment(
            latents=self.tokens[index], grid=self.grids[index], noise=noise, timestep_logit=float(logit)
        )

    def noised(self, index: int, *, noise: Tensor, t: float) -> Tensor:
        """Return (1 - t) * clean + t * noise."""
        return (1 - t) * self.tokens[index] + t * noise


class TrainingRun:
    """One training forward whose gradients with respect to the entering vectors can be asked for."""

    def __init__(self, golden: Golden, packed: Pack, *, soft_table: Tensor | None = None) -> None:
        self.packed, model = packed, golden.model
        with torch.no_grad():
            vectors = model.embed(packed, soft_table=soft_table)
        self.entering = vectors.requires_grad_()
        with torch.enable_grad():
            self.last_hidden = model.run(packed, self.entering).index_select(0, packed.memory_of)
            self.output: TrainOutput = model.losses(packed, model.run_outputs(packed, self.entering))
            self.loss_ce, self.loss_mse = reduced(self.output)
            self.loss_total = self.loss_ce + self.loss_mse

    def compare(self, group: Group, *, prefix: str = "") -> None:
        """Compare losses and states, whichever of them the group recorded."""
        output = self.output
        found = {
            "last_hidden": self.last_hidden,
            "ce": output.ce,
            "ce_logits": output.logits,
            "mse": output.mse,
            "v_pred": output.velocity,
            "loss_ce": self.loss_ce,
            "loss_mse": self.loss_mse,
        }
        for name, value in found.items():
            group.compare(prefix + name, value)
        group.compare("seq_in", self.entering[self.packed.memory_of])

    def compare_text_gradients(self, group: Group, *, prefix: str) -> None:
        """Compare gradients with respect to the vector of every text token."""
        rows = self.packed.memory_of[self.packed.text_index]
        for name, loss in self.losses().items():
            if group.expects(f"{prefix}_{name}"):
                (gradient,) = torch.autograd.grad(loss, self.entering, retain_graph=True)
                group.compare(f"{prefix}_{name}", gradient[rows])

    def losses(self) -> dict[str, Tensor]:
        """Return the losses gradients were recorded of."""
        return {"ce": self.loss_ce, "mse": self.loss_mse, "total": self.loss_total}


def reduced(output: TrainOutput) -> tuple[Tensor, Tensor]:
    """Return the two losses as the official code reduces them: per label, and per target token."""
    return output.ce.sum() / max(len(output.ce), 1), output.mse.mean(dim=-1).sum() / max(len(output.mse), 1)


def target_times(packed: Pack) -> Tensor:
    """Return the time of every training target, in order."""
    first = torch.zeros(len(packed.latent.timesteps), dtype=torch.long)
    first.scatter_(0, packed.latent.image.flip(0), torch.arange(len(packed.latent.image)).flip(0))
    return packed.latent.timesteps[packed.latent.timestep_logits[first] > float("-inf")]


def compare_pack(group: Group, packed: Pack, grids: Sequence[tuple[int, int]]) -> None:
    """Compare the structure of a pack with the recorded fields."""
    group.fact("sequence_length", packed.num_tokens)
    group.fact("sample_lens", packed.sample_lens)
    group.fact("patchified_vae_latent_shapes", grids)
    for name, value in pack_fields(packed).items():
        group.compare(f"pack_{name}", value)
    for index, mask in enumerate(sample_masks(packed)):
        group.compare(f"pack_mask_sample{index}", mask)


def pack_fields(packed: Pack) -> dict[str, Tensor]:
    """Return a pack's fields under their official names."""
    return {
        "packed_text_ids": packed.text_ids,
        "packed_text_indexes": packed.text_index,
        "packed_position_ids": packed.position_ids,
        "packed_vit_token_indexes": packed.vit.index,
        "packed_vae_token_indexes": packed.latent.index,
        "packed_vit_position_ids": packed.vit.position_ids,
        "packed_latent_position_ids": packed.latent.position_ids,
        "vit_token_seqlens": torch.tensor(_image_lengths(packed.vit.index), dtype=torch.long),
        "ce_loss_indexes": packed.ce_index,
        "packed_label_ids": packed.ce_labels,
        "ce_loss_weights": packed.ce_weights,
        "mse_loss_indexes": packed.mse_index,
        "packed_timesteps": packed.latent.timestep_logits,
    }


def sample_masks(packed: Pack) -> list[Tensor]:
    """Return the (L, L) mask of every sample, from the splits and, where they disagree, from the attention plan."""
    masks, split = [], 0
    for length in packed.sample_lens:
        end = split
        while sum(packed.split_lens[split:end]) < length:
            end += 1
        masks.append(split_mask(packed.split_lens[split:end], modes=packed.attn_modes[split:end]))
        split = end
    planned = _planned_masks(packed)
    return [mask if torch.equal(mask, other) else other for mask, other in zip(masks, planned, strict=True)]


def _planned_masks(packed: Pack) -> list[Tensor]:
    """Rebuild the masks from the plan that the model executes."""
    total = packed.num_tokens
    seen = torch.zeros(total, total, dtype=torch.bool)
    for group in packed.plan.groups:
        if group.query_rows is None or group.key_rows is None:
            raise WeightsError("a training plan must list its rows")
        for index, (query, key) in enumerate(zip(group.query_rows, group.key_rows, strict=True)):
            mask = torch.ones(len(query), len(key), dtype=torch.bool) if group.mask is None else group.mask[index, 0]
            block = torch.zeros(total, total, dtype=torch.bool)
            # Padding repeats row 0, so rows are merged by `or` and the padding's own rows are overwritten below.
            for row, sees in zip(query.tolist(), mask, strict=True):
                if not bool(block[row].any()):
                    block[row, key[sees]] = True
            seen |= block
    in_sequence = seen[packed.memory_of][:, packed.memory_of]
    edges = torch.tensor([0, *packed.sample_lens]).cumsum(0).tolist()
    return [in_sequence[a:b, a:b] for a, b in itertools.pairwise(edges)]


def _image_lengths(index: Tensor) -> list[int]:
    """Return the lengths of runs of consecutive places; images are separated by their frame tokens."""
    if not len(index):
        return []
    breaks = (torch.nonzero(index.diff() > 1)[:, 0] + 1).tolist()
    edges = [0, *breaks, len(index)]
    return [b - a for a, b in itertools.pairwise(edges)]


def _as_dropped(segment: Segment) -> Segment:
    return dataclasses.replace(segment, dropped=True)


def _compare_weight_gradients(golden: Golden, group: Group, packed: Pack) -> None:
    """Compare gradients of the total loss with respect to weights (`gradw:<name>`)."""
    wanted = {name.removeprefix("gradw:") for name in group.outputs if name.startswith("gradw:")}
    parameters = {name: value for name, value in golden.model.named_parameters() if name in wanted}
    before = {name: value.requires_grad for name, value in parameters.items()}
    try:
        for value in parameters.values():
            value.requires_grad_(True)
        with torch.enable_grad():
            total = sum(reduced(golden.model.train_forward(packed)), torch.zeros(()))
            gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    finally:
        for name, value in parameters.items():
            value.requires_grad_(before[name])
    for (name, value), gradient in zip(parameters.items(), gradients, strict=True):
        group.compare(f"gradw:{name}", torch.zeros_like(value) if gradient is None else gradient)


Plan = Sequence[Mapping[str, Any]]


def replay_packing(golden: Golden, group: Group) -> None:
    """Packing structure alone: dropout, chains, extra labels, video splits."""
    for case in group.param("cases"):
        name = str(case["name"])
        packed = pack([_planned_sample(golden, case)], special_ids=golden.tokenizer.special_ids, config=golden.config)
        found: dict[str, Any] = {
            **pack_fields(packed),
            "split_lens": packed.split_lens,
            "attn_modes": packed.attn_modes,
            "sequence_length": packed.num_tokens,
            "sample_lens": packed.sample_lens,
            "mask": ["".join("1" if seen else "0" for seen in row) for row in sample_masks(packed)[0].tolist()],
        }
        found["packed_timesteps"] = ["-inf" if u == float("-inf") else u for u in found["packed_timesteps"].tolist()]
        for field, expected in case.items():
            if field in ("name", "plan", "dropout"):
                continue
            if field not in found:
                group.same(f"{name}.{field}", None, expected="a comparison: not covered")
            elif field in ("packed_timesteps", "ce_loss_weights"):
                group.near(f"{name}.{field}", found[field], expected=expected)
            else:
                group.same(f"{name}.{field}", found[field], expected=expected)


_SOURCES = {
    "edit_chain": ("img0", "img0", "edit", "img3", "img3", "img3", "caption", "img2"),
    "edit": ("img0", "img0", "edit", "img3"),
    "und_two_turns": ("img1", "question", "answer", "question", "answer"),
    "video_loss": ("caption", "img2", "img2", "img2"),
    "video_condition": ("caption", "img2", "img2", "img2", "edit", "img3"),
}
"""What the entries of a plan are, by the beginning of the case's name (longest first)."""


def _planned_sample(golden: Golden, case: Mapping[str, Any]) -> list[Segment]:
    plan: Plan = case["plan"]
    kind = next((kind for kind in _SOURCES if str(case["name"]).startswith(kind)), None)
    if kind is None or len(plan) != len(_SOURCES[kind]):
        raise WeightsError(f"packing case {case['name']!r}: no sample is known for its plan of {len(plan)} segments")
    chance = case["dropout"]
    kinds = {"vae_image": "vae", "vit_image": "vit", "text": "text"}
    times = iter(case["packed_timesteps"])
    sample: list[Segment] = []
    for entry, source in zip(plan, _SOURCES[kind], strict=True):
        is_dropped = bool(entry["enable_cfg"]) and chance[kinds[entry["type"]]] == 1
        label = entry["special_token_label"] if entry["special_token_loss"] else None
        if entry["type"] == "text":
            ids = tuple(golden.tokenizer.encode(golden.prompt(source)))
            has_loss = bool(entry["loss"])
            sample.append(TextSegment(ids=ids, has_loss=has_loss, end_label=label, dropped=is_dropped))
        elif entry["type"] == "vit_image":
            vit = golden.vit(source)
            sample.append(VitSegment(patches=vit.patches, grid=vit.grid, end_label=label, dropped=is_dropped))
        else:
            pixels = golden.latent_transform.pixels(golden.image(source))
            grid = golden.grid(pixels)
            rows = torch.zeros(grid[0] * grid[1], golden.config.latent_dim)
            drawn = [next(times) for _ in range(len(rows))] if not is_dropped else [0.0]
            is_target = bool(entry["loss"])
            sample.append(
                LatentSegment(
                    latents=rows,
                    grid=grid,
                    timestep_logit=float(drawn[0]) if is_target else None,
                    noise=rows if is_target else None,
                    end_label=label,
                    dropped=is_dropped,
                    split_start=bool(entry.get("split_start", True)),
                    split_end=bool(entry.get("split_end", True)),
                    frame_delta=entry.get("frame_delta"),
                )
            )
    return sample
