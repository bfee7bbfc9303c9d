"""One backbone, many concepts: ask, generate and edit, in process.

Every request prefills its conditions once into cached contexts; guidance branches share what they have in common,
and denoising only ever adds the noised picture to them. The layouts are those of training:

    ask       [system prompts] [picture, ViT] [question]                      -> text
    generate  [system prompts] [prompt]                                       -> picture
              text guidance against: nothing
    edit      [system prompts] [source, latents] [source, ViT] [instruction]  -> picture
              text guidance against: the source alone
              image guidance against: system prompts and instruction

Knows no HTTP and no Ray. One request at a time: the caller holds off the others.
"""

from collections.abc import Sequence
from dataclasses import replace

from PIL.Image import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.seeding import generator
from omnifarm.serving import requests as door
from omnifarm.serving.replay import ReplayMode, ReplayStyle, ReplayTrace, spell, untouched
from omnifarm.serving.replay import replay as consult
from omnifarm.serving.requests import Answer, AskRequest, EditRequest, GenerateRequest, Limits, Picture
from omnifarm.serving.resident import Resident, ResidentConcepts
from omnifarm.serving.runner import Guidance, Runner
from omnifarm.serving.stopwatch import Stopwatch

_USUAL_SIDE = 512
"""Pixels of a drawn picture's sides where neither request nor backbone says otherwise (paper table 6)."""


