"""The only place in serving where the model runs: tasks in, one forward pass, outcomes out.

Decides nothing: what runs is granted by the scheduler. Not safe for several threads.

Shape letters: B sequences, D width, N latent tokens of one picture, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.attention import Visibility
from omnifarm.backbone.image_ops import latent_grid, to_image, to_tensor
from omnifarm.backbone.kv_pool import KvPool, PooledContext
from omnifarm.backbone.step import Layout, Part, lay_out, run_parts
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.serving.scheduler import Kind
from omnifarm.serving.tasks import DrawTask, ReadTask, WriteTask
from omnifarm.serving.work import Decode, Draw, Encode, Latents, Read, Work, Write

CodecWork = Encode | Decode
Task = ReadTask | WriteTask | DrawTask | CodecWork
"""A work under way; encoding and decoding need no state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What became of a task in a step."""

    is_done: bool = True
    """Whether it needs no further step."""
    error: Exception | None = None
    """Why it failed, by itself; None where it did not."""
    value: Any = None
    """The work's result, when it is done."""
    prefix: PooledContext | None = None
    """The shared beginning of what was read, when it is done and has one."""
    asides: tuple[Decode, ...] = ()
    """To be decoded beside it, with nobody waiting."""


class Runner:
    """Runs a loaded backbone.

    Args:
        loaded: The backbone.
        pool: Where keys and values live.
    """

    def __init__(self, loaded: LoadedBackbone, *, pool: KvPool) -> None:
        self._model, self._config, self._codec = loaded.model, loaded.config, loaded.autoencoder
        self._pool = pool
        ids = loaded.model.require_special_ids()
        self._marker_ids = torch.tensor([ids.vision_start, ids.vision_end])
        self._drawing: tuple[tuple[tuple[int, int], ...], _DrawBatch] | None = None
        self._layout: Layout | None = None

    @torch.inference_mode()
    def start(self, work: Work, *, soft_table: Tensor | None, known: PooledContext | None = None) -> Task:
        """Set a work up; nothing runs but what one sequence needs for itself (embeddings, the vision tower).

        Args:
            work: What to do.
            soft_table: What soft slots of texts point into.
            known: The context behind the shared beginning of something to be read, when it was read before.
        """
        if isinstance(work, Read):
            return ReadTask(work, model=self._model, pool=self._pool, soft_table=soft_table, known=known)
        if isinstance(work, Write):
            return WriteTask(work, model=self._model, pool=self._pool)
        if isinstance(work, Draw):
            return DrawTask(work, model=self._model, pool=self._pool)
        return work

    @torch.inference_mode()
    def run(self, granted: Mapping[int, tuple[Task, int]]) -> dict[int, Outcome]:
        """Run one step.

        Args:
            granted: By task number, the task and how many of its pieces run.

        Returns:
            What became of each; what goes wrong in one of them after the pass is in its outcome.

        Raises:
            Exception: The pass failed, whatever the reason. Nothing has moved on then: it can be tried again.
        """
        reads = [(number, task, count) for number, (task, count) in granted.items() if isinstance(task, ReadTask)]
        writes = [(number, task) for number, (task, _) in granted.items() if isinstance(task, WriteTask)]
        draws = [(number, task) for number, (task, _) in granted.items() if isinstance(task, DrawTask)]
        outcomes = self._pass(reads, writes, draws) if reads or writes or draws else {}
        for number, (task, _) in granted.items():
            if isinstance(task, CodecWork):
                outcomes[number] = _outcome_of(partial(self._coded, task))
        return outcomes

    @torch.inference_mode()
    def decode(self, latents: Latents) -> Image.Image:
        """Return the picture of latents."""
        return to_image(self._codec.decode(self._codec.from_tokens(latents.tokens, grid=latents.grid)))

    def _pass(
        self,
        reads: Sequence[tuple[int, ReadTask, int]],
        writes: Sequence[tuple[int, WriteTask]],
        draws: Sequence[tuple[int, DrawTask]],
    ) -> dict[int, Outcome]:
        parts: list[Part] = []
        batch = self._draw_batch(draws) if draws else None
        if batch is not None:
            parts.append(batch.part([task for _, task in draws]))
        if writes:
            parts.append(self._tokens([task for _, task in writes]))
        parts += [task.part(count) for _, task, count in reads]
        layout = None
        if batch is not None and len(parts) == 1:
            # Nothing but the same pictures as in the step before: the layout is the same too.
            layout = batch.layout = batch.layout or lay_out(parts, device=self._model.device, dtype=self._model.dtype)
        hidden = run_parts(self._model, self._pool, parts, layout=layout)
        # All that may run out of memory comes before the first task moves on.
        velocities = self._velocities(hidden.pop(0)[1], batch) if batch is not None else ()
        logits_BV = self._logits(hidden.pop(0)[0]) if writes else torch.empty(0)
        moves: dict[int, Callable[[], Outcome]] = {}
        first = 0
        for number, task in draws:
            end = first + task.num_branches
            moves[number] = partial(_drawn, task, velocities[first:end])
            first = end
        for (number, writer), logits_V in zip(writes, logits_BV, strict=True):
            moves[number] = partial(_written, writer, logits_V)
        for number, reader, count in reads:
            moves[number] = partial(_read, reader, count)
        return {number: _outcome_of(move) for number, move in moves.items()}

    def _tokens(self, tasks: Sequence[WriteTask]) -> Part:
        ids = torch.tensor([task.current for task in tasks], device=self._model.device)
        visible = [task.visible for task in tasks]
        vectors = self._model.language_model.model.embed_tokens(ids)
        return Part(
            und=vectors,
            gen=vectors[:0],
            positions=torch.tensor([task.position for task in tasks]),
            rows=torch.stack([rows[-1] for rows in visible]),
            sequences=tuple(
                Visibility(query_rows=torch.tensor([index]), key_rows=rows, mask=None)
                for index, rows in enumerate(visible)
            ),
            wants=(True, False),
        )

    def _logits(self, hidden_BD: Tensor) -> Tensor:
        """Return (B, V) float32."""
        logits: Tensor = self._model.language_model.lm_head(hidden_BD)
        return logits.float()

    def _velocities(self, hidden: Tensor, batch: "_DrawBatch") -> Sequence[Tensor]:
        velocity: Tensor = self._model.llm2vae(hidden)
        return torch.split(velocity, batch.lens)

    def _draw_batch(self, draws: Sequence[tuple[int, DrawTask]]) -> "_DrawBatch":
        key = tuple((number, task.num_branches) for number, task in draws)
        if self._drawing is None or self._drawing[0] != key:
            self._drawing = (key, _DrawBatch(self._model, [task for _, task in draws], self._marker_ids))
        return self._drawing[1]

    def _coded(self, work: CodecWork) -> Outcome:
        return Outcome(value=self._code(work))

    def _code(self, work: CodecWork) -> Latents | Image.Image:
        if isinstance(work, Decode):
            image = self.decode(work.latents)
            if work.on_image is not None:
                work.on_image(image)
            return image
        latent = self._codec.encode(to_tensor(work.image), generator=work.generator)
        grid = latent_grid((work.image.height, work.image.width), config=self._config)
        return Latents(tokens=self._codec.to_tokens(latent.float()), grid=grid)


