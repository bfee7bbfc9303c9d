"""Works under way: what each brings to the next pass, and what it makes of the outcome.

A task holds the tensors of one work between steps. The scheduler sees its numbers only; the runner asks it for a
`Part` of the pass and hands back the hidden states.

Shape letters: D width, N latent tokens of one picture, E numbers per token, L tokens of what is read.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from omnifarm.backbone.attention import Visibility
from omnifarm.backbone.flow import Step, guide, schedule
from omnifarm.backbone.kv_pool import KvPool, PooledContext, Rows
from omnifarm.backbone.masks import split_mask
from omnifarm.backbone.model import Backbone
from omnifarm.backbone.packing import Start, pack
from omnifarm.backbone.positions import grid_position_ids
from omnifarm.backbone.step import Part
from omnifarm.serving.scheduler import pieces_of
from omnifarm.serving.work import Decode, Draw, Held, Latents, Read, Write

LARGEST_PIECE = 512
"""Tokens of text read in one piece."""


class ReadTask:
    """Segments on their way into a context."""

    def __init__(
        self, work: Read, *, model: Backbone, pool: KvPool, soft_table: Tensor | None, known: PooledContext | None
    ) -> None:
        start = Start(kv_len=work.context.kv_len, rope=work.context.rope)
        packed = pack([work.segments], special_ids=model.require_special_ids(), config=model.config, starts=[start])
        self._context = work.context
        self._memory_of, self._num_und = packed.memory_of, packed.num_und
        self._positions, self._rope = packed.position_ids, packed.rope_after[0]
        self._mask = split_mask(packed.split_lens, modes=packed.attn_modes)
        self._num_shared = packed.num_tokens if work.num_shared is None else work.num_shared
        # The shared beginning has rows of its own, so that keeping it does not keep the rest.
        if known is None:
            shared = pool.take(self._num_shared)
            known_rows, self._prefix_owners = shared.index, (*work.context.owners, shared)
        else:
            known_rows, self._prefix_owners = known.rows[work.context.kv_len :], known.owners
        own = pool.take(packed.num_tokens - self._num_shared)
        self._rows = torch.cat((known_rows, own.index))
        self._owners = (*work.context.owners, *self._prefix_owners, own)
        self._vectors_LD = model.embed(packed.to(model.device), soft_table=soft_table)
        splits = [(n, mode == "causal") for n, mode in zip(packed.split_lens, packed.attn_modes, strict=True)]
        self._done = 0 if known is None else self._num_shared
        self.pieces = pieces_of(_without(splits, self._done), largest=LARGEST_PIECE)
        """Tokens of the pieces still to be read."""

    def part(self, num_pieces: int) -> Part:
        """Return the next pieces."""
        end = self._done + sum(self.pieces[:num_pieces])
        span = torch.arange(self._done, end)
        is_und = self._memory_of[span] < self._num_und
        order = torch.cat((span[is_und], span[~is_und]))
        vectors = self._vectors_LD[self._memory_of[order].to(self._vectors_LD.device)]
        cut = int(is_und.sum())
        seen = torch.ones(len(order), self._context.kv_len, dtype=torch.bool)
        sequence = Visibility(
            query_rows=torch.arange(len(order)),
            key_rows=torch.cat((self._context.rows, self._rows[:end])),
            mask=torch.cat((seen, self._mask[order, :end]), dim=1),
        )
        return Part(
            und=vectors[:cut],
            gen=vectors[cut:],
            positions=self._positions[order],
            rows=self._rows[order],
            sequences=(sequence,),
            # What was read is seen by others, through its keys and values.
            wants=(False, False),
        )

    def advance(self, num_pieces: int) -> PooledContext | None:
        """Note that these pieces were read; return the new context when it was all."""
        self._done += sum(self.pieces[:num_pieces])
        self.pieces = self.pieces[num_pieces:]
        return None if self.pieces else self._context_of(self._rows, self._rope, self._owners)

    def prefix(self) -> PooledContext:
        """Return the context behind the shared beginning."""
        rope = int(self._positions[self._num_shared - 1]) + 1
        return self._context_of(self._rows[: self._num_shared], rope, self._prefix_owners)

    def _context_of(self, rows: Tensor, rope: int, owners: tuple[Rows, ...]) -> PooledContext:
        return PooledContext(rows=torch.cat((self._context.rows, rows)), rope=rope, owners=owners)


class WriteTask:
    """A text being written, one token a step."""

    def __init__(self, work: Write, *, model: Backbone, pool: KvPool) -> None:
        ids = model.require_special_ids()
        self._work = work
        self._end_id = ids.im_end
        # The start token's row and those of all tokens but the last: the last one is never fed.
        self._new = pool.take(work.max_tokens)
        self._rows = torch.cat((work.context.rows, self._new.index))
        self._ids = [ids.im_start]
        self.pieces = (1,)
        """One token a step."""

    @property
    def current(self) -> int:
        """The token to be fed next."""
        return self._ids[-1]

    @property
    def position(self) -> int:
        """Rotary position of the token to be fed next."""
        return self._work.context.rope + len(self._ids) - 1

    @property
    def visible(self) -> Tensor:
        """Rows the token sees, its own last."""
        return self._rows[: self._work.context.kv_len + len(self._ids)]

    def advance(self, logits_V: Tensor) -> list[int] | None:
        """Choose the next token; return the start token and what was written when the text has ended.

        Args:
            logits_V: (V,) float32 after the token that was fed.
        """
        if self._work.temperature is None:
            token = int(logits_V.argmax())
        else:
            # The largest becomes zero first: divided by next to nothing, it would be infinite.
            weights = torch.softmax((logits_V - logits_V.max()) / self._work.temperature, dim=-1).cpu()
            token = int(torch.multinomial(weights, 1, generator=self._work.generator))
        has_ended = token == self._end_id
        if not has_ended:
            self._ids.append(token)
        if self._work.on_tokens is not None:
            self._work.on_tokens(list(self._ids))
        return self._ids if has_ended or len(self._ids) > self._work.max_tokens else None


class DrawTask:
    """A picture on its way from noise, one evaluation a step, guidance branches side by side."""

    def __init__(self, work: Draw, *, model: Backbone, pool: KvPool) -> None:
        self.work = work
        config, options = model.config, work.options
        rows, columns = work.grid
        self.num_latents = rows * columns
        """N."""
        contexts = (work.guidance.main, work.guidance.without_text, work.guidance.without_image)
        self._branches = tuple(contexts[: self._most_branches()])
        self._new = [pool.take(self.num_latents + 2) for _ in self._branches]
        self.table_rows = grid_position_ids(work.grid, side=config.max_latent_size, interpolate=config.interpolate_pos)
        """(N,) rows of the latent position table."""
        self._sequences = [self._sequence(branch) for branch in range(len(self._branches))]
        times = schedule(options.num_timesteps, shift=options.timestep_shift)
        # Plain numbers, worked out once: the scheduler asks for them in every step.
        self._times: list[float] = times.tolist()
        self._strides: list[float] = (times[:-1] - times[1:]).tolist()
        self._scales = [options.scales_at(t) for t in self._times]
        self._index = 0
        self._num_evaluations = 0
        self._known: list[tuple[float, Tensor]] = []
        self.asides: list[Decode] = []
        """Decoding that `on_step` asked for and nobody has taken yet."""
        self.x = work.noise.to(model.device)
        """(N, E) at the current time."""

    @property
    def is_done(self) -> bool:
        """Whether time 0 is reached."""
        return self._index >= self.work.options.num_timesteps - 1

    @property
    def t(self) -> float:
        """Current shifted time."""
        return self._times[self._index]

    @property
    def num_branches(self) -> int:
        """Contexts whose velocity the current time needs."""
        text_scale, img_scale = self._scales[self._index]
        return 1 if text_scale <= 1 else 3 if img_scale > 1 else 2

    @property
    def pieces(self) -> tuple[int, ...]:
        """One evaluation a step."""
        return (self.num_branches * (self.num_latents + 2),)

    def sequence(self, branch: int) -> tuple[Tensor, int, Tensor]:
        """Return a branch's new rows, markers first (N + 2,), its rotary position, and the rows it sees."""
        return self._sequences[branch]

    def advance(self, velocities: Sequence[Tensor]) -> Latents | None:
        """Take an Euler step from the velocities (N, E) of the branches; return the latents at time 0."""
        guided, v_text, v_img = [*velocities, None, None][:3]
        assert guided is not None
        if v_text is not None:
            guided = guide(guided, v_text=v_text, v_img=v_img, options=self.work.options)
        self._num_evaluations += len(velocities)
        self._known = [*self._known[-1:], (self.t, guided)]
        self._move(guided)
        while not self.is_done and self._may_extrapolate():
            self._move(self._extrapolated())
        return self.result() if self.is_done else None

    def result(self) -> Latents:
        """Return the latents as they are."""
        return Latents(tokens=self.x, grid=self.work.grid, num_evaluations=self._num_evaluations)

    def _move(self, velocity: Tensor) -> None:
        t, index = self.t, self._index
        before = self.x
        self.x = before - velocity * self._strides[index]
        self._index += 1
        if self.work.held is not None:
            self._hold(self.work.held)
        if self.work.on_step is not None:
            num_steps = self.work.options.num_timesteps - 1
            scales = self._scales[index]
            step = Step(index=index, num_steps=num_steps, t=t, x=before, velocity=velocity, scales=scales)
            aside = self.work.on_step(step)
            if aside is not None:
                self.asides.append(aside)

    def _hold(self, held: Held) -> None:
        noise = self.work.noise.to(self.x)
        given = torch.lerp(held.tokens.to(self.x), noise, self.t)
        self.x = torch.where(held.is_held.to(self.x.device)[:, None], given, self.x)

    def _may_extrapolate(self) -> bool:
        """Whether this step may do without the model: between two evaluated ones, neither first nor last."""
        is_last = self._index == self.work.options.num_timesteps - 2
        return len(self._known) == 2 and not is_last and self._index % self.work.reuse != 0

    def _extrapolated(self) -> Tensor:
        """First-order Taylor expansion of the guided velocity in time, from the last two evaluations."""
        (t_before, v_before), (t_last, v_last) = self._known
        return v_last + (v_last - v_before) * ((self.t - t_last) / (t_last - t_before))

    def _most_branches(self) -> int:
        options = self.work.options
        return 1 if options.cfg_text_scale <= 1 else 3 if options.cfg_img_scale > 1 else 2

    def _sequence(self, branch: int) -> tuple[Tensor, int, Tensor]:
        context, new = self._branches[branch], self._new[branch].index
        return new, context.rope, torch.cat((context.rows, new))


def _without(splits: Sequence[tuple[int, bool]], done: int) -> list[tuple[int, bool]]:
    """Return splits without their first `done` tokens, which end in one that may be cut or between two."""
    rest = []
    for length, may_be_cut in splits:
        skipped = min(done, length)
        done -= skipped
        if length > skipped:
            rest.append((length - skipped, may_be_cut))
    return rest
