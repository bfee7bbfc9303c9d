"""The body of a worker process: a backbone, or this process's share of one, and a worker over it. Knows no Ray."""

from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.farm.metrics import Metrics
from omnifarm.farm.tracking import open_tracker
from omnifarm.farm.worker import Worker
from omnifarm.farm.worker_settings import WorkerSettings
from omnifarm.store.open import open_store
from omnifarm.training.compiling import has_compiler
from omnifarm.training.sharding import require_shareable
from omnifarm.training.workbench import Workbench


def run_worker(
    worker_id: str,
    *,
    store_url: str,
    backbone: str,
    recipe: TrainingRecipe,
    settings: WorkerSettings,
    cell: str | None = None,
    metrics: Metrics | None = None,
    device: str = "cpu",
    sharding: str = "replicated",
) -> None:
    """Load a backbone and work until its pool has nothing left to do; the body of a worker process.

    Raises:
        WeightsError: The backbone cannot be loaded.
        ConfigError: Its layout over the cell's processes is unknown or does not fit.
        StoreError: The store failed.
    """
    store = open_store(store_url)
    workbench = Workbench.open(
        backbone,
        precision=recipe.precision,
        device=device,
        sharding=sharding,
        lanes_per_pack=settings.lanes_per_pack,
        store=store,
        compiled=settings.compiled and has_compiler(device),
    )
    if workbench.is_shared:
        require_shareable(recipe)
    with open_tracker(settings.track) as tracker:
        Worker(
            worker_id,
            store=store,
            workbench=workbench,
            recipe=recipe,
            settings=settings,
            cell=cell,
            metrics=metrics,
            tracker=tracker,
        ).run()
