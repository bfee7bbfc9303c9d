"""From settings to working parts: a replica's services, and a trainer."""

import json

import httpx
import torch

from omnifarm.allocator import keep_freed_memory
from omnifarm.backbone.flow import SamplingOptions
from omnifarm.backbone.image_ops import ImageTransform
from omnifarm.backbone.weights import load_backbone
from omnifarm.clock import SystemClock
from omnifarm.errors import ConfigError
from omnifarm.farm.submission import inspect_backbone
from omnifarm.serving.capacity import Capacity
from omnifarm.serving.engine import Engine
from omnifarm.serving.requests import Limits
from omnifarm.serving.scheduler import Budget
from omnifarm.serving.worker import EngineWorker
from omnifarm.store.probe import probe_conditional_writes
from omnifarm.tenancy import Accounts
from omnifarm.training.precision import weights_dtype
from serve.admission import Admission
from serve.metrics import EngineFigures, Metrics
from serve.origins import Origins
from serve.pictures import Intake
from serve.previews import Previews
from serve.readiness import Readiness
from serve.services import Peers, Services
from serve.settings import ServeSettings
from serve.spaces import Spaces
from serve.training import ConceptTrainer


def build_services(settings: ServeSettings, *, peers: Peers | None = None, replica: str = "0") -> Services:
    """Load the backbone, open the store, start the engine.

    Args:
        settings: The replica's settings.
        peers: Returns the metrics of every replica behind Ray Serve's proxy; None where there is neither.
        replica: Name of this one.

    Raises:
        OmniFarmError: The backbone or the store cannot be used; the replica does not start.
    """
    keep_freed_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    clock, metrics = SystemClock(), Metrics()
    spaces = _spaces(settings)
    probe_conditional_writes(spaces.root)
    dtype = weights_dtype(settings.dtype, settings.device)
    loaded = load_backbone(settings.backbone, dtype=dtype, device=settings.device)
    loaded.model.set_training_mode(compiled=settings.compiled)
    previews = Previews(spaces, clock=clock)
    engine = Engine(
        loaded,
        previews.repository,
        limits=Limits(
            max_text_chars=settings.max_text_chars, max_images=settings.max_images, max_waiting=settings.max_waiting
        ),
        capacity=Capacity(
            cached_tokens=settings.cached_tokens,
            budget=Budget.of(settings.step_tokens) if settings.step_tokens else None,
        ),
        clock=clock,
    )
    if settings.compiled:
        # Both experts, in the shapes' general form: whoever comes first does not wait for a compiler.
        _compile(engine)
    metrics.registry.register(EngineFigures(engine))

    async def this_one() -> list[tuple[str, str]]:
        return [(replica, metrics.text())]

    return Services(
        settings=settings,
        clock=clock,
        engine=engine,
        worker=EngineWorker(engine, stall_s=settings.stall_s),
        latent_stride=loaded.config.latent_downsample,
        accounts=Accounts(spaces.root, clock=clock),
        spaces=spaces,
        previews=previews,
        origins=Origins(),
        admission=Admission(clock=clock, max_waiting=settings.max_waiting),
        metrics=metrics,
        readiness=Readiness(spaces.root, clock=clock),
        intake=Intake(settings, rule=ImageTransform(config=loaded.config.vae_transform)),
        http=httpx.AsyncClient(),
        peers=peers or this_one,
        replica=replica,
        is_behind_proxy=peers is not None,
    )


def _compile(engine: Engine) -> None:
    """Run a pass of every kind."""
    options = SamplingOptions(num_timesteps=3, cfg_img_scale=2.0)
    picture = engine.generate("A photo.", options=options, replay="off").image
    engine.edit(picture, "Change it.", options=options, replay="off")
    engine.ask("What is this?", image=picture, max_tokens=3)


def build_trainer(settings: ServeSettings, *, turn_s: float = 60.0) -> ConceptTrainer:
    """Open the store for a trainer; the backbone is loaded when there is something to learn.

    Raises:
        OmniFarmError: The store cannot be used.
    """
    if settings.threads:
        torch.set_num_threads(settings.threads)
    spaces = _spaces(settings)
    return ConceptTrainer(
        spaces,
        root=spaces.root,
        backbone=settings.backbone,
        lanes=settings.train_lanes,
        checkpoint_s=settings.checkpoint_s,
        device=settings.device,
        clock=SystemClock(),
        turn_s=turn_s,
    )


def _spaces(settings: ServeSettings) -> Spaces:
    try:
        overrides = json.loads(settings.recipe or "{}")
    except ValueError:
        raise ConfigError(f"expected a JSON object in OMNIFARM_RECIPE, found {settings.recipe[:80]!r}") from None
    backbone = inspect_backbone(settings.backbone, overrides=overrides)
    return Spaces(settings.store, backbone=backbone, clock=SystemClock())
