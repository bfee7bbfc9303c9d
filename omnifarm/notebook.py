"""The whole of OmniFarm in a few calls, for notebooks and other programs: read, learn, keep, ask, draw, edit.

What a command does in one process, as functions; nothing here is a second way to do it. `import omnifarm` offers
these names and loads this file with the first of them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.soft_tokens import SoftTokens
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, TrainingError
from omnifarm.farm.job import JobIdentity
from omnifarm.miniature.benchmark import write_concept_folders
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Limits
from omnifarm.store.open import open_store
from omnifarm.training.precision import precision_of
from omnifarm.training.workbench import Finished, Workbench


def draw_concepts(folder: str | Path, *, seed: int = 0, persons: int = 0, pets: int = 1, objects: int = 0) -> list[str]:
    """Write concept folders of the miniature's drawn world, for trying things out; return their names.

    Args:
        folder: Must be empty or absent.
        seed: Which concepts.
        persons: How many persons.
        pets: How many pets.
        objects: How many objects.

    Raises:
        ConfigError: `folder` holds something already.
    """
    return write_concept_folders(Path(folder), seed=seed, num_persons=persons, num_pets=pets, num_objects=objects)


def read_concepts(place: str | Path) -> list[ConceptSpec]:
    """Read a concept folder, or a folder of them (any layout, or `s3://...`).

    Raises:
        ConceptError: One of them cannot be learned; the message says why.
    """
    found = []
    for _, spec in load_concepts(str(place)):
        if isinstance(spec, ConceptError):
            raise spec
        found.append(spec)
    return found


def learn(
    backbone: LoadedBackbone,
    concepts: Sequence[ConceptSpec],
    *,
    on_step: Callable[[int], None] | None = None,
    **settings: Any,
) -> list[Finished]:
    """Learn concepts side by side, in this process.

    Args:
        backbone: Frozen; nothing of it changes.
        concepts: What to learn.
        on_step: Told the number of finished steps.
        **settings: Recipe fields instead of the backbone's own, such as `steps=100`.

    Returns:
        Manifest and soft tokens of each, in order.

    Raises:
        ConfigError: A setting does not exist or is out of range.
        ConceptError: A concept's data cannot be used.
        TrainingError: A concept could not be learned.
    """
    precision = precision_of(backbone.model)
    own = TrainingRecipe.from_json(backbone.config.defaults.get("recipe", {}))
    recipe = own.with_overrides({**settings, "precision": precision})
    workbench = Workbench(backbone, lanes_per_pack=max(1, min(len(concepts), 4)))
    identities = {
        concept.name: JobIdentity(
            spec_digest=concept.digest(), recipe_digest=recipe.digest(), backbone_fingerprint=backbone.fingerprint
        ).job_id
        for concept in concepts
    }
    by_name = {concept.name: concept for concept in concepts}
    for name, concept in by_name.items():
        workbench.trainer.add(workbench.lane(concept, recipe=recipe, identity=identities[name]))
    done: dict[str, Finished] = {}
    steps = 0
    while workbench.trainer.lanes:
        for lane in workbench.trainer.step():
            if lane.stopped is not None:
                raise TrainingError(f"concept {lane.name!r} could not be learned: {lane.stopped}")
            done[lane.name] = workbench.finish(lane, spec=by_name[lane.name], identity=identities[lane.name])
        steps += 1
        if on_step is not None:
            on_step(steps)
    return [done[concept.name] for concept in concepts]


def save(learned: Finished | Sequence[Finished], store: str) -> None:
    """Commit what was learned to a store (a folder or `s3://...`); safe to repeat.

    Raises:
        StoreError: The store failed.
    """
    repository = ConceptRepository(open_store(store))
    for one in [learned] if isinstance(learned, Finished) else learned:
        repository.commit(one.manifest, one.soft_tokens, curve=one.curve)


def load(store: str, name: str, *, backbone: LoadedBackbone) -> tuple[ArtifactManifest, SoftTokens]:
    """Return the newest version of a learned concept: its manifest and its soft tokens.

    Raises:
        NotFoundError: The store has no such concept.
        ArtifactError: It is damaged or was learned for another backbone.
    """
    return ConceptRepository(open_store(store)).load(name, fingerprint=backbone.fingerprint)


def open_engine(backbone: LoadedBackbone, store: str, *, limits: Limits | None = None) -> Engine:
    """Return an engine that asks, draws and edits (`ask`, `generate`, `edit`) with a store's concepts.

    Args:
        backbone: The one they were learned for.
        store: A folder or `s3://...`; what is saved there later is found without opening it again.
        limits: What one request may cost.
    """
    return Engine(backbone, ConceptRepository(open_store(store)), limits=limits)
