"""Learning of rows that the farm does not learn: concept by concept, what is committed is not learned again."""

from collections.abc import Mapping, Sequence

from omnifarm.backbone.weights import LoadedBackbone
from omnifarm.bench.rows import Row
from omnifarm.cli.bench_lora import learn_lora, lora_key, train_seconds
from omnifarm.cli.bench_stages import StagedLearner
from omnifarm.cli.output import people
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.repository import ConceptRepository
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, TrainingError
from omnifarm.store.base import Store


def learn(
    row: Row,
    specs: Sequence[ConceptSpec],
    *,
    loaded: LoadedBackbone,
    store: Store,
    recipe: TrainingRecipe,
    lanes: int,
) -> None:
    """Learn what is missing; a concept that cannot be learned is named, and the others go on.

    Args:
        row: `staged` or `lora`.
        specs: The concepts.
        loaded: The backbone, of the recipe's precision.
        store: Of this training.
        recipe: Of the row.
        lanes: Concepts side by side, where that is possible.
    """
    done = learned_seconds(row, store=store)
    missing = [spec for spec in specs if spec.name not in done]
    if row.kind == "lora":
        for spec in missing:
            try:
                store.put(lora_key(spec.name), learn_lora(loaded, spec, recipe=recipe))
            except (ConceptError, TrainingError) as error:
                people.print(f"not learned: {error}", markup=False)
        return
    repository = ConceptRepository(store)
    learner = StagedLearner(loaded, lanes=lanes, store=store)
    for name, found in learner.learn(missing, recipe=recipe, identity=recipe.digest()):
        if isinstance(found, TrainingError):
            people.print(f"not learned: {name}: {found}", markup=False)
        else:
            repository.commit(found.manifest, found.soft_tokens, curve=found.curve)


def learned_seconds(row: Row, *, store: Store) -> Mapping[str, float]:
    """Return concept to seconds of learning, of everything a training has committed."""
    if row.kind == "lora":
        keys = store.list(lora_key("").removesuffix(".safetensors"))
        return {key.rpartition("/")[2].removesuffix(".safetensors"): train_seconds(store.get(key).data) for key in keys}
    return {manifest.name: manifest.train_s for manifest in ConceptRepository(store).list()}
