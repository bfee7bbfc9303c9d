"""From a concept to its lane and from a finished lane to its artifact, over one loaded backbone.

A workbench holds what all lanes of a process share: the frozen backbone, pictures prepared once, the trainer.
Knows no queue or cluster, and a store only as the place where prepared pictures outlive the process.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from omnifarm.backbone.fp8 import use_fp8
from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.clock import Clock, SystemClock
from omnifarm.concept.artifact import ArtifactManifest, encode_soft_tokens, tensors_digest
from omnifarm.concept.examples import can_ask_recognition
from omnifarm.concept.held_out import split_held_out
from omnifarm.concept.prepared import PreparedImages
from omnifarm.concept.recipe import Precision, TrainingRecipe
from omnifarm.concept.samples import ConceptSamples
from omnifarm.concept.self_description import Looks
from omnifarm.concept.soft_tokens import SoftTokenLayout, SoftTokens, initial_table
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConfigError, TrainingError
from omnifarm.store.base import Store
from omnifarm.training.checkpoint import load_lane, saved_looks
from omnifarm.training.compiling import choose_attention, compile_backbone
from omnifarm.training.curves import curve_parquet, loss_curve
from omnifarm.training.lane import Lane
from omnifarm.training.loop import Trainer
from omnifarm.training.plan import StepCost, lane_costs, measuring_cost
from omnifarm.training.precision import precision_of, serves, weights_dtype
from omnifarm.training.sharded_backbone import open_backbone
from omnifarm.training.sharding import NEEDS_WHOLE_FOR_FLOAT8, Replicated, Sharding, require_shareable


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """What a finished lane leaves behind."""

    manifest: ArtifactManifest
    """What it is and what it was made from."""
    soft_tokens: SoftTokens
    """The learned vectors."""
    curve: bytes
    """Every step's losses as parquet (see `curves.curve_parquet`)."""


