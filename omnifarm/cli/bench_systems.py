"""Systems of the benchmark on one loaded backbone: learned soft tokens, and what can be said in a prompt instead.

The adapter between `bench/system.py` and serving; nothing else of the benchmark knows serving.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.kv_cache import Context
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.judges.chat import ChatEndpoint
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.concept.artifact import encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import PLACEHOLDER
from omnifarm.errors import ServingError
from omnifarm.seeding import generator
from omnifarm.serving.engine import Engine
from omnifarm.serving.replay import ReplayStyle, ReplayTrace
from omnifarm.serving.runner import Guidance, Runner
from omnifarm.store.base import Store
from omnifarm.store.memory import MemoryStore

MAX_TOKENS = 256
"""Longest answer."""

_TALK_SIZE = 768


class LearnedSystem:
    """Soft tokens as they were learned, through the serving engine.

    Args:
        loaded: The backbone.
        store: Holds the artifacts of this row's training.
        row: For its replay.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row) -> None:
        self._loaded, self._row = loaded, row
        self._engine = self._engine_on(store)

    def fit(self, concept: BenchConcept) -> None:
        """Nothing to do: the farm has learned it, and the engine finds it by its name."""

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        answer = self._engine.ask(question, image=picture, max_tokens=MAX_TOKENS)
        return Reply(text=answer.text, timings=answer.timings)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture, after knowledge replay where the row has it."""
        picture = self._engine.generate(prompt, replay=self._row.replay, seed=seed)
        return Reply(picture=picture.image, trace=_as_trace(picture.replay), timings=picture.timings)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture; replay stays off."""
        edited = self._engine.edit(picture, instruction, seed=seed)
        return Reply(picture=edited.image, timings=edited.timings)

    def _engine_on(self, store: Store) -> Engine:
        style = None
        if self._row.num_exemplars is not None:
            usual = ReplayStyle.from_defaults(self._loaded.config.defaults.get("replay", {}))
            style = replace(usual, num_exemplars=self._row.num_exemplars)
        return Engine(self._loaded, ConceptRepository(store), replay_style=style)


class ShuffledSystem(LearnedSystem):
    """Learned soft tokens in a random order: does their arrangement matter at all?

    Args:
        loaded: The backbone.
        store: Holds the artifacts whose rows are shuffled.
        row: For its replay.
        seed: Of the order.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row, seed: int) -> None:
        super().__init__(loaded, store=store, row=row)
        self._source = ConceptRepository(store)
        self._seed = seed

    def fit(self, concept: BenchConcept) -> None:
        """Shuffle all rows of the concept's table, across both experts."""
        manifest, soft_tokens = self._source.load(concept.name, fingerprint=self._loaded.fingerprint)
        table_CD = soft_tokens.table()
        order = torch.randperm(len(table_CD), generator=generator(self._seed, concept.name, "shuffled"))
        shuffled = soft_tokens.layout.split(table_CD[order])
        store = MemoryStore()
        digest = tensors_digest(encode_soft_tokens(shuffled))
        ConceptRepository(store).commit(replace(manifest, tensors_digest=digest), shuffled)
        self._engine = self._engine_on(store)


