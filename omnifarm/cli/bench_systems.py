"""Systems of the benchmark on one loaded backbone: learned soft tokens, and what can be said in a prompt instead.

The adapter between `bench/system.py` and serving; nothing else of the benchmark knows serving.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from PIL import Image

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.concept.spec import PLACEHOLDER
from omnifarm.seeding import generator
from omnifarm.serving.door import Door
from omnifarm.serving.engine import Engine
from omnifarm.serving.prompted import Known, Prompted
from omnifarm.serving.replay import ReplayStyle, ReplayTrace
from omnifarm.serving.requests import Limits
from omnifarm.store.base import Store
from omnifarm.store.memory import MemoryStore

MAX_TOKENS = 1000
"""Longest answer (METHOD section 4)."""


class LearnedSystem:
    """Soft tokens as they were learned, through the serving engine.

    Args:
        loaded: The backbone.
        store: Holds the artifacts of this row's training.
        row: For its replay.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row) -> None:
        self._loaded, self._row = loaded, row
        self._named: list[str] = []
        self._engine = self._engine_on(store)

    def fit(self, concept: BenchConcept) -> None:
        """Remember whom requests are about: the farm has learned it, and the engine finds it by its name."""
        # Named outright: not every question about a picture says whom it is about.
        self._named = [concept.name]

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        answer = self._engine.ask(question, concepts=self._named, image=picture, max_tokens=MAX_TOKENS)
        return Reply(text=answer.text, timings=answer.timings)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture, after knowledge replay where the row has it."""
        picture = self._engine.generate(prompt, concepts=self._named, replay=self._row.replay, seed=seed)
        return Reply(picture=picture.image, trace=_as_trace(picture.replay), timings=picture.timings)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture; replay stays off."""
        edited = self._engine.edit(picture, instruction, concepts=self._named, seed=seed)
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
        super().fit(concept)
        manifest, soft_tokens = self._source.load(concept.name, fingerprint=self._loaded.fingerprint)
        table_CD = soft_tokens.table()
        order = torch.randperm(len(table_CD), generator=generator(self._seed, concept.name, "shuffled"))
        shuffled = soft_tokens.layout.split(table_CD[order])
        self._engine = self._engine_on(in_memory(manifest, shuffled))


class PromptedSystem:
    """Nothing is learned: what is known about the concept stands in front of every request.

    The concept is called `<sks>` throughout, so that no famous name gives it away.

    Args:
        loaded: The backbone.
        row: `prompt` and `num_pictures` are read.
    """

    def __init__(self, loaded: LoadedBackbone, *, row: Row) -> None:
        self._prompted = Prompted(loaded)
        self._row = row
        self._generation = SamplingOptions.for_generation(loaded.config)
        self._editing = SamplingOptions.for_editing(loaded.config)
        self._size = Door(loaded.config, limits=Limits()).generation_size

    def fit(self, concept: BenchConcept) -> None:
        """Read what goes into the prompt."""
        self._concept = concept
        self._known = self._introduction(concept)

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        text = self._prompted.ask(self._said(question), known=self._known, image=picture, max_tokens=MAX_TOKENS)
        return Reply(text=text.replace(PLACEHOLDER, self._concept.identifier))

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture; text guidance drops the whole prompt."""
        drawn = self._prompted.draw(
            self._said(prompt), known=self._known, size=self._size, options=self._generation, seed=seed
        )
        return Reply(picture=drawn)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture: references first, then the source, then what is asked."""
        changed = self._prompted.edit(
            picture, self._said(instruction), known=self._known, options=self._editing, seed=seed
        )
        return Reply(picture=changed)

    def _introduction(self, concept: BenchConcept) -> Known:
        kind = self._row.prompt
        if kind in ("tp", "tp_noextra"):
            return [self._said(describe(concept, with_facts=kind == "tp"))]
        number = {"ip": self._row.num_pictures, "rap": 1}.get(kind, 0)
        photos = [concept.spec.open_image(image) for image in concept.spec.images[:number]]
        if kind == "rap":
            return [*photos, f"Name: {PLACEHOLDER}, Info: {self._said(describe(concept))}"]
        return [piece for photo in photos for piece in (f"{PLACEHOLDER} is", photo)]

    def _said(self, text: str) -> str:
        named = f"the {self._concept.spec.class_noun}" if self._row.prompt == "class" else PLACEHOLDER
        return text.replace(self._concept.identifier, named)


def in_memory(manifest: ArtifactManifest, soft_tokens: SoftTokens) -> MemoryStore:
    """Return a store with one artifact: the manifest's, with other soft tokens."""
    changed = replace(
        manifest,
        tensors_digest=tensors_digest(encode_soft_tokens(soft_tokens)),
        num_und=soft_tokens.layout.num_und,
        num_gen=soft_tokens.layout.num_gen,
    )
    store = MemoryStore()
    ConceptRepository(store).commit(changed, soft_tokens)
    return store


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
