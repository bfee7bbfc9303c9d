"""Requests as scripts: which contexts a question, a drawing or an edit is made of, and in which order.

    ask       [system prompts] [think] [pictures, ViT] [question]                                     -> text
    generate  [system prompts] [think] [prompt] [thought]                                             -> picture
              text guidance against: [think]
    edit      [system prompts] [think] [sources, latents and ViT each] [instruction] [thought]        -> picture
              text guidance against: [think] [sources]
              image guidance against: system prompts, think and instruction
              looked at, if it was to remove somebody: [system prompts] [result, ViT] [question]  -> Yes or No

The layouts are those of training. Replay comes first and runs on contexts of its own. A script holds no tensor of
the model: it yields works and is given contexts, texts and latents.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.flow import Step
from omnifarm.backbone.image_ops import ImageTransform, latent_grid, patchify_vit, to_rgb, vit_patch_size
from omnifarm.backbone.interleave import SYSTEM_PROMPTS
from omnifarm.backbone.kv_pool import NOTHING, PooledContext
from omnifarm.backbone.segments import LatentSegment, Segment, TextSegment, VitSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import Clock
from omnifarm.concept.prompts import system_prompt, user_text
from omnifarm.concept.soft_tokens import SoftTokenLayout
from omnifarm.concept.spec import PLACEHOLDER
from omnifarm.seeding import generator
from omnifarm.serving.checking import MAX_REPLY, draw_checked, noise_of, removed_by
from omnifarm.serving.events import Event, PartialImage
from omnifarm.serving.keeping import keep_unchanged
from omnifarm.serving.prefixes import content_digest, digest
from omnifarm.serving.replay import ReplayMode, ReplayStyle, ReplayTrace, conversation, untouched
from omnifarm.serving.requests import Answer, AskRequest, EditRequest, GenerateRequest, Picture
from omnifarm.serving.resident import Resident
from omnifarm.serving.stopwatch import Stopwatch
from omnifarm.serving.streaming import TextStream, ThoughtStream
from omnifarm.serving.work import Decode, Draw, Encode, Guidance, Held, Latents, Read, Script, Write

FRAME = 2
"""Start and end token around every segment."""
LEAST_SHARED = 16
"""Tokens that an opening must have to be worth keeping."""

Tell = Callable[[Event], None]
Moves = Generator[Sequence[Any], list[Any], Any]


class Scripts:
    """Writes the scripts of one backbone's requests.

    Args:
        loaded: For its tokenizer and its rules about pictures.
        style: How replay talks to it.
        clock: For timings.
    """

    def __init__(self, loaded: LoadedBackbone, *, style: ReplayStyle, clock: Clock) -> None:
        self._config, self._tokenizer = loaded.config, loaded.tokenizer
        self._fingerprint = loaded.fingerprint
        self._style, self._clock = style, clock
        self._vae = ImageTransform(config=loaded.config.vae_transform)
        self._vit = ImageTransform(config=loaded.config.vit_transform)
        self._introductions: dict[SoftTokenLayout, TextSegment] = {}

    def ask(
        self, request: AskRequest, residents: Sequence[Resident], *, tell: Tell, watch: Stopwatch
    ) -> Script[Answer]:
        """Return the script of a question."""
        spoken = _spoken_of(request.question, residents)
        stream = TextStream(
            decode=self._tokenizer.decode_generated,
            spoken=spoken,
            think=request.think,
            tell=tell,
        )

        def hear(ids: list[int]) -> None:
            watch.mark("first_token_s")
            stream.feed(ids)

        with watch.phase("prefill_s"):
            said: list[Segment] = [self.show(self.resize(image)) for image in request.images]
            said.append(self.say(request.question, residents))
            think = "understanding" if request.think else None
            (context,) = yield [self._behind(residents, said, think=think, is_towards_text=True)]
        with watch.phase("decode_s"):
            (ids,) = yield [
                Write(
                    context=context,
                    max_tokens=request.max_tokens,
                    temperature=request.temperature,
                    generator=generator(request.seed, "answer"),
                    on_tokens=hear,
                )
            ]
        thought, text = stream.finish(ids)
        return Answer(
            text=text,
            concepts=request.concepts,
            num_tokens=len(ids) - 1,
            num_prompt_tokens=context.kv_len,
            is_complete=len(ids) - 1 < request.max_tokens,
            thought=thought,
            timings=watch.timings(),
        )

    def generate(
        self, request: GenerateRequest, residents: Sequence[Resident], *, tell: Tell, watch: Stopwatch
    ) -> Script[Picture]:
        """Return the script of a drawing."""
        with watch.phase("replay_s"):
            traces = yield from self._replay(request.prompt, residents, mode=request.replay)
        prompt = traces[-1].prompt
        with watch.phase("prefill_s"):
            think = "generation" if request.think else None
            unsaid = yield from self._known([], think=think)
            (said,) = yield [self._behind(residents, [self.say(prompt, residents)], think=think)]
            main, thought = yield from self._think(said, request, tell=tell)
            # What guidance steers away from never knows the thought.
            guidance = Guidance(main=main, without_text=unsaid, without_image=said)
        picture: Picture = yield from self._draw(
            request, guidance, size=request.size, traces=traces, thought=thought, tell=tell, watch=watch
        )
        return picture

    def edit(
        self, request: EditRequest, residents: Sequence[Resident], *, tell: Tell, watch: Stopwatch
    ) -> Script[Picture]:
        """Return the script of an edit."""
        with watch.phase("replay_s"):
            traces = yield from self._replay(request.instruction, residents, mode=request.replay)
        text = self.say(traces[-1].prompt, residents)
        with watch.phase("prefill_s"):
            sources = [self.resize(image) for image in request.images]
            posterior = generator(request.seed, "source")
            encoded = yield [Encode(image=source, generator=posterior) for source in sources]
            shown: list[LatentSegment | VitSegment] = []
            for source, latents in zip(sources, encoded, strict=True):
                shown += [LatentSegment(latents=latents.tokens.cpu(), grid=latents.grid), self.show(source)]
            think = "generation" if request.think else None
            unsaid = yield from self._known([], think=think)
            options = request.options
            reads = [self._behind(residents, [*shown, text], think=think)]
            if options.cfg_text_scale > 1:
                reads.append(Read(context=unsaid, segments=shown))
                if options.cfg_img_scale > 1:
                    reads.append(self._behind(residents, [text], think=think))
            # A branch whose guidance is off is never looked at; any context will do for it.
            main, *others = yield reads
            without_text, without_image = [*others, main, main][:2]
            main, thought = yield from self._think(main, request, tell=tell)
            guidance = Guidance(main=main, without_text=without_text, without_image=without_image)
        size = (sources[-1].height, sources[-1].width)
        drawn: list[Picture] = []

        def draw(attempt: int, is_held: Tensor | None) -> Moves:
            picture: Picture = yield from self._draw(
                # Pictures on the way are those of the first attempt: a client asked for so many and no more.
                request if attempt == 0 else replace(request, partial_every=0),
                guidance,
                size=size,
                traces=traces,
                thought=thought,
                tell=tell,
                watch=watch,
                attempt=attempt,
                held=None if is_held is None else Held(tokens=encoded[-1].tokens, is_held=is_held),
            )
            drawn.append(picture)
            if not request.keep_unchanged:
                return picture.image
            (decoded,) = yield [Decode(latents=encoded[-1])]
            return keep_unchanged(picture.image, source=sources[-1], decoded=decoded)

        def ask(question: str, image: Image.Image) -> Moves:
            with watch.phase("check_s"):
                said: list[Segment] = [self.show(self.resize(image)), self.say(question, residents)]
                (context,) = yield [self._behind(residents, said, think=None, is_towards_text=True)]
                (ids,) = yield [Write(context=context, max_tokens=MAX_REPLY)]
            return self._tokenizer.decode_generated(ids)

        removed = removed_by(request.instruction)
        # A name that is nobody's is nobody the model could look for.
        if removed not in (*(one.identifier for one in residents), *([PLACEHOLDER] if len(residents) == 1 else [])):
            removed = None
        image, num_attempts, is_gone = yield from draw_checked(
            removed, source=sources[-1], grid=encoded[-1].grid, draw=draw, ask=ask, attempts=request.attempts
        )
        return replace(
            drawn[-1],
            image=image,
            # Each picture is framed by two tokens.
            num_image_tokens=sum(one.grid[0] * one.grid[1] + 2 for one in shown),
            num_evaluations=sum(one.num_evaluations for one in drawn),
            num_attempts=num_attempts,
            is_gone=is_gone,
            timings=watch.timings(),
        )

    def resize(self, image: Image.Image) -> Image.Image:
        """Return the picture at the size the backbone works with: every picture takes this step first."""
        return self._vae.resize(to_rgb(image))

    def say(self, text: str, residents: Sequence[Resident]) -> TextSegment:
        """Return a user's text; where it names one of `residents`, its learned vector stands."""
        rows = {one.identifier: int(one.rows.index[one.layout.sks_row]) for one in residents}
        return user_text(text, tokenizer=self._tokenizer, rows=rows)

    def introduce(self, resident: Resident) -> TextSegment:
        """Return a concept's system prompt, its slots pointing to its rows of the residents' table."""
        # Concepts of one layout have the same text; only the vectors in its slots are their own.
        if resident.layout not in self._introductions:
            self._introductions[resident.layout] = system_prompt(resident.layout, tokenizer=self._tokenizer)
        segment, rows = self._introductions[resident.layout], resident.rows.index.tolist()
        return replace(segment, soft=tuple(replace(slot, row=rows[slot.row]) for slot in segment.soft))

    def think_prompt(self, output: str) -> TextSegment:
        """Return what think mode says first."""
        return TextSegment(ids=tuple(self._tokenizer.encode(SYSTEM_PROMPTS[output])))

    def show(self, image: Image.Image) -> VitSegment:
        """Return a picture as understanding sees it; `image` has been resized."""
        patches, grid = patchify_vit(self._vit.pixels(image), patch=vit_patch_size(self._config))
        return VitSegment(patches=patches, grid=grid)

    def _key(self, residents: Sequence[Resident], segments: Sequence[Segment]) -> bytes:
        """Digest of whose concepts these are, of which versions, on which backbone, and of what is said after."""
        whose = [part for one in residents for part in (one.tenant, one.name, one.version)]
        return digest(self._fingerprint, str(len(residents)), *whose, content_digest(segments))

    def _behind(
        self,
        residents: Sequence[Resident],
        segments: Sequence[Segment],
        *,
        think: str | None,
        is_towards_text: bool = False,
    ) -> Read:
        """Return the reading of segments behind the system prompts, which are read with them unless they have been."""
        opening = [self.introduce(resident) for resident in residents]
        if think is not None:
            opening.append(self.think_prompt(think))
        return Read(
            context=NOTHING,
            segments=[*opening, *segments],
            key=self._key(residents, opening) if opening else None,
            num_shared=sum(len(one.ids) + FRAME for one in opening) if opening and segments else None,
            is_towards_text=is_towards_text,
        )

    def _known(self, residents: Sequence[Resident], *, think: str | None) -> Moves:
        """Read system prompts and nothing else, or find that they have been read."""
        if not residents and think is None:
            return NOTHING
        (context,) = yield [self._behind(residents, [], think=think, is_towards_text=True)]
        return context

    def _replay(self, text: str, residents: Sequence[Resident], *, mode: ReplayMode) -> Moves:
        """Consult every concept in turn; each sees what the one before it has filled in."""
        if mode is ReplayMode.OFF or not residents:
            return (untouched(text),)
        traces: list[ReplayTrace] = []
        for resident in residents:
            talk = conversation(
                traces[-1].prompt if traces else text,
                concept=resident.identifier,
                mode=mode,
                style=self._style,
                now=self._clock.monotonic_s,
            )
            written: str | None = None
            while True:
                try:
                    call = talk.send(written)  # type: ignore[arg-type]
                except StopIteration as end:
                    traces.append(end.value)
                    break
                context = (yield from self._known([resident], think=None)) if call.with_concept else NOTHING
                segment, opening = self.say(call.prompt, residents), self.say(call.opening, residents)
                shared = _shared(segment, opening)
                known = [resident] if call.with_concept else []
                beginning = TextSegment(ids=segment.ids[:shared], soft=_before(segment, shared))
                is_kept = shared >= LEAST_SHARED
                # Slots in the opening hold vectors of the request's concepts, so all their versions count; which of
                # them is consulted counts by itself, because a slot does not say whose vector it holds.
                whose = residents if beginning.soft else []
                key = digest("opening", self._key(known, []), self._key(whose, [beginning])) if is_kept else None
                (context,) = yield [
                    Read(
                        context=context,
                        segments=[segment],
                        key=key,
                        # The frame's start token is the first of the shared ones.
                        num_shared=shared + 1 if is_kept else None,
                        is_towards_text=True,
                    )
                ]
                (ids,) = yield [Write(context=context, max_tokens=call.max_tokens)]
                written = self._tokenizer.decode_generated(ids)
        return tuple(traces)

    def _think(self, main: PooledContext, request: GenerateRequest | EditRequest, *, tell: Tell) -> Moves:
        """Have the model think behind `main`; the decoded words are read again, as the official code does."""
        if not request.think:
            return main, None
        stream = ThoughtStream(decode=self._tokenizer.decode_generated, tell=tell)
        (ids,) = yield [Write(context=main, max_tokens=MAX_THOUGHT, on_tokens=stream.feed)]
        thought = stream.finish(ids)
        (main,) = yield [Read(context=main, segments=[TextSegment(ids=tuple(self._tokenizer.encode_user(thought)))])]
        return main, thought

    def _draw(
        self,
        request: GenerateRequest | EditRequest,
        guidance: Guidance,
        *,
        size: tuple[int, int],
        traces: tuple[ReplayTrace, ...],
        thought: str | None,
        tell: Tell,
        watch: Stopwatch,
        attempt: int = 0,
        held: Held | None = None,
    ) -> Moves:
        grid = latent_grid(size, config=self._config)
        seeded = noise_of(request.seed, attempt=attempt)
        noise = torch.randn(grid[0] * grid[1], self._config.latent_dim, generator=seeded)

        def watch_step(step: Step) -> Decode | None:
            every, done = request.partial_every, step.index + 1
            if not every or done % every or done == step.num_steps:
                return None
            # x_t = (1 - t) x_0 + t x_1 and v = x_1 - x_0: where the current velocity leads at time 0.
            estimate = Latents(tokens=step.x - step.t * step.velocity, grid=grid)
            return Decode(
                latents=estimate,
                on_image=lambda image: tell(
                    PartialImage(index=done // every - 1, step=done, num_steps=step.num_steps, image=image)
                ),
            )

        with watch.phase("denoise_s"):
            (drawn,) = yield [
                Draw(
                    guidance=guidance,
                    grid=grid,
                    options=request.options,
                    noise=noise,
                    reuse=request.step_reuse,
                    on_step=watch_step,
                    held=held,
                )
            ]
        with watch.phase("decode_s"):
            (image,) = yield [Decode(latents=drawn)]
        return Picture(
            image=image,
            prompt=traces[-1].prompt,
            replay=traces,
            concepts=request.concepts,
            seed=request.seed,
            num_evaluations=drawn.num_evaluations,
            num_prompt_tokens=guidance.main.kv_len,
            thought=thought,
            timings=watch.timings(),
        )


MAX_THOUGHT = 999
"""Tokens of a thought before drawing: the official code allows 1000, the start token counted."""


def _shared(segment: TextSegment, opening: TextSegment) -> int:
    """Return how many first tokens of a text are those of its opening; the opening's own end may have been merged."""
    slots = {slot.offset: slot for slot in segment.soft}, {slot.offset: slot for slot in opening.soft}
    count = 0
    for index, (a, b) in enumerate(zip(segment.ids, opening.ids, strict=False)):
        if a != b or slots[0].get(index) != slots[1].get(index):
            break
        count += 1
    return count


def _before(segment: TextSegment, end: int) -> tuple[Any, ...]:
    return tuple(slot for slot in segment.soft if slot.offset < end)


def _spoken_of(question: str, residents: Sequence[Resident]) -> str | None:
    """The identifier that `<sks>` in an answer stands for: the one the question names, else the first in context."""
    named = [resident.identifier for resident in residents if resident.identifier in question]
    return named[0] if named else residents[0].identifier if residents else None
