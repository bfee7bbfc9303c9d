"""The deployments: `omnifarm` answers requests, `trainer` learns what is uploaded.

    serve run serve.app:app          with OMNIFARM_STORE (and OMNIFARM_BACKBONE ...) in the environment
    serve deploy serve/serve.yaml    with the same settings under `args`

Which concept a request is about is a plain argument: Serve's multiplexed model ids would split batches by concept.
"""

import logging
import os
import threading
from typing import Any, cast

from fastapi import FastAPI
from ray import serve

from omnifarm.errors import ServingError
from omnifarm.logs import configure, event
from serve.api import build_api
from serve.assembly import build_services, build_trainer
from serve.metrics import answered
from serve.services import Services
from serve.settings import ServeSettings
from serve.sweeping import Sweeper

_ASK_S = 2.0
"""Seconds within which all replicas tell their metrics; Prometheus gives up after ten."""
_LOG = logging.getLogger("omnifarm.serve")


@serve.deployment(
    name="omnifarm",
    # As many as a replica has places (`max_waiting`): beyond them requests wait in Serve's queue, and beyond that they
    # are refused, instead of being refused by a full replica while another has room.
    max_ongoing_requests=64,
    max_queued_requests=128,
    health_check_period_s=5,
    health_check_timeout_s=30,
    graceful_shutdown_timeout_s=120,
    # A new version starts beside the old one, which goes when it has drained: nobody finds no replica.
    max_surge_percent=100,
    ray_actor_options={"num_cpus": 1},
)
@serve.ingress()
class OmniFarm:
    """One replica: one backbone and the concepts of one store."""

    def __init__(self, settings: ServeSettings, trainer: Any = None) -> None:
        configure(level=settings.log_level)
        context = serve.get_replica_context()
        self._replica = context.replica_id.unique_id
        self._handle = (context.deployment, context.app_name)
        # Only held, so that both are one application.
        self._trainer = trainer
        self._services: Services = build_services(settings, peers=self._expositions, replica=self._replica)
        shared = self._services
        sweeper = Sweeper(shared.spaces, engine=shared.engine, origins=shared.origins, clock=shared.clock)
        threading.Thread(target=sweeper.run_forever, name="sweeper", daemon=True).start()
        event(_LOG, "replica_ready", backbone=settings.backbone, fingerprint=self._services.engine.fingerprint)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The application; Serve asks for it once, after `__init__`."""
        return build_api(self._services)

    def check_health(self) -> None:
        """Have Serve replace a replica whose engine has ended or stands still.

        Raises:
            ServingError: The engine's thread is gone, or it has work and ends no step.
        """
        self._services.worker.check()

    def exposition(self) -> tuple[str, str]:
        """This replica's name and metrics."""
        return self._replica, self._services.metrics.text()

    async def _expositions(self) -> list[tuple[str, str]]:
        name, app_name = self._handle
        response = serve.get_deployment_handle(name, app_name=app_name).broadcast("exposition")
        asked = response.results_async(timeout_s=_ASK_S, return_exceptions=True)
        return await answered(asked, own=self.exposition())


@serve.deployment(
    name="trainer",
    num_replicas=1,
    health_check_period_s=10,
    graceful_shutdown_timeout_s=5,
    # It takes what the replicas leave over, so that one core is enough to serve and to learn.
    ray_actor_options={"num_cpus": 0},
)
class Trainer:
    """Learns what tenants upload, beside the replicas; without it a cell does (`OMNIFARM_TRAIN=false`)."""

    def __init__(self, settings: ServeSettings) -> None:
        configure(level=settings.log_level)
        os.nice(5)
        self._thread = threading.Thread(target=build_trainer(settings).run_forever, name="concept-trainer", daemon=True)
        self._thread.start()

    def check_health(self) -> None:
        """Have Serve replace a trainer that has ended.

        Raises:
            ServingError: Its thread is gone.
        """
        if not self._thread.is_alive():
            raise ServingError("expected a running trainer, found one that has ended")


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application; `serve run serve.app:app key=value ...` and serve.yaml's `args` come in here."""
    settings = ServeSettings.read(os.environ, {name: _text(value) for name, value in arguments.items()})
    # The decorators turn the classes into Deployments, which their annotations do not say.
    replica, trainer = cast(serve.Deployment, OmniFarm), cast(serve.Deployment, Trainer)
    if settings.train:
        return replica.bind(settings, trainer.bind(settings))
    return replica.bind(settings)


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
