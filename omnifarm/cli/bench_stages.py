"""UniCTokens-style: soft tokens learned in three stages that hand their results on, on our backbone.

    1 understanding   identifier (the class noun's embedding) + 16 soft tokens at centres of what the photographs show; questions alone
    2 bootstrapping   + 8 soft tokens to draw with; drawings weigh 0.8, questions 0.2
    3 completing      draws the concept, whitens what was still open late in the drawing, + 8 soft tokens at centres of
                      what the rest shows; the same weights

Questions are asked behind the soft tokens of stages 1 and 3, drawings behind those of 1 and 2. All of them go through the
understanding expert, since the published system has one. The whole takes as many steps as any other row. A
re-implementation: the published system has pictures of discrete codes and starts persons from a face embedding.

Shapes: C rows of the table (1 + 16 + 8 + 8), D width of the language model.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from omnifarm.backbone.segments import Segment, TextSegment
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.rows import Row
from omnifarm.bench.system import Reply
from omnifarm.bench.tasks import BenchConcept
from omnifarm.cli.bench_systems import LearnedSystem, in_memory
from omnifarm.concept.prepared import prepare
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.samples import ConceptSample, ConceptSamples
from omnifarm.concept.soft_tokens import SoftTokenLayout, centres
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import TrainingError
from omnifarm.seeding import derive_seed, generator
from omnifarm.serving.engine import Engine
from omnifarm.serving.events import Event, PartialImage
from omnifarm.store.base import Store
from omnifarm.store.memory import MemoryStore
from omnifarm.training.lane import Lane
from omnifarm.training.workbench import Finished, Workbench

NUM_WARM, NUM_DRAWING, NUM_COMPLETING = 16, 8, 8
"""Soft tokens that stages 1, 2 and 3 add."""
NUM_OWN_DRAWINGS = 20
"""Pictures of the concept drawn between stages 2 and 3."""
LATE = 0.7
"""Part of the denoising steps after which a picture is compared with its end (published: step 35 of 50)."""
OPEN = 0.05
"""Mean difference of a block's pixels, of 1, above which it was still open then."""
IMAGE_WEIGHT = 4.0
"""Drawings against questions, 0.8 to 0.2."""

_WARM = SoftTokenLayout(num_und=NUM_WARM, num_gen=0, is_coupled=True)
_BOTH = SoftTokenLayout(num_und=NUM_WARM, num_gen=NUM_DRAWING, is_coupled=True)


class StageSamples:
    """Samples of stages 2 and 3: drawings behind the soft tokens of stages 1 and 2, questions behind those of 1 and 3.

    Args:
        drawing: Samples whose prompts show what drawings are made behind.
        asking: The same samples with prompts that show what questions are asked behind.
        shift: Rows of the table between the soft tokens of drawings and those that `asking` means.
    """

    def __init__(self, drawing: ConceptSamples, asking: ConceptSamples, *, shift: int) -> None:
        self._drawing, self._asking, self._shift = drawing, asking, shift

    def draw(self, step: int) -> list[ConceptSample]:
        """Return the samples of optimizer step `step`."""
        drawn, asked = self._drawing.draw(step), self._asking.draw(step)
        return [
            self._moved(question) if question.task == "understanding" else drawing
            for drawing, question in zip(drawn, asked, strict=True)
        ]

    def _moved(self, sample: ConceptSample) -> ConceptSample:
        """Point a question's slots of the last soft tokens to the rows of stage 3; the others stay."""
        first = 1 + NUM_WARM
        segments: list[Segment] = [
            replace(
                segment,
                soft=tuple(replace(slot, row=slot.row + self._shift * (slot.row >= first)) for slot in segment.soft),
            )
            if isinstance(segment, TextSegment)
            else segment
            for segment in sample.segments
        ]
        return replace(sample, segments=segments)