class Engine:
    """Answers requests with one loaded backbone and the concepts of one repository."""

    def __init__(
        self,
        loaded: LoadedBackbone,
        repository: ConceptRepository,
        *,
        limits: Limits | None = None,
        clock: Clock | None = None,
        replay_style: ReplayStyle | None = None,
    ) -> None:
        """Take over a backbone and a repository; nothing is computed yet.

        Args:
            loaded: The frozen backbone; its `defaults` fill in what requests leave out.
            repository: Where committed artifacts lie.
            limits: What one request may cost.
            clock: For timings and for looking up new versions.
            replay_style: Instead of the backbone's own.

        Raises:
            ConfigError: The backbone's defaults hold something that does not exist.
        """
        config = loaded.config
        self._clock = clock or SystemClock()
        # A picture wider than the position table would be drawn with the wrong rows.
        table_side = config.max_latent_size * config.latent_downsample
        limits = limits or Limits()
        self._limits = replace(limits, max_side=min(limits.max_side, table_side))
        self._runner = Runner(loaded)
        self._residents = ResidentConcepts(repository, fingerprint=loaded.fingerprint, clock=self._clock)
        self._stride = config.latent_downsample
        self.fingerprint = loaded.fingerprint
        self.generation_options = SamplingOptions.for_generation(config)
        self.editing_options = SamplingOptions.for_editing(config)
        usual = (min(_USUAL_SIDE, self._limits.max_side),) * 2
        height, width = config.defaults.get("generation", {}).get("size", usual)
        self.generation_size = (int(height), int(width))
        self.replay_style = replay_style or ReplayStyle.from_defaults(config.defaults.get("replay", {}))

    def list_concepts(self) -> list[ArtifactManifest]:
        """Return the newest manifest of every concept this backbone can use, by name."""
        return self._residents.manifests()

    def ask(
        self,
        question: str,
        *,
        concepts: Sequence[str] | None = None,
        image: Image | None = None,
        max_tokens: int = 256,
        temperature: float | None = None,
        seed: int = 0,
    ) -> Answer:
        """Answer a question.

        Args:
            question: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the question names.
            image: A picture the question is about.
            max_tokens: Longest answer.
            temperature: None answers greedily; above 0 samples.
            seed: For sampling.

        Raises:
            RequestError: Something about the request is wrong.
            UnknownConceptError: A concept does not exist.
        """
        door.check_decoding(max_tokens=max_tokens, temperature=temperature, limits=self._limits)
        request = AskRequest(
            question=door.check_text(question, name="question", limits=self._limits),
            concepts=door.concept_names(question, explicit=concepts, limits=self._limits),
            image=image,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=door.check_seed(seed),
        )
        return self._ask(request)

    def generate(
        self,
        prompt: str,
        *,
        concepts: Sequence[str] | None = None,
        size: tuple[int, int] | None = None,
        options: SamplingOptions | None = None,
        seed: int = 0,
        replay: str = "unified",
    ) -> Picture:
        """Draw a picture from words.

        Args:
            prompt: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the prompt names.
            size: (height, width) in pixels; None takes the backbone's own.
            options: Steps and guidance; None takes the backbone's own.
            seed: Same request, same seed: same picture.
            replay: `unified`, `three_stage` or `off`.

        Raises:
            RequestError: Something about the request is wrong.
            UnknownConceptError: A concept does not exist.
        """
        request = GenerateRequest(
            prompt=door.check_text(prompt, name="prompt", limits=self._limits),
            concepts=door.concept_names(prompt, explicit=concepts, limits=self._limits),
            size=door.check_size(size or self.generation_size, stride=self._stride, limits=self._limits),
            options=door.check_options(options or self.generation_options, limits=self._limits),
            seed=door.check_seed(seed),
            replay=door.parse_replay(replay),
        )
        return self._generate(request)

    def edit(
        self,
        image: Image,
        instruction: str,
        *,
        concepts: Sequence[str] | None = None,
        options: SamplingOptions | None = None,
        seed: int = 0,
        replay: str = "off",
    ) -> Picture:
        """Change a picture as an instruction says.

        Args:
            image: The source; resized by the backbone's rule, which also decides the size of the result.
            instruction: May name concepts as `<maeve>`.
            concepts: Concepts in context, in this order; None takes those the instruction names.
            options: Steps and guidance; None takes the backbone's own.
            seed: Same request, same seed: same picture.
            replay: `unified`, `three_stage` or `off`.

        Raises:
            RequestError: Something about the request is wrong.
            UnknownConceptError: A concept does not exist.
        """
        request = EditRequest(
            image=image,
            instruction=door.check_text(instruction, name="instruction", limits=self._limits),
            concepts=door.concept_names(instruction, explicit=concepts, limits=self._limits),
            options=door.check_options(options or self.editing_options, limits=self._limits),
            seed=door.check_seed(seed),
            replay=door.parse_replay(replay),
        )
        return self._edit(request)

    def _ask(self, request: AskRequest) -> Answer:
        watch = Stopwatch(self._clock)
        residents = self._residents.get(request.concepts)
        with watch.phase("prefill_s"):
            context = self._runner.introduce(residents)
            if request.image is not None:
                context = self._runner.show(context, self._runner.resize(request.image))
            context = self._runner.say(context, request.question, residents)
        with watch.phase("decode_s"):
            written, num_tokens = self._runner.write(
                context,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                generator=generator(request.seed, "answer"),
            )
        return Answer(
            text=spell(written, concept=_spoken_of(request.question, residents)).strip()
            if residents
            else written.strip(),
            concepts=request.concepts,
            num_tokens=num_tokens,
            timings=watch.timings(),
        )

    def _generate(self, request: GenerateRequest) -> Picture:
        watch = Stopwatch(self._clock)
        residents = self._residents.get(request.concepts)
        with watch.phase("replay_s"):
            traces = self._replay(request.prompt, residents, mode=request.replay)
            prompt = traces[-1].prompt
        with watch.phase("prefill_s"):
            nothing = self._runner.nothing()
            main = self._runner.say(self._runner.introduce(residents), prompt, residents)
            guidance = Guidance(main=main, without_text=nothing, without_image=main)
        return self._draw(request, guidance, prompt=prompt, traces=traces, size=request.size, watch=watch)

    def _edit(self, request: EditRequest) -> Picture:
        watch = Stopwatch(self._clock)
        residents = self._residents.get(request.concepts)
        with watch.phase("replay_s"):
            traces = self._replay(request.instruction, residents, mode=request.replay)
            instruction = traces[-1].prompt
        with watch.phase("prefill_s"):
            source = self._runner.resize(request.image)
            posterior = generator(request.seed, "source")
            known = self._runner.introduce(residents)
            latents = self._runner.encode(source, generator=posterior)
            guidance = Guidance(
                main=self._runner.say(self._runner.condition(known, source, latents), instruction, residents),
                without_text=self._runner.condition(self._runner.nothing(), source, latents),
                without_image=self._runner.say(known, instruction, residents),
            )
        size = (source.height, source.width)
        return self._draw(request, guidance, prompt=instruction, traces=traces, size=size, watch=watch)

    def _draw(
        self,
        request: GenerateRequest | EditRequest,
        guidance: Guidance,
        *,
        prompt: str,
        traces: tuple[ReplayTrace, ...],
        size: tuple[int, int],
        watch: Stopwatch,
    ) -> Picture:
        with watch.phase("denoise_s"):
            drawn = self._runner.denoise(
                guidance, size=size, options=request.options, generator=generator(request.seed, "noise")
            )
        with watch.phase("decode_s"):
            image = self._runner.decode(drawn)
        return Picture(
            image=image,
            prompt=prompt,
            replay=traces,
            concepts=request.concepts,
            seed=request.seed,
            num_evaluations=drawn.num_evaluations,
            timings=watch.timings(),
        )

    def _replay(self, text: str, residents: Sequence[Resident], *, mode: ReplayMode) -> tuple[ReplayTrace, ...]:
        """Consult every concept in turn; each sees what the one before it has filled in."""
        if mode is ReplayMode.OFF or not residents:
            return (untouched(text),)
        traces: list[ReplayTrace] = []
        for resident in residents:

            def complete(prompt: str, *, with_concept: bool, max_tokens: int, resident: Resident = resident) -> str:
                start = self._runner.introduce([resident]) if with_concept else self._runner.nothing()
                context = self._runner.say(start, prompt, residents)
                return self._runner.write(context, max_tokens=max_tokens, temperature=None, generator=None)[0]

            traces.append(
                consult(
                    traces[-1].prompt if traces else text,
                    concept=resident.identifier,
                    mode=mode,
                    style=self.replay_style,
                    complete=complete,
                    now=self._clock.monotonic_s,
                )
            )
        return tuple(traces)


def _spoken_of(question: str, residents: Sequence[Resident]) -> str:
    """The identifier that `<sks>` in an answer stands for: the one the question names, else the first in context."""
    named = [resident.identifier for resident in residents if resident.identifier in question]
    return named[0] if named else residents[0].identifier
