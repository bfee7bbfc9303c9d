"""What a half-trained or finished miniature can do, on identities it has never met: figures and a contact sheet."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.flow import SamplingOptions, guide, schedule
from omnifarm.backbone.image_ops import to_uint8
from omnifarm.backbone.inference import Denoiser, empty_context, prefill
from omnifarm.backbone.latents import LatentCodec
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import LatentSegment, Segment, TextSegment, VitSegment, pack
from omnifarm.miniature.edits import removal_instruction
from omnifarm.miniature.facts import fact_turns, replays, unified_request
from omnifarm.miniature.pretrain import corpus
from omnifarm.miniature.pretrain.corpus import NAME, Group
from omnifarm.miniature.pretrain.sequences import LATENT_GRID, Introduction
from omnifarm.miniature.pretrain.tasks import Sampler, clean
from omnifarm.miniature.text import appearance_turns, caption, recognition_turn, scene_turns

KINDS = ("soft", "text", "ref")


@torch.no_grad()
def figures(model: Backbone, sampler: Sampler, *, soft_table: Tensor, num_groups: int = 60) -> dict[str, float]:
    """Return accuracies over held-out groups, each question asked alone after its introduction.

    Args:
        model: With `special_ids` set.
        sampler: Over held-out groups.
        soft_table: Vectors of the `soft` introductions.
        num_groups: How many groups to ask about.

    Returns:
        Teacher-forced share of answers that are right in every token: `recognition_KIND` (balanced), `looks_KIND`
        (appearance), `facts_KIND`, `replay_KIND`, `scene`, and `TOPIC` over a picture with nobody introduced.
    """
    asked: list[tuple[str, list[Segment]]] = []
    for index in range(num_groups):
        for kind in KINDS:
            asked += _questions(sampler, index, kind)
    soft_table = sampler.writer.superpositions.extended(soft_table)
    right: dict[str, list[bool]] = {}
    for first in range(0, len(asked), 64):
        part = asked[first : first + 64]
        packed = pack([s for _, s in part], special_ids=model.require_special_ids(), config=model.config)
        out = model.train_forward(packed, soft_table=soft_table)
        hit = out.logits.argmax(dim=-1) == packed.ce_labels
        for number, (name, _) in enumerate(part):
            right.setdefault(name, []).append(bool(hit[out.ce_sample == number].all()))
    result = {name: sum(values) / len(values) for name, values in right.items()}
    for kind in KINDS:
        result[f"recognition_{kind}"] = (result.pop(f"yes_{kind}") + result.pop(f"no_{kind}")) / 2
    return dict(sorted(result.items()))


def introduction(sampler: Sampler, index: int, kind: str, *, facts: bool = False, gen: bool = False) -> Introduction:
    """Introduce subject A of a group in one way, photo `FIRST` as the reference."""
    weights = {"soft": (1.0, 0.0, 0.0), "text": (0.0, 1.0, 0.0), "ref": (0.0, 0.0, 1.0)}[kind]
    return sampler.introduce(index, weights=weights, view=corpus.FIRST, facts=facts, gen=gen)


def _questions(sampler: Sampler, index: int, kind: str) -> list[tuple[str, list[Segment]]]:
    group = sampler.groups[index]
    peers = [i for i in sampler.by_noun[group.first.noun] if i != index] or [(index + 1) % len(sampler.groups)]
    bare = introduction(sampler, index, kind)
    told = introduction(sampler, index, kind, facts=True)
    asked: list[tuple[str, list[Segment]]] = []
    for name, present, segment in (
        (f"yes_{kind}", True, sampler.vit(index, corpus.SECOND)),
        (f"no_{kind}", False, sampler.vit(peers[0], corpus.SECOND)),
    ):
        turn = recognition_turn(NAME, present=present)
        asked.append((name, [*bare.segments, segment, *sampler.turn(turn, bare)]))
    for turn in appearance_turns(group.first, NAME):
        asked.append((f"looks_{kind}", [*bare.segments, *sampler.turn(turn, bare)]))
    for turn in fact_turns(group.facts, NAME):
        asked.append((f"facts_{kind}", [*told.segments, *sampler.turn(turn, told)]))
    replay = replays(group.facts, NAME)[index % 3]
    parts = [sampler.writer.read(unified_request(replay.request), told), sampler.writer.write(replay.target, told)]
    asked.append((f"replay_{kind}", [*told.segments, *parts]))
    if kind == "soft":
        scene = group.scenes[corpus.SECOND]
        for turn in scene_turns(scene, 0, f"the {group.first.noun}"):
            asked.append(("scene", [sampler.vit(index, corpus.SECOND), *sampler.turn(turn, None)]))
        for turn in appearance_turns(group.first, f"the {group.first.noun}"):
            asked.append((turn.topic, [sampler.vit(index, corpus.SECOND), *sampler.turn(turn, None)]))
    return asked


@torch.no_grad()
def draw(
    model: Backbone,
    samples: Sequence[Sequence[Segment]],
    *,
    options: SamplingOptions,
    soft_table: Tensor,
    seed: int = 0,
) -> list[Tensor]:
    """Draw one picture behind every sample, all in the same passes.

    Without text means without every text segment (and without photos where no edit is asked), as in training.

    Args:
        model: With `special_ids` set.
        samples: Conditions.
        options: Guidance; the image scale is not used.
        soft_table: Vectors of `soft` introductions.
        seed: Of the noise.

    Returns:
        Latent tokens (36, 64) per sample.
    """
    options = replace(options, cfg_img_scale=1.0)
    blank = empty_context(model)
    main = prefill(model, [blank] * len(samples), samples, soft_table=soft_table).contexts
    bare = [[s for s in sample if not isinstance(s, TextSegment)] if _is_edit(sample) else [] for sample in samples]
    without = prefill(model, [blank] * len(samples), bare, soft_table=soft_table).contexts if any(bare) else None
    guided = Denoiser(model, [*main, *(without or [blank] * len(samples))], grids=[LATENT_GRID] * 2 * len(samples))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(LATENT_GRID[0] * LATENT_GRID[1], model.config.latent_dim, generator=generator)
    x = [noise.clone() for _ in samples]
    times = schedule(options.num_timesteps, shift=options.timestep_shift).tolist()
    for t, after in itertools.pairwise(times):
        v = guided([*x, *x], [t] * 2 * len(x))
        for i in range(len(x)):
            velocity = guide(v[i].float(), v_text=v[len(x) + i].float(), v_img=None, options=options, t=t)
            x[i] = x[i] - velocity * (t - after)
    return x


def _is_edit(sample: Sequence[Segment]) -> bool:
    last = sample[-1]
    pictures = [s for s in sample[:-1] if isinstance(s, LatentSegment | VitSegment)]
    return bool(pictures) and isinstance(last, TextSegment) and sample[-2] is pictures[-1]


def contact_sheet(
    model: Backbone,
    sampler: Sampler,
    *,
    codec: LatentCodec,
    pictures: np.ndarray,
    soft_table: Tensor,
    options: SamplingOptions,
    indices: Sequence[int],
) -> Image.Image:
    """Return a sheet, one row a held-out group.

    Columns: photo, its codec round trip, drawn from `soft`, `text` and `ref` introductions, edit source, removal
    drawn, removal truth.
    """
    wanted: list[list[Segment]] = []
    for index in indices:
        group = sampler.groups[index]
        for kind in KINDS:
            who = introduction(sampler, index, kind, gen=True)
            text = caption(group.scenes[corpus.SECOND], [NAME])
            wanted.append([*who.segments, sampler.writer.read(text, who)])
        who = introduction(sampler, index, "soft")
        text = removal_instruction(NAME, group.first.noun)
        source = [clean(sampler.latent(index, corpus.BOTH)), sampler.vit(index, corpus.BOTH)]
        wanted.append([*who.segments, *source, sampler.writer.read(text, who)])
    soft_table = sampler.writer.superpositions.extended(soft_table)
    drawn = draw(model, wanted, options=options, soft_table=soft_table)
    rows = []
    for number, index in enumerate(indices):
        soft, text_, ref, removed = (
            _picture(codec, tokens) for tokens in drawn[len(KINDS) * number + number : len(KINDS) * number + number + 4]
        )
        again = _picture(codec, sampler.latent(index, corpus.SECOND))
        photo, both, gone = (pictures[index, v] for v in (corpus.SECOND, corpus.BOTH, corpus.BOTH_GONE))
        rows.append(np.concatenate([photo, again, soft, text_, ref, both, removed, gone], axis=1))
    return Image.fromarray(np.concatenate(rows))


def _picture(codec: LatentCodec, tokens: Tensor) -> np.ndarray:
    pixels = codec.decode(codec.from_tokens(tokens.float(), grid=LATENT_GRID))
    return np.asarray(to_uint8(pixels).numpy())


def subjects(groups: Sequence[Group]) -> list[str]:
    """Return the class of every group's subject, for captions of sheets."""
    return [group.first.noun for group in groups]