class _DrawBatch:
    """Pictures that are denoised in one pass: everything about them but their latents and times."""

    def __init__(self, model: Any, tasks: Sequence[DrawTask], marker_ids: Tensor) -> None:
        self._model = model
        self.layout: Layout | None = None
        """Of these pictures alone in a pass, once it is known."""
        counts = [task.num_branches for task in tasks]
        sequences = [
            task.sequence(branch) for task, count in zip(tasks, counts, strict=True) for branch in range(count)
        ]
        sizes = [task.num_latents for task in tasks]
        self.lens = [size for size, count in zip(sizes, counts, strict=True) for _ in range(count)]
        """Latent tokens per sequence."""
        device, num_und = model.device, 2 * len(sequences)
        self._markers = model.language_model.model.embed_tokens(marker_ids.to(device)).repeat(len(sequences), 1)
        self._image = torch.repeat_interleave(torch.arange(len(tasks)), torch.tensor(sizes)).to(device)
        self._positions = model.latent_pos_embed(torch.cat([task.table_rows for task in tasks]).to(device))
        # All branches of a picture see the same latents: they are embedded once and then repeated.
        spans = torch.split(torch.arange(sum(sizes)), sizes)
        self._repeat = torch.cat([span for span, count in zip(spans, counts, strict=True) for _ in range(count)]).to(
            device
        )
        ropes = torch.tensor([rope for _, rope, _ in sequences])
        rows = [new for new, _, _ in sequences]
        self._rope = torch.cat((ropes.repeat_interleave(2), ropes.repeat_interleave(torch.tensor(self.lens))))
        self._rows = torch.cat([torch.cat([one[[0, -1]] for one in rows]), *(one[1:-1] for one in rows)])
        self._sequences, first = [], num_und
        for index, ((_, _, keys), length) in enumerate(zip(sequences, self.lens, strict=True)):
            markers = torch.tensor([2 * index, 2 * index + 1])
            queries = torch.cat((markers, torch.arange(first, first + length)))
            self._sequences.append(Visibility(query_rows=queries, key_rows=keys, mask=None))
            first += length

    def part(self, tasks: Sequence[DrawTask]) -> Part:
        model = self._model
        times = torch.tensor([task.t for task in tasks], dtype=torch.float32)
        time_vectors = model.time_embedder(times.to(model.device)).index_select(0, self._image)
        x = torch.cat([task.x for task in tasks]).to(model.dtype)
        vectors = model.vae2llm(x) + time_vectors + self._positions
        return Part(
            und=self._markers,
            gen=vectors.index_select(0, self._repeat),
            positions=self._rope,
            rows=self._rows,
            sequences=tuple(self._sequences),
            # Only latents have a velocity, not the markers around them.
            wants=(False, True),
        )


def _drawn(task: DrawTask, velocities: Sequence[Tensor]) -> Outcome:
    drawn = task.advance(velocities)
    asides = tuple(task.asides)
    task.asides.clear()
    return Outcome(is_done=drawn is not None, value=drawn, asides=asides)


def _written(task: WriteTask, logits_V: Tensor) -> Outcome:
    written = task.advance(logits_V)
    return Outcome(is_done=written is not None, value=written)


def _read(task: ReadTask, num_pieces: int) -> Outcome:
    context = task.advance(num_pieces)
    return Outcome(is_done=context is not None, value=context, prefix=None if context is None else task.prefix())


def _outcome_of(move: Callable[[], Outcome]) -> Outcome:
    """Keep what goes wrong in one task, such as in what listens to it, from the others of its pass."""
    try:
        return move()
    except Exception as error:  # noqa: BLE001 - whatever it is, only this task fails
        return Outcome(error=error)


def kind_of(task: Task) -> Kind:
    """Return what a task does in a step."""
    if isinstance(task, WriteTask):
        return Kind.WRITE
    if isinstance(task, ReadTask):
        return Kind.READ
    return Kind.DRAW if isinstance(task, DrawTask) else Kind.CODEC