class Workbench:
    """Builds lanes and artifacts for one backbone, and owns the trainer that steps them.

    Args:
        backbone: Loaded with the type the recipes ask for.
        sharding: How its weights lie; None when this process holds them all.
        lanes_per_pack: See `Trainer`.
        store: Keeps prepared pictures for the next process; None keeps them in memory alone.
        clock: For training time and creation dates.
    """

    def __init__(
        self,
        backbone: LoadedBackbone,
        *,
        sharding: Sharding | None = None,
        lanes_per_pack: int = 1,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._backbone = backbone
        self._sharding = sharding or Replicated(backbone.model)
        self._clock = clock or SystemClock()
        self._images = PreparedImages(backbone, store=store)
        self.trainer = Trainer(
            self._sharding,
            special_ids=backbone.special_ids,
            config=backbone.config,
            lanes_per_pack=lanes_per_pack,
            clock=self._clock,
        )

    @classmethod
    def open(
        cls,
        backbone: str,
        *,
        precision: Precision,
        device: str = "cpu",
        sharding: str = "replicated",
        lanes_per_pack: int = 1,
        store: Store | None = None,
        compiled: bool = False,
        clock: Clock | None = None,
    ) -> "Workbench":
        """Load a backbone by name or folder and set up a workbench for it.

        `compiled` fuses what surrounds attention (see `Backbone.set_training_mode`), where a process holds the whole
        backbone; a sharded one gathers its weights between the parts that would be fused and stays as it is.

        Raises:
            WeightsError: The backbone cannot be loaded.
            ConfigError: Its layout is unknown, does not fit, or needs processes that are not there; or 8-bit products
                are asked of a shared backbone or of sides they cannot take.
        """
        dtype = weights_dtype(precision, device)
        loaded, layout = open_backbone(backbone, sharding=sharding, dtype=dtype, device=device)
        if precision == "float8":
            if not isinstance(layout, Replicated):
                raise ConfigError(NEEDS_WHOLE_FOR_FLOAT8)
            use_fp8(loaded.model)
        if isinstance(layout, Replicated):
            choose_attention(loaded)
            if compiled:
                compile_backbone(loaded)
        # What is in memory now stays as long as the process: walking it again cost 4 % of all steps.
        gc.freeze()
        return cls(loaded, sharding=layout, lanes_per_pack=lanes_per_pack, store=store, clock=clock)

    @property
    def fingerprint(self) -> str:
        """Identity of the backbone."""
        return self._backbone.fingerprint

    @property
    def is_shared(self) -> bool:
        """Whether other processes take part in every step, so that none can be repeated without them."""
        return not isinstance(self._sharding, Replicated)

    def lane(
        self,
        spec: ConceptSpec,
        *,
        recipe: TrainingRecipe,
        identity: str,
        checkpoint: bytes | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> Lane:
        """Build the lane of a concept, without adding it to the trainer.

        Every picture is prepared now, so that a bad one stops the concept before its first step.

        Args:
            spec: The concept.
            recipe: How to learn it.
            identity: Digest of concept, recipe and backbone.
            checkpoint: Where an earlier lane of this identity stopped, or None.
            between: Called before each picture is prepared or asked about, which may take long in all; what it raises
                goes through.

        Raises:
            ConceptError: The concept's data cannot be used.
            ConfigError: The recipe does not fit the backbone.
            TrainingError: The checkpoint is damaged or of another identity, or the backbone of another precision.
        """
        model = self._backbone.model
        if not serves(model, recipe.precision):
            raise TrainingError(
                f"the recipe of {spec.name!r} asks for {recipe.precision} weights, the backbone was loaded as "
                f"{precision_of(model)}; train it in a run of its own"
            )
        if self.is_shared:
            require_shareable(recipe)
        self._images.get_all(spec, between=between)
        learned, held_out = spec, None
        if recipe.held_out_photos:
            learned, measured = split_held_out(spec, count=recipe.held_out_photos)
            # What it looks like is asked of the photographs that it learns from.
            held_out = self.samples(measured, recipe=recipe, looks=())
        looks = None if checkpoint is None else saved_looks(checkpoint)
        source = self.samples(learned, recipe=recipe, looks=looks, between=between)
        if checkpoint is not None:
            return load_lane(
                checkpoint, identity=identity, recipe=recipe, source=source, held_out=held_out, device=model.device
            )
        tokenizer = self._backbone.tokenizer
        class_ids = tokenizer.encode_user(spec.class_noun)
        identifier_ids = tokenizer.encode(recipe.identifier_init) if recipe.identifier_init else ()
        table_CD = initial_table(
            SoftTokenLayout.of_recipe(recipe),
            recipe=recipe,
            # A sharded embedding is never whole: only the rows that count are fetched, and numbered anew.
            embedding_VD=self._sharding.embedding_rows([*class_ids, *identifier_ids]),
            class_ids=range(len(class_ids)),
            identifier_ids=range(len(class_ids), len(class_ids) + len(identifier_ids)),
            visual_ND=self.visual_tokens([self._images.get(learned, image).features for image in learned.images])
            if recipe.init == "visual"
            else None,
            name=spec.name,
        )
        return Lane.start(
            spec.name,
            recipe=recipe,
            source=source,
            soft_CD=table_CD.to(model.device),
            held_out=held_out,
            looks=source.looks,
        )

    def samples(
        self,
        spec: ConceptSpec,
        *,
        recipe: TrainingRecipe,
        layout: SoftTokenLayout | None = None,
        looks: Looks | None = None,
        between: Callable[[], None] = lambda: None,
    ) -> ConceptSamples:
        """Return the samples of a concept's training; arguments as of `ConceptSamples`."""
        return ConceptSamples(
            spec,
            recipe=recipe,
            backbone=self._backbone,
            images=self._images,
            layout=layout,
            looks=looks,
            between=between,
        )

    @torch.no_grad()
    def visual_tokens(self, features: Sequence[Tensor]) -> Tensor:
        """Return what the language model sees of prepared pictures, (N, D), without positions.

        Args:
            features: Of each picture, (n, V), see `PreparedImage`.
        """
        model = self._backbone.model
        visual: Tensor = model.connector(torch.cat(list(features)).to(model.device, model.dtype))
        return visual

    def step_cost(self, lanes: Sequence[Lane], *, steps: range) -> StepCost:
        """Count what some steps of lanes in one pack take, without taking them."""
        return lane_costs(
            lanes,
            special_ids=self._backbone.special_ids,
            config=self._backbone.config,
            bytes_per_number=self._backbone.model.dtype.itemsize,
            keeps_scores=self._backbone.model.device.type == "cpu",
            steps=steps,
        )

    def measuring_cost(self, lanes: Sequence[Lane]) -> StepCost | None:
        """Count what one held-out measurement of every lane takes; None if their recipe has none."""
        return measuring_cost(
            lanes,
            special_ids=self._backbone.special_ids,
            config=self._backbone.config,
            bytes_per_number=self._backbone.model.dtype.itemsize,
            keeps_scores=self._backbone.model.device.type == "cpu",
        )

    @property
    def weight_bytes(self) -> int:
        """Bytes of all frozen weights: the model's, and the autoencoder's that prepares its pictures."""
        modules = (self._backbone.model, self._backbone.autoencoder.module)
        return sum(one.numel() * one.element_size() for module in modules for one in module.parameters())

    def finish(self, lane: Lane, *, spec: ConceptSpec, identity: str) -> Finished:
        """Return a finished lane's artifact.

        Args:
            lane: Done, not stopped.
            spec: The concept it was learned from.
            identity: Digest of concept, recipe and backbone; becomes the artifact's version.

        Raises:
            TrainingError: The lane has steps to take or was stopped; its soft tokens are not the recipe's result.
        """
        if not lane.is_done or lane.stopped is not None:
            raise TrainingError(
                f"the lane of {lane.name!r} is not finished: step {lane.step} of {lane.recipe.steps}, "
                f"stopped: {lane.stopped or 'no'}"
            )
        soft_tokens = SoftTokenLayout.of_recipe(lane.recipe).split(lane.result)
        manifest = ArtifactManifest(
            name=spec.name,
            version=identity,
            class_noun=spec.class_noun,
            fingerprint=self.fingerprint,
            data_digest=spec.digest(),
            tensors_digest=tensors_digest(encode_soft_tokens(soft_tokens)),
            num_und=lane.recipe.num_und,
            num_gen=lane.recipe.num_gen,
            width=soft_tokens.width,
            is_coupled=soft_tokens.is_coupled,
            recipe=lane.recipe.to_json(),
            losses=loss_curve(lane),
            train_s=round(lane.train_s, 3),
            created_at_s=round(self._clock.now_s(), 3),
            versions={"omnifarm": _own_version(), "torch": str(torch.__version__)},
        )
        return Finished(
            manifest=replace(manifest, warnings=_warnings(lane, spec)),
            soft_tokens=soft_tokens,
            curve=curve_parquet(lane),
        )


def _warnings(lane: Lane, spec: ConceptSpec) -> tuple[str, ...]:
    curve = loss_curve(lane, max_points=1)
    missing = [name for name in ("understanding", "generation", "editing") if curve[name] == [None]]
    found = [f"{task} was not learned: the concept's data or the recipe hold no sample of it" for task in missing]
    if "understanding" not in missing and not can_ask_recognition(spec):
        found.append("recognition was not learned: the concept came without pictures of anything else")
    return tuple(found)


def _own_version() -> str:
    try:
        return version("omnifarm")
    except PackageNotFoundError:
        # A cluster's workers may run from an uploaded working directory, where nothing is installed.
        return "working directory"