class StagedLearner:
    """Learns concepts in three stages.

    Args:
        loaded: The backbone, of the recipe's precision.
        lanes: Concepts side by side.
        store: Keeps prepared pictures.
    """

    def __init__(self, loaded: LoadedBackbone, *, lanes: int, store: Store | None = None) -> None:
        self._loaded, self._lanes = loaded, lanes
        self._bench = Workbench(loaded, lanes_per_pack=lanes, store=store)

    def learn(
        self, specs: Sequence[ConceptSpec], *, recipe: TrainingRecipe, identity: str
    ) -> Iterator[tuple[str, Finished | TrainingError]]:
        """Yield every concept's name and what was learned, or why nothing was.

        Args:
            specs: The concepts.
            recipe: Of the row; its steps are divided among the stages.
            identity: Becomes the artifacts' version.
        """
        for start in range(0, len(specs), self._lanes):
            yield from self._learn(specs[start : start + self._lanes], recipe=recipe, identity=identity)

    def _learn(
        self, specs: Sequence[ConceptSpec], *, recipe: TrainingRecipe, identity: str
    ) -> Iterator[tuple[str, Finished | TrainingError]]:
        by_name = {spec.name: spec for spec in specs}
        recipes = [_recipe_of(recipe, stage) for stage in (1, 2, 3)]
        lanes = [self._first_lane(spec, recipe=recipes[0], identity=identity) for spec in specs]
        warm = self._trained(lanes)
        second = [self._second_lane(by_name[lane.name], lane, recipe=recipes[1]) for lane in warm]
        drawing = self._trained(second)
        third = list(self._third_lanes([(by_name[lane.name], lane) for lane in drawing], recipes=recipes))
        self._trained(third)
        last = {lane.name: lane for lane in (*lanes, *second, *third)}
        for name, lane in last.items():
            if lane.stopped is not None:
                yield name, TrainingError(f"{name}: {lane.stopped}")
            else:
                yield name, self._bench.finish(lane, spec=by_name[name], identity=identity)

    def _first_lane(self, spec: ConceptSpec, *, recipe: TrainingRecipe, identity: str) -> Lane:
        named = recipe.with_overrides({"identifier_init": spec.class_noun})
        return self._bench.lane(spec, recipe=named, identity=identity)

    def _second_lane(self, spec: ConceptSpec, before: Lane, *, recipe: TrainingRecipe) -> Lane:
        draws = torch.randn(NUM_DRAWING, before.soft.shape[1], generator=generator(recipe.seed, spec.name, "drawing"))
        table_CD = torch.cat([before.result.cpu(), recipe.init_std * draws])
        return self._lane(spec, recipe=recipe, asking=_WARM, shift=0, table_CD=table_CD, train_s=before.train_s)

    def _third_lanes(
        self, before: Sequence[tuple[ConceptSpec, Lane]], *, recipes: Sequence[TrainingRecipe]
    ) -> Iterator[Lane]:
        began_s = time.monotonic()
        pictures = self._own_drawings(before, recipe=recipes[1])
        drawing_s = (time.monotonic() - began_s) / max(1, len(before))
        for spec, lane in before:
            features = [prepare(self._loaded, picture).features for picture in pictures[spec.name]]
            visual_ND = self._bench.visual_tokens(features)
            draws = generator(recipes[2].seed, spec.name, "completing")
            table_CD = torch.cat([lane.result.cpu(), centres(visual_ND, NUM_COMPLETING, draws=draws)])
            yield self._lane(
                spec,
                recipe=recipes[2],
                asking=_BOTH,
                shift=NUM_DRAWING,
                table_CD=table_CD,
                train_s=lane.train_s + drawing_s,
            )

    def _lane(
        self,
        spec: ConceptSpec,
        *,
        recipe: TrainingRecipe,
        asking: SoftTokenLayout,
        shift: int,
        table_CD: Tensor,
        train_s: float,
    ) -> Lane:
        source = StageSamples(
            self._bench.samples(spec, recipe=recipe, layout=_BOTH),
            self._bench.samples(spec, recipe=recipe, layout=asking),
            shift=shift,
        )
        lane = Lane.start(spec.name, recipe=recipe, source=source, soft_CD=table_CD.to(self._loaded.model.device))
        lane.train_s = train_s
        return lane

    def _trained(self, lanes: Sequence[Lane]) -> list[Lane]:
        """Train lanes to their ends; return those that were not stopped."""
        trainer = self._bench.trainer
        for lane in lanes:
            trainer.add(lane)
        while trainer.lanes:
            trainer.step()
        return [lane for lane in lanes if lane.stopped is None]

    def _own_drawings(
        self, before: Sequence[tuple[ConceptSpec, Lane]], *, recipe: TrainingRecipe
    ) -> dict[str, list[Image.Image]]:
        """Draw every concept with what it has learned so far, and whiten what was still open late in the drawing."""
        store = MemoryStore()
        for spec, lane in before:
            done = self._bench.finish(lane, spec=spec, identity=recipe.digest())
            ConceptRepository(store).commit(done.manifest, done.soft_tokens)
        engine = Engine(self._loaded, ConceptRepository(store))
        late = max(1, round(LATE * (engine.generation_options.num_timesteps - 1)))
        block = self._loaded.config.latent_downsample
        pictures: dict[str, list[Image.Image]] = {}
        for spec, _ in before:
            waiting = []
            for number in range(NUM_OWN_DRAWINGS):
                seen = _Seen()
                request = engine.door.generate(
                    f"A photo of {spec.identifier}.",
                    concepts=[spec.name],
                    replay="off",
                    seed=derive_seed(recipe.seed, spec.name, "own", number),
                    partial_every=late,
                )
                waiting.append((engine.submit(request, seen), seen))
            while any(not ticket.is_done for ticket, _ in waiting):
                engine.step()
            pictures[spec.name] = [
                whiten(seen.first, ticket.result().image, block=block)  # type: ignore[union-attr]
                for ticket, seen in waiting
            ]
        return pictures


