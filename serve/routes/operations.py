"""`/health`, `/ready` and `/metrics`: for whoever runs the server."""

from pathlib import Path
from typing import Literal

from fastapi import APIRouter
from fastapi.responses import PlainTextResponse, Response
from pydantic import BaseModel

from omnifarm.errors import OverloadedError, ServingError, StoreError
from serve.metrics import together
from serve.services import Operator, Shared
from serve.wire.base import ErrorReply, responses

router = APIRouter(tags=["Operate"])


class HealthReply(BaseModel):
    """That the replica answers, and with what."""

    status: Literal["ok"] = "ok"
    backbone: str
    fingerprint: str


class ReadyReply(BaseModel):
    """That the replica can work."""

    status: Literal["ready"] = "ready"
    running: int
    waiting: int


@router.get("/health", response_model=HealthReply)
async def health(shared: Shared) -> HealthReply:
    """Say that the replica answers."""
    # Its name alone: where it lies concerns nobody who has no key.
    return HealthReply(backbone=Path(shared.settings.backbone).name, fingerprint=shared.engine.fingerprint)


@router.get("/ready", response_model=ReadyReply, responses={503: {"model": ErrorReply}})
async def ready(shared: Shared) -> ReadyReply:
    """Say that the replica can take work: its engine runs and its store answers (looked up every other second)."""
    try:
        shared.worker.check()
    except ServingError as error:
        raise OverloadedError(f"{error.message}; the replica will be replaced") from error
    try:
        await shared.readiness.check()
    except StoreError as error:
        raise OverloadedError("expected the store to answer, found that it does not; try again") from error
    figures = shared.engine.statistics()
    return ReadyReply(running=int(figures["running"]), waiting=int(figures["waiting"]))


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}, **responses()})
async def metrics(shared: Shared, operator: Operator) -> PlainTextResponse:
    """Counts and times of every replica, for Prometheus; needs a key with the scope `operate`."""
    text = together(await shared.peers())
    return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")