class PromptedSystem:
    """Nothing is learned: what is known about the concept stands in front of every request.

    The concept is called `<sks>` throughout, so that no famous name gives it away.

    Args:
        loaded: The backbone.
        row: `prompt` and `num_pictures` are read.
    """

    def __init__(self, loaded: LoadedBackbone, *, row: Row) -> None:
        self._runner = Runner(loaded)
        self._row = row
        self._generation = SamplingOptions.for_generation(loaded.config)
        self._editing = SamplingOptions.for_editing(loaded.config)
        # The engine's own choice of size; it holds no second copy of the weights.
        self._size = Engine(loaded, ConceptRepository(MemoryStore())).generation_size

    def fit(self, concept: BenchConcept) -> None:
        """Read what goes into the prompt."""
        self._concept = concept
        number = {"ip": self._row.num_pictures, "rap": 1}.get(self._row.prompt, 0)
        self._photos = [concept.spec.open_image(image) for image in concept.spec.images[:number]]

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        context = self._introduced(for_drawing=False)
        if picture is not None:
            context = self._runner.show(context, self._runner.resize(picture))
        context = self._runner.say(context, self._said(question), [])
        text, _ = self._runner.write(context, max_tokens=MAX_TOKENS, temperature=None, generator=None)
        return Reply(text=text.strip().replace(PLACEHOLDER, self._concept.identifier))

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture; text guidance drops the whole prompt."""
        main = self._runner.say(self._introduced(for_drawing=True), self._said(prompt), [])
        guidance = Guidance(main=main, without_text=self._runner.nothing(), without_image=main)
        return self._drawn(guidance, size=self._size, options=self._generation, seed=seed)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture: references first, then the source, then what is asked."""
        source, said = self._runner.resize(picture), self._said(instruction)
        latents = self._runner.encode(source, generator=generator(seed, "source"))
        known = self._introduced(for_drawing=True)
        guidance = Guidance(
            main=self._runner.say(self._runner.condition(known, source, latents), said, []),
            without_text=self._runner.condition(self._runner.nothing(), source, latents),
            without_image=self._runner.say(known, said, []),
        )
        return self._drawn(guidance, size=(source.height, source.width), options=self._editing, seed=seed)

    def _drawn(self, guidance: Guidance, *, size: tuple[int, int], options: SamplingOptions, seed: int) -> Reply:
        drawn = self._runner.denoise(guidance, size=size, options=options, generator=generator(seed, "noise"))
        return Reply(picture=self._runner.decode(drawn))

    def _introduced(self, *, for_drawing: bool) -> Context:
        context = self._runner.nothing()
        kind = self._row.prompt
        if kind in ("tp", "tp_noextra"):
            return self._runner.say(context, self._said(describe(self._concept, with_facts=kind == "tp")), [])
        for photo in self._photos:
            picture = self._runner.resize(photo)
            context = self._runner.say(context, f"{PLACEHOLDER} is", []) if kind == "ip" else context
            if for_drawing:
                latents = self._runner.encode(picture, generator=generator(0, "reference"))
                context = self._runner.condition(context, picture, latents)
            else:
                context = self._runner.show(context, picture)
        if kind == "rap":
            context = self._runner.say(context, f"Name: {PLACEHOLDER}, Info: {self._said(describe(self._concept))}", [])
        return context

    def _said(self, text: str) -> str:
        named = f"the {self._concept.spec.class_noun}" if self._row.prompt == "class" else PLACEHOLDER
        return text.replace(self._concept.identifier, named)


class EndpointSystem:
    """Another model behind an OpenAI-compatible endpoint: it answers in words, with the concept in its prompt.

    Args:
        chat: The model.
        row: `prompt` is read: `tp` shows the description, `ip` a photograph.
    """

    def __init__(self, chat: ChatEndpoint, *, row: Row) -> None:
        self._chat, self._row = chat, row

    def fit(self, concept: BenchConcept) -> None:
        """Read what goes into the prompt."""
        self._concept = concept
        shows_photo = self._row.prompt == "ip"
        photos = [concept.spec.open_image(image) for image in concept.spec.images[:1]] if shows_photo else []
        self._known: list[str | Image.Image] = (
            [f"This is {concept.identifier}:", *map(_smaller, photos)] if shows_photo else [describe(concept)]
        )

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question."""
        parts = [*self._known, *([] if picture is None else [_smaller(picture)]), question]
        reply = self._chat.ask(parts, max_tokens=MAX_TOKENS)
        if reply.failure:
            raise ServingError(f"{self._chat.id}: {reply.failure}")
        return Reply(text=reply.text)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Not done: chat endpoints answer in words."""
        raise ServingError(f"{self._chat.id} draws nothing")

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Not done: chat endpoints answer in words."""
        raise ServingError(f"{self._chat.id} edits nothing")


def describe(concept: BenchConcept, *, with_facts: bool = True) -> str:
    """Return the text prompt of a concept: its appearance, and the facts no photograph shows."""
    return " ".join((concept.spec.info, *(concept.spec.extra_info if with_facts else ())))


def _as_trace(traces: Sequence[ReplayTrace]) -> dict[str, object]:
    last = traces[-1]
    return {
        "status": last.status.value,
        "question": last.question,
        "answer": last.answer,
        "prompt": last.prompt,
        "duration_s": round(last.duration_s, 4),
        "calls": len(last.raw),
    }


def _smaller(picture: Image.Image) -> Image.Image:
    if max(picture.size) <= _TALK_SIZE:
        return picture
    shrunk = picture.copy()
    shrunk.thumbnail((_TALK_SIZE, _TALK_SIZE))
    return shrunk