class _Seen:
    """Keeps the first partial picture of a drawing."""

    first: Image.Image | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, PartialImage) and self.first is None:
            self.first = event.image


def whiten(late: Image.Image | None, end: Image.Image, *, block: int) -> Image.Image:
    """Return a picture in which the blocks that still differed late in the drawing are white.

    Args:
        late: What the picture looked like then; None whitens nothing.
        end: What it became, of the same size.
        block: Pixels of a block's sides.
    """
    if late is None:
        return end
    pixels = np.array(end)
    differs = np.abs(np.asarray(late).astype(np.float32) - pixels).mean(axis=-1) / 255
    for top in range(0, pixels.shape[0], block):
        for left in range(0, pixels.shape[1], block):
            if differs[top : top + block, left : left + block].mean() > OPEN:
                pixels[top : top + block, left : left + block] = 255
    return Image.fromarray(pixels)


def _recipe_of(recipe: TrainingRecipe, stage: int) -> TrainingRecipe:
    changed: dict[str, object] = {
        "steps": max(1, recipe.steps // 3),
        "num_und": NUM_WARM,
        "num_gen": {1: 0, 2: NUM_DRAWING, 3: NUM_DRAWING + NUM_COMPLETING}[stage],
        "seed": derive_seed(recipe.seed, "stage", stage) if stage > 1 else recipe.seed,
    }
    if stage == 1:
        changed |= {"share_understanding": 1.0, "share_generation": 0.0, "share_editing": 0.0}
    else:
        changed |= {"lambda_image": IMAGE_WEIGHT}
    return recipe.with_overrides(changed)


class StagedSystem:
    """Answers behind the soft tokens of stages 1 and 3, draws and edits behind those of 1 and 2.

    Args:
        loaded: The backbone.
        store: Holds the artifacts of this row's training.
        row: For its replay.
    """

    def __init__(self, loaded: LoadedBackbone, *, store: Store, row: Row) -> None:
        self._loaded, self._row = loaded, row
        self._source = ConceptRepository(store)

    def fit(self, concept: BenchConcept) -> None:
        """Cut what was learned into its two sides."""
        manifest, soft_tokens = self._source.load(concept.name, fingerprint=self._loaded.fingerprint)
        sides = []
        for rows in (slice(NUM_DRAWING, None), slice(NUM_DRAWING)):
            side = replace(soft_tokens, gen=soft_tokens.gen[rows])
            system = LearnedSystem(self._loaded, store=in_memory(manifest, side), row=self._row)
            system.fit(concept)
            sides.append(system)
        self._answering, self._drawing = sides

    def answer(self, question: str, picture: Image.Image | None) -> Reply:
        """Answer a question, greedily."""
        return self._answering.answer(question, picture)

    def generate(self, prompt: str, *, seed: int) -> Reply:
        """Draw a picture, without replay."""
        return self._drawing.generate(prompt, seed=seed)

    def edit(self, picture: Image.Image, instruction: str, *, seed: int) -> Reply:
        """Change a picture."""
        return self._drawing.edit(picture, instruction, seed=seed)
