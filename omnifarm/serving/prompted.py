"""What prompting can do without learning: things are introduced by sentences and photos in front of every request.

Baselines of the paper (a description in the prompt, reference photos in the prompt) and of every comparison with
learned concepts; runs on the same loop as the engine, so callers in several threads share its steps.
"""

import itertools
import threading
from collections.abc import Sequence
from typing import Any

import torch
from PIL.Image import Image
from torch import Tensor

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.image_ops import latent_grid
from omnifarm.backbone.kv_pool import NOTHING, KvPool
from omnifarm.backbone.segments import LatentSegment, Segment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import SystemClock
from omnifarm.errors import OmniFarmError
from omnifarm.seeding import generator
from omnifarm.serving.capacity import usual_budget
from omnifarm.serving.checking import MAX_REPLY, draw_checked, noise_of, question_about, removed_by
from omnifarm.serving.door import Door
from omnifarm.serving.footprint import Footprint
from omnifarm.serving.keeping import keep_unchanged
from omnifarm.serving.loop import Entry, Loop
from omnifarm.serving.prefixes import PrefixCache
from omnifarm.serving.replay import ReplayStyle
from omnifarm.serving.requests import Limits
from omnifarm.serving.runner import Runner
from omnifarm.serving.scripts import Moves, Scripts
from omnifarm.serving.work import Decode, Draw, Encode, Guidance, Held, Latents, Read, Script, Write

_CACHED_TOKENS = 65536
_MAX_WAITING = 1024

_MOST_BRANCHES = 3

Known = Sequence[str | Image]
"""An introduction: sentences and photos in reading order; empty where nothing is known."""


