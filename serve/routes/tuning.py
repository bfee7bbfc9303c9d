"""`/v1/fine_tuning/jobs`: ask for a concept to be learned, watch it, call it off."""

import hashlib
from collections.abc import AsyncGenerator
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import JSONResponse, Response

from omnifarm.errors import OmniFarmError, RequestError
from omnifarm.tenancy import Caller
from serve.bodies import checked, openapi_json, read_json
from serve.documents import ConceptDocument, parse_document
from serve.errors import ForbiddenError, MissingError, report
from serve.idempotency import once
from serve.services import Learner, Services, Shared
from serve.sse import KEEP_ALIVE, sse, stream_reply
from serve.tuning import Job, Tuning
from serve.wire.base import bare_name, concept_of, responses
from serve.wire.learning import EventsReply, JobBody, JobObject, JobsReply, events_of

router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["Learn"])
WATCH_S = 0.5
"""Seconds between two looks at a job that somebody watches."""
_KEEP_ALIVE_S = 10.0
LONGEST_STREAM_S = 540.0
"""Seconds after which a stream ends by itself: Ray Serve would cut it off a minute later without a word."""
Limit = Annotated[int, Query(ge=1, le=100)]


@router.post(
    "", response_model=JobObject, responses=responses(404, 409, 413, 415, 422), openapi_extra=openapi_json(JobBody)
)
async def create(
    request: Request,
    shared: Shared,
    caller: Learner,
    idempotency_key: str | None = Header(default=None, max_length=255),
) -> Response:
    """Ask for a concept to be learned from an uploaded document; asking twice is one job."""
    body = await read_json(
        request, JobBody, max_bytes=shared.settings.max_body_bytes, arrival=shared.admission.arrival(caller)
    )

    async def work() -> dict[str, Any]:
        job = await anyio.to_thread.run_sync(_create, shared, caller, body)
        return JobObject.of(job, tenant=caller.tenant).model_dump()

    reply = await once(
        idempotency_key,
        route="fine_tuning",
        digest=hashlib.sha256(body.model_dump_json().encode()).hexdigest(),
        store=shared.space(caller).store,
        clock=shared.clock,
        work=work,
    )
    return JSONResponse(reply)


@router.get("", response_model=JobsReply, responses=responses(422))
async def list_jobs(
    shared: Shared,
    caller: Learner,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> JobsReply:
    """List jobs, newest first."""
    tuning = shared.space(caller).tuning
    page, has_more = await anyio.to_thread.run_sync(lambda: tuning.page(limit=limit, after=after))
    return JobsReply(data=[JobObject.of(job, tenant=caller.tenant) for job in page], has_more=has_more)


@router.get("/{job_id}", response_model=JobObject, responses=responses(404, 422))
async def get_job(job_id: str, shared: Shared, caller: Learner) -> JobObject:
    """Say where a job stands."""
    return JobObject.of(await _look(shared, caller, job_id), tenant=caller.tenant)


@router.get(
    "/{job_id}/events",
    response_model=EventsReply,
    responses={200: {"content": {"text/event-stream": {}}}, **responses(404, 422)},
)
async def events(
    job_id: str,
    shared: Shared,
    caller: Learner,
    stream: bool = False,
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=96)] = None,
) -> Response:
    """List what happened to a job, newest first; with `stream=true`, send it as it happens until the job is over.

    A stream ends after nine minutes with the event `reconnect`: ask again, events keep their ids.
    """
    job = await _look(shared, caller, job_id)
    if stream:
        return await stream_reply(_watch(shared, caller, job), place=shared.admission.watch(caller))
    newest = events_of(job)[::-1]
    ids = [event.id for event in newest]
    start = ids.index(after) + 1 if after in ids else 0
    reply = EventsReply(data=newest[start : start + limit], has_more=len(newest) > start + limit)
    return JSONResponse(reply.model_dump())


@router.post("/{job_id}/cancel", response_model=JobObject, responses=responses(404, 422))
async def cancel(job_id: str, shared: Shared, caller: Learner) -> JobObject:
    """Call a job off; a finished one stays as it is."""
    tuning = shared.space(caller).tuning
    return JobObject.of(await anyio.to_thread.run_sync(tuning.cancel, job_id), tenant=caller.tenant)


def _create(shared: Services, caller: Caller, body: JobBody) -> Job:
    if concept_of(body.model) is not None:
        raise RequestError(f"expected the bare backbone as model, found {body.model!r}", field="model")
    name = bare_name(body.suffix, field="suffix")
    if caller.tenant and not shared.settings.train:
        # Cells lease from the owner's own store; a tenant's job would wait for ever.
        raise ForbiddenError(
            "expected a server that learns what tenants upload, found one that only serves; ask its operator, who can "
            "set train to true"
        )
    space = shared.space(caller)
    if space.shelf.get(body.training_file).purpose != "fine-tune":
        raise RequestError("expected a concept document as training_file, found a picture", field="training_file")
    document = checked(ConceptDocument, parse_document(space.shelf.content(body.training_file)))
    overrides = body.hyperparameters.overrides()
    if body.seed is not None:
        overrides["seed"] = body.seed
    return space.tuning.create(
        document,
        name=name,
        training_file=body.training_file,
        overrides=overrides,
        metadata=body.metadata or {},
        limits=caller.limits,
    )


async def _look(shared: Services, caller: Caller, job_id: str) -> Job:
    tuning: Tuning = shared.space(caller).tuning
    return await anyio.to_thread.run_sync(tuning.get, job_id)


async def _watch(shared: Services, caller: Caller, job: Job) -> AsyncGenerator[bytes, None]:
    """Send what has happened, then each change, until the job is over, the client leaves or the stream is long enough."""
    sent: set[str] = set()
    quiet_s = 0.0
    ends_s = shared.clock.monotonic_s() + LONGEST_STREAM_S
    while True:
        for one in events_of(job):
            if one.id not in sent:
                sent.add(one.id)
                quiet_s = 0.0
                yield sse(one.model_dump(), name=one.type)
        if job.status.is_final:
            return
        if shared.clock.monotonic_s() >= ends_s:
            yield sse({"message": "the job goes on; ask for its events again"}, name="reconnect")
            return
        await anyio.sleep(WATCH_S)
        quiet_s += WATCH_S
        if quiet_s >= _KEEP_ALIVE_S:
            quiet_s = 0.0
            yield KEEP_ALIVE
        try:
            job = await _look(shared, caller, job.public_id)
        except MissingError:
            # The concept was deleted meanwhile.
            return
        except OmniFarmError as error:
            yield sse(report(error), name="error")
            return
