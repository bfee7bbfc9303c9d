"""Cached inference: read segments into contexts, decode text, evaluate velocities (BAGEL specification 7).

Every function leaves the contexts it is given untouched. Reading a segment is packing it behind a context, so
training and inference share positions, routes and masks by construction.

Shape letters: B contexts, N tokens of a pass, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from omnifarm.backbone.attention import AttentionGroup, AttentionPlan, plan_single
from omnifarm.backbone.kv_cache import Context, FixedStore, GrowingStore
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import LatentSegment, Segment, Start, TextSegment, VitSegment, pack
from omnifarm.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Prefilled:
    """Result of reading segments."""

    contexts: list[Context]
    """One per context given, with its segments behind it."""
    hidden: Tensor
    """(N, D) after the final norms, samples one after the other."""
    entering: Tensor
    """(N, D) vectors that entered the language model, in the same order."""


def empty_context(model: Backbone) -> Context:
    """Return a context that has read nothing."""
    llm = model.config.llm
    shape = (0, int(llm.num_key_value_heads or llm.num_attention_heads), model.config.head_dim)
    layers = range(llm.num_hidden_layers)
    return Context(
        keys=tuple(torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers),
        values=tuple(torch.zeros(shape, dtype=model.dtype, device=model.device) for _ in layers),
        rope=0,
    )


def add_text(model: Backbone, context: Context, segment: TextSegment, *, soft_table: Tensor | None = None) -> Context:
    """Return the context with a text segment, its frame included, behind it."""
    return prefill(model, [context], [[segment]], soft_table=soft_table).contexts[0]


def add_vit(model: Backbone, context: Context, segment: VitSegment) -> Context:
    """Return the context with an image for understanding behind it."""
    return prefill(model, [context], [[segment]]).contexts[0]


def add_latent(model: Backbone, context: Context, segment: LatentSegment) -> Context:
    """Return the context with a clean latent image behind it.

    Raises:
        ConfigError: The segment carries noise; noised images are never cached.
    """
    return prefill(model, [context], [[segment]]).contexts[0]


@torch.no_grad()
def prefill(
    model: Backbone,
    contexts: Sequence[Context],
    samples: Sequence[Sequence[Segment]],
    *,
    soft_table: Tensor | None = None,
) -> Prefilled:
    """Read segments into several contexts in one pass.

    Args:
        model: With `special_ids` set.
        contexts: What each sample continues.
        samples: Segments per context; clean ones only.
        soft_table: (R, D) table of all soft slots in `samples`.

    Returns:
        New contexts and the hidden states.

    Raises:
        ConfigError: A segment carries noise, or the pack cannot be made.
    """
    for sample in samples:
        if any(isinstance(segment, LatentSegment) and segment.is_noised for segment in sample):
            raise ConfigError("only clean latents can be read into a context; use `velocity` for noised ones")
    packed = pack(
        samples, special_ids=model.require_special_ids(), config=model.config, starts=[_start(c) for c in contexts]
    ).to(model.device)
    store = GrowingStore(contexts)
    entering = model.embed(packed, soft_table=soft_table)
    hidden = model.run(packed, entering, store=store)
    extended, token = [], 0
    for index, (length, rope) in enumerate(zip(packed.sample_lens, packed.rope_after, strict=True)):
        extended.append(store.extended(index, rows=packed.memory_of[token : token + length], rope=rope))
        token += length
    return Prefilled(contexts=extended, hidden=hidden[packed.memory_of], entering=entering[packed.memory_of])


@torch.no_grad()
def feed_ids(model: Backbone, context: Context, ids: Sequence[int]) -> tuple[Context, Tensor]:
    """Feed ids as they are, without a frame, in one causal pass (teacher forcing).

    Args:
        model: The backbone.
        context: What they continue.
        ids: At least one id of the vocabulary.

    Returns:
        The context with them behind it, and their logits (N, V).
    """
    count, past = len(ids), context.kv_len
    mask = torch.ones(count, past + count, dtype=torch.bool).tril(diagonal=past)
    plan = plan_single(None if count == 1 else mask).to(model.device)
    store = GrowingStore([context])
    positions = torch.arange(context.rope, context.rope + count, device=model.device)
    language_model = model.language_model
    hidden = language_model.model(
        language_model.model.embed_tokens(torch.tensor(ids, device=model.device)),
        num_und=count,
        positions=positions,
        plan=plan,
        store=store,
    )
    rows = torch.arange(count, device=model.device)
    return store.extended(0, rows=rows, rope=context.rope + count), language_model.lm_head(hidden)


def generate_text(
    model: Backbone,
    context: Context,
    *,
    max_tokens: int,
    temperature: float | None = None,
    generator: torch.Generator | None = None,
    end_id: int | None = None,
) -> list[int]:
    """Decode one text; see `generate_texts`."""
    return generate_texts(
        model, [context], max_tokens=max_tokens, temperature=temperature, generators=[generator], end_id=end_id
    )[0]


@torch.no_grad()
def generate_texts(
    model: Backbone,
    contexts: Sequence[Context],
    *,
    max_tokens: int,
    temperature: float | None = None,
    generators: Sequence[torch.Generator | None] | None = None,
    end_id: int | None = None,
) -> list[list[int]]:
    """Decode one text per context, all in the same passes.

    Args:
        model: With `special_ids` set.
        contexts: What has been read so far; untouched.
        max_tokens: Tokens fed at most, the start token included; at least 1.
        temperature: None for the likeliest token, else above 0: draw from softmax(logits / temperature).
        generators: One CPU generator per context, for draws.
        end_id: Token that ends a text; None for the end token of text segments.

    Returns:
        Per context the ids that were fed: they begin with the start token and never hold the end token; the last
        prediction is lost when `max_tokens` is reached (7.1).

    Raises:
        ConfigError: `max_tokens` or `temperature` is out of range.
    """
    if max_tokens < 1 or (temperature is not None and temperature <= 0):
        raise ConfigError(f"max_tokens must be at least 1, temperature above 0; found {max_tokens}, {temperature}")
    special_ids = model.require_special_ids()
    end = special_ids.im_end if end_id is None else end_id
    language_model, device = model.language_model, model.device
    chosen_generators = [None] * len(contexts) if generators is None else list(generators)
    store = FixedStore(contexts, room=max_tokens)
    lens = torch.tensor([context.kv_len for context in contexts])
    ropes = torch.tensor([context.rope for context in contexts], device=device)
    starts = torch.tensor(store.starts)
    fed: list[list[int]] = [[] for _ in contexts]
    is_done = [False] * len(contexts)
    current = [special_ids.im_start] * len(contexts)
    for step in range(max_tokens):
        for ids, token, done in zip(fed, current, is_done, strict=True):
            if not done:
                ids.append(token)
        store.rows = (starts + lens + step).to(device)
        plan = _decode_plan(starts, lens + step + 1).to(device)
        if len(contexts) == 1:
            store.visible = int(lens[0]) + step + 1
        hidden = language_model.model(
            language_model.model.embed_tokens(torch.tensor(current, device=device)),
            num_und=len(contexts),
            positions=ropes + step,
            plan=plan,
            store=store,
        )
        logits = language_model.lm_head(hidden).float()
        if temperature is None:
            current = logits.argmax(dim=-1).tolist()
        else:
            weights = torch.softmax(logits / temperature, dim=-1).cpu()
            current = [
                int(torch.multinomial(row, 1, generator=generator))
                for row, generator in zip(weights, chosen_generators, strict=True)
            ]
        is_done = [done or token == end for done, token in zip(is_done, current, strict=True)]
        if all(is_done):
            break
    return fed


class Denoiser:
    """Velocities of images of fixed sizes behind fixed contexts, one pass per step for all of them.

    Args:
        model: With `special_ids` set.
        contexts: One per image; branches of one image are several contexts with the same image.
        grids: (rows, columns) of latent tokens, one per context.
    """

    def __init__(self, model: Backbone, contexts: Sequence[Context], *, grids: Sequence[tuple[int, int]]) -> None:
        self.model = model
        width = model.config.latent_dim
        blank = [
            [LatentSegment(latents=torch.zeros(rows * columns, width), grid=(rows, columns), timestep=1.0)]
            for rows, columns in grids
        ]
        self._pack = pack(
            blank, special_ids=model.require_special_ids(), config=model.config, starts=[_start(c) for c in contexts]
        ).to(model.device)
        self._lens = [rows * columns for rows, columns in grids]
        self._contexts = contexts

    @torch.no_grad()
    def __call__(self, latents: Sequence[Tensor], times: Sequence[float]) -> list[Tensor]:
        """Return the velocity of every image, (rows * columns, p*p*Z) in the model's type.

        Args:
            latents: Noised latent tokens per image, any floating type.
            times: Time in [0, 1] per image.
        """
        device = self.model.device
        clean = torch.cat([latent.to(device) for latent in latents])
        latent = replace(
            self._pack.latent, clean=clean, timesteps=torch.tensor(times, dtype=torch.float32, device=device)
        )
        packed = replace(self._pack, latent=latent)
        hidden = self.model.run(packed, self.model.embed(packed), store=GrowingStore(self._contexts))
        velocity = self.model.llm2vae(hidden[packed.memory_of[packed.latent.index]])
        return list(velocity.split(self._lens))


def velocity(model: Backbone, context: Context, x_t: Tensor, *, t: float, grid: tuple[int, int]) -> Tensor:
    """Return the velocity (rows * columns, p*p*Z) of one noised image behind a context.

    Args:
        model: With `special_ids` set.
        context: What the image is conditioned on; not extended.
        x_t: (rows * columns, p*p*Z) noised latent tokens.
        t: Time in [0, 1], as the schedule gives it; no shift is applied.
        grid: (rows, columns) of latent tokens.
    """
    return Denoiser(model, [context], grids=[grid])([x_t], [t])[0]


def _start(context: Context) -> Start:
    return Start(kv_len=context.kv_len, rope=context.rope)


def _decode_plan(starts: Tensor, lens: Tensor) -> AttentionPlan:
    """Plan one query per context against the first `lens` rows of its room."""
    if len(starts) == 1:
        return plan_single(None)
    columns = torch.arange(int(lens.max()))
    is_visible = columns < lens[:, None]
    group = AttentionGroup(
        query_rows=torch.arange(len(starts))[:, None],
        key_rows=torch.where(is_visible, starts[:, None] + columns, 0),
        mask=is_visible[:, None, None],
    )
    return AttentionPlan(groups=(group,), restore=None)