class Prompted:
    """Answers, draws and edits behind introductions. Safe to use from several threads.

    Args:
        loaded: The frozen backbone.
    """

    def __init__(self, loaded: LoadedBackbone) -> None:
        self._config, self._tokenizer = loaded.config, loaded.tokenizer
        door = Door(loaded.config, limits=Limits())
        self._keeps_unchanged, self._attempts = door.keeps_unchanged, door.attempts
        style = ReplayStyle.from_defaults(loaded.config.defaults.get("replay", {}))
        self._scripts = Scripts(loaded, style=style, clock=SystemClock())
        self._footprint = Footprint(loaded, scripts=self._scripts, style=style)
        pool = KvPool(loaded.model, capacity=_CACHED_TOKENS)
        self._loop = Loop(
            Runner(loaded, pool=pool),
            pool=pool,
            prefixes=PrefixCache(max_rows=0),
            budget=usual_budget(loaded.config, device=loaded.model.device),
            soft_table=lambda: None,
            max_waiting=_MAX_WAITING,
        )
        self._numbers = itertools.count(1)
        self._stepping = threading.Lock()

    def ask(self, question: str, *, known: Known = (), image: Image | None = None, max_tokens: int = 256) -> str:
        """Answer a question, about a picture if one is given.

        Args:
            question: Read last.
            known: Read first; photos as understanding sees them.
            image: Read between them.
            max_tokens: Most text tokens of the answer.
        """
        texts = [question, *(piece for piece in known if isinstance(piece, str))]
        photos = [piece for piece in (*known, image) if isinstance(piece, Image)]
        rows = self._rows(texts) + sum(self._footprint.vit(photo.size) for photo in photos) + max_tokens
        text: str = self._run(self._ask(question, known, image, max_tokens), rows=rows)
        return text

    def draw(
        self, prompt: str, *, known: Known = (), size: tuple[int, int], options: SamplingOptions, seed: int = 0
    ) -> Image:
        """Draw a picture of `size` (height, width); photos in `known` are read as latents and as understanding sees them."""
        rows = self._rows([prompt, *known]) + _MOST_BRANCHES * self._footprint.latents(size)
        drawn: Image = self._run(self._draw(prompt, known, size, options, seed), rows=rows)
        return drawn

    def edit(
        self, image: Image, instruction: str, *, known: Known = (), options: SamplingOptions, seed: int = 0
    ) -> Image:
        """Change a picture."""
        source = self._scripts.resize(image)
        # Every piece is read by two of the three contexts.
        rows = 2 * self._rows([instruction, image, *known])
        rows += _MOST_BRANCHES * self._footprint.latents((source.height, source.width))
        if (removed := removed_by(instruction)) is not None:
            rows += self._rows([question_about(removed), image, *known]) + MAX_REPLY
        changed: Image = self._run(self._edit(image, instruction, known, options, seed), rows=rows)
        return changed

    def _rows(self, pieces: Known) -> int:
        """Return the rows that pieces take where photos are read as latents and as understanding sees them."""
        count = 0
        for piece in pieces:
            if isinstance(piece, str):
                count += self._footprint.text(piece)
            else:
                photo = self._scripts.resize(piece)
                count += self._footprint.vit(piece.size) + self._footprint.latents((photo.height, photo.width))
        return count

    def _run(self, script: Script[Any], *, rows: int) -> Any:
        ended: list[Any] = []
        entry = Entry(
            number=next(self._numbers),
            script=script,
            rows=rows,
            tenant="",
            on_start=lambda: None,
            on_end=lambda result, error: ended.append((result, error)),
        )
        self._loop.submit(entry)
        while not ended:
            with self._stepping:
                self._loop.step()
        error: OmniFarmError | None
        result, error = ended[0]
        if error is not None:
            raise error
        return result

    def _ask(self, question: str, known: Known, image: Image | None, max_tokens: int) -> Moves:
        segments: list[Segment] = []
        for piece in (*known, *([] if image is None else [image])):
            if isinstance(piece, str):
                segments.append(self._say(piece))
            else:
                segments.append(self._scripts.show(self._scripts.resize(piece)))
        (context,) = yield [Read(context=NOTHING, segments=[*segments, self._say(question)], is_towards_text=True)]
        (ids,) = yield [Write(context=context, max_tokens=max_tokens)]
        return self._tokenizer.decode_generated(ids).strip()

    def _draw(self, prompt: str, known: Known, size: tuple[int, int], options: SamplingOptions, seed: int) -> Moves:
        introduction = yield from self._introduced(known)
        (main,) = yield [Read(context=NOTHING, segments=[*introduction, self._say(prompt)])]
        guidance = Guidance(main=main, without_text=NOTHING, without_image=main)
        noise = noise_of(seed, attempt=0)
        return (yield from self._picture(guidance, size=size, options=options, noise=noise))

    def _edit(self, image: Image, instruction: str, known: Known, options: SamplingOptions, seed: int) -> Moves:
        source = self._scripts.resize(image)
        introduction = yield from self._introduced(known)
        (latents,) = yield [Encode(image=source, generator=generator(seed, "source"))]
        shown = self._condition(source, latents)
        text = self._say(instruction)
        main, without_text, without_image = yield [
            Read(context=NOTHING, segments=[*introduction, *shown, text]),
            Read(context=NOTHING, segments=shown),
            Read(context=NOTHING, segments=[*introduction, text]),
        ]
        guidance = Guidance(main=main, without_text=without_text, without_image=without_image)
        size = (source.height, source.width)

        def draw(attempt: int, is_held: Tensor | None) -> Moves:
            held = None if is_held is None else Held(tokens=latents.tokens, is_held=is_held)
            noise = noise_of(seed, attempt=attempt)
            edited = yield from self._picture(guidance, size=size, options=options, noise=noise, held=held)
            if not self._keeps_unchanged:
                return edited
            (decoded,) = yield [Decode(latents=latents)]
            return keep_unchanged(edited, source=source, decoded=decoded)

        def ask(question: str, drawn: Image) -> Moves:
            return self._ask(question, known, drawn, MAX_REPLY)

        edited, _, _ = yield from draw_checked(
            removed_by(instruction), source=source, grid=latents.grid, draw=draw, ask=ask, attempts=self._attempts
        )
        return edited

    def _introduced(self, known: Known) -> Moves:
        segments: list[Segment] = []
        for number, piece in enumerate(known):
            if isinstance(piece, str):
                segments.append(self._say(piece))
            else:
                photo = self._scripts.resize(piece)
                (latents,) = yield [Encode(image=photo, generator=generator(number, "reference"))]
                segments += self._condition(photo, latents)
        return segments

    def _condition(self, image: Image, latents: Latents) -> list[Segment]:
        return [LatentSegment(latents=latents.tokens.cpu(), grid=latents.grid), self._scripts.show(image)]

    def _picture(
        self,
        guidance: Guidance,
        *,
        size: tuple[int, int],
        options: SamplingOptions,
        noise: torch.Generator,
        held: Held | None = None,
    ) -> Moves:
        grid = latent_grid(size, config=self._config)
        latents = torch.randn(grid[0] * grid[1], self._config.latent_dim, generator=noise)
        (drawn,) = yield [Draw(guidance=guidance, grid=grid, options=options, noise=latents, held=held)]
        (image,) = yield [Decode(latents=drawn)]
        return image

    def _say(self, text: str) -> Segment:
        return self._scripts.say(text, [])
