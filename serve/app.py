"""The server: one Ray Serve deployment, a FastAPI application in front of an `Engine`.

    serve run serve.app:app          with OMNIFARM_STORE (and OMNIFARM_BACKBONE ...) in the environment
    serve deploy serve/serve.yaml    with the same settings under `args`

The backbone does one request at a time, in a thread of its own, so that health and errors answer meanwhile. Which
concept a request is about is a plain argument: Serve's multiplexed model ids would split batches by concept.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

from fastapi import FastAPI, Request
from ray import serve

from omnifarm.backbone.flow import SamplingOptions
from omnifarm.errors import OverloadedError
from omnifarm.logs import configure, event
from serve.assembly import build_engine
from serve.bodies import openapi_body, read_body
from serve.errors import RETRY_AFTER_S, install, responses
from serve.pictures import decode_picture
from serve.schemas import (
    AskBody,
    AskReply,
    ConceptEntry,
    ConceptsReply,
    EditBody,
    GenerateBody,
    HealthReply,
    PictureReply,
)
from serve.settings import ServeSettings

_LOG = logging.getLogger("omnifarm.serve")
Result = TypeVar("Result")

api = FastAPI(
    title="OmniFarm",
    version="1",
    description="Ask, draw and edit with learned concepts. Name a concept as `<maeve>` in the text, or list it.",
)
install(api)


@serve.deployment(name="omnifarm", max_ongoing_requests=64, ray_actor_options={"num_cpus": 1})
@serve.ingress(api)
class OmniFarm:
    """One replica: one backbone and the concepts of one store."""

    def __init__(self, settings: ServeSettings) -> None:
        configure(level=settings.log_level)
        self._settings = settings
        self._engine = build_engine(settings)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._waiting = 0
        event(_LOG, "replica_ready", backbone=settings.backbone, fingerprint=self._engine.fingerprint)

    @api.get("/health", response_model=HealthReply, responses=responses(503))
    async def health(self) -> HealthReply:
        """Say that the replica can work, and with which backbone."""
        return HealthReply(
            status="ok",
            backbone=self._settings.backbone,
            fingerprint=self._engine.fingerprint,
            waiting=self._waiting,
        )

    @api.get("/v1/concepts", response_model=ConceptsReply, responses=responses(503))
    async def concepts(self) -> ConceptsReply:
        """List the learned concepts; a new one appears without a restart."""
        manifests = await asyncio.to_thread(self._engine.list_concepts)
        return ConceptsReply(
            concepts=[
                ConceptEntry(
                    name=manifest.identifier.strip("<>"),
                    identifier=manifest.identifier,
                    class_noun=manifest.class_noun,
                    version=manifest.version,
                )
                for manifest in manifests
            ]
        )

    @api.post(
        "/v1/ask",
        response_model=AskReply,
        responses=responses(404, 413, 415, 422, 503),
        openapi_extra=openapi_body(AskBody),
    )
    async def ask(self, request: Request) -> AskReply:
        """Answer a question about a picture, or about a concept as such."""
        body, data = await read_body(request, AskBody, max_bytes=self._settings.max_body_bytes)
        image = None if data is None else await asyncio.to_thread(decode_picture, data, settings=self._settings)
        answer = await self._run(
            lambda: self._engine.ask(
                body.question,
                concepts=body.concepts,
                image=image,
                max_tokens=body.max_tokens,
                temperature=body.temperature,
                seed=body.seed,
            )
        )
        return AskReply.of(answer)

    @api.post(
        "/v1/generate",
        response_model=PictureReply,
        responses=responses(404, 413, 415, 422, 503),
        openapi_extra=openapi_body(GenerateBody),
    )
    async def generate(self, request: Request) -> PictureReply:
        """Draw a picture; the reply tells what the concept was asked before and what was drawn."""
        body, _ = await read_body(request, GenerateBody, max_bytes=self._settings.max_body_bytes)
        height, width = self._engine.generation_size
        picture = await self._run(
            lambda: self._engine.generate(
                body.prompt,
                concepts=body.concepts,
                size=(body.height or height, body.width or width),
                options=SamplingOptions.from_mapping(body.options(), base=self._engine.generation_options),
                seed=body.seed,
                replay=body.replay,
            )
        )
        return PictureReply.of(picture)

    @api.post(
        "/v1/edit",
        response_model=PictureReply,
        responses=responses(404, 413, 415, 422, 503),
        openapi_extra=openapi_body(EditBody),
    )
    async def edit(self, request: Request) -> PictureReply:
        """Change a picture as the instruction says."""
        body, data = await read_body(request, EditBody, max_bytes=self._settings.max_body_bytes)
        image = await asyncio.to_thread(decode_picture, data or b"", settings=self._settings)
        picture = await self._run(
            lambda: self._engine.edit(
                image,
                body.instruction,
                concepts=body.concepts,
                options=SamplingOptions.from_mapping(body.options(), base=self._engine.editing_options),
                seed=body.seed,
                replay=body.replay,
            )
        )
        return PictureReply.of(picture)

    async def _run(self, work: Callable[[], Result]) -> Result:
        """Do `work` when the backbone is free.

        A client that leaves while it waits takes its request out of the line; one that leaves later has the
        backbone finish its request first.

        Raises:
            OverloadedError: Too many requests wait already.
        """
        if self._waiting >= self._settings.max_waiting:
            raise OverloadedError(
                f"expected fewer than {self._settings.max_waiting} waiting requests, found {self._waiting}; "
                f"try again in {RETRY_AFTER_S} s",
                waiting=self._waiting,
                retry_after_s=RETRY_AFTER_S,
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        finally:
            self._waiting -= 1


def app(arguments: dict[str, Any]) -> serve.Application:
    """Build the application; `serve run serve.app:app key=value ...` and serve.yaml's `args` come in here."""
    given = {name: str(value) for name, value in arguments.items()}
    # The decorators turn the class into a Deployment, which its annotations do not say.
    deployment = cast(serve.Deployment, OmniFarm)
    return deployment.bind(ServeSettings.read(os.environ, given))
