"""Watching a concept come into being: progress, losses and drawings of what is learned so far, as server-sent events.

    progress {status, step, num_steps, left_s, curve?}     whenever one of them has changed
    drawing  {step, prompt, b64_json}                      about every eighth of the training
    end      {status, message}                             last

Drawings are made by the serving engine between other requests, at low cost; one that fails is left out.
"""

import asyncio
import base64
import logging
from collections.abc import AsyncGenerator
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread

from omnifarm.errors import OmniFarmError
from omnifarm.farm.progress import ProgressMeter
from omnifarm.logs import event
from omnifarm.serving.requests import Picture
from omnifarm.tenancy import Caller
from serve.errors import MissingError, report
from serve.pictures import encode_picture
from serve.previews import Glimpse
from serve.services import Services
from serve.sse import KEEP_ALIVE, sse
from serve.tuning import Job

_LOG = logging.getLogger("omnifarm.serve")
_LOOK_S = 0.5
_KEEP_ALIVE_S = 10.0
_NUM_DRAWINGS = 8
_NUM_TIMESTEPS = 12


async def watch(shared: Services, caller: Caller, job: Job) -> AsyncGenerator[bytes, None]:
    """Send what is known of a job, then each change, until it is over or the client leaves.

    Args:
        shared: The replica's services.
        caller: Whose job it is.
        job: The job.
    """
    space, tuning = shared.space(caller), shared.space(caller).tuning
    meter = ProgressMeter(shared.clock)
    glimpse: Glimpse | None = None
    sent: tuple[object, ...] = ()
    sent_curve = ""
    drawn_step = 0
    quiet_s = 0.0
    drawing: asyncio.Task[bytes | None] | None = None
    try:
        while True:
            status, record = job.status, job.record
            if status.value == "running":
                glimpse = await anyio.to_thread.run_sync(_glimpse, shared, caller, job, glimpse)
            progress = meter.look([record])
            state = (status, record.step, glimpse.etag if glimpse else "")
            if state != sent:
                sent, quiet_s = state, 0.0
                left_s = None if progress.left_s is None else round(progress.left_s, 1)
                values: dict[str, Any] = {
                    "status": status.value,
                    "step": record.step,
                    "num_steps": record.num_steps,
                    "left_s": left_s,
                }
                if glimpse is not None and glimpse.etag != sent_curve:
                    sent_curve = glimpse.etag
                    values["curve"] = {
                        name: glimpse.curve[name] for name in ("step", "understanding", "generation", "editing")
                    }
                yield sse(values, name="progress")
            if drawing is not None and (drawing.done() or status.value == "succeeded"):
                await asyncio.wait([drawing])
                if (piece := drawing.result()) is not None:
                    quiet_s = 0.0
                    yield piece
                drawing = None
            if status.is_final:
                yield sse({"status": status.value, "message": job.reason}, name="end")
                return
            due = max(1, record.num_steps // _NUM_DRAWINGS)
            if glimpse is not None and drawing is None and glimpse.step - drawn_step >= due:
                drawn_step = glimpse.step
                drawing = asyncio.ensure_future(_drawing(shared, caller, job, glimpse))
            await anyio.sleep(_LOOK_S)
            quiet_s += _LOOK_S
            if quiet_s >= _KEEP_ALIVE_S:
                quiet_s = 0.0
                yield KEEP_ALIVE
            try:
                job = await anyio.to_thread.run_sync(tuning.get, job.public_id)
            except MissingError:
                yield sse({"status": "cancelled", "message": "the concept was deleted"}, name="end")
                return
            except OmniFarmError as error:
                yield sse(report(error), name="error")
                return
    finally:
        if drawing is not None:
            drawing.cancel()
        shared.previews.take_back(space.tenant, job)


def _glimpse(shared: Services, caller: Caller, job: Job, known: Glimpse | None) -> Glimpse | None:
    """Return the newest glimpse of a job; an early look is never worth an error."""
    try:
        return shared.previews.glimpse(shared.space(caller), job, known=known)
    except OmniFarmError as error:
        event(_LOG, "glimpse_failed", level=logging.WARNING, error=error.message)
        return known


async def _drawing(shared: Services, caller: Caller, job: Job, glimpse: Glimpse) -> bytes | None:
    """Draw the concept as it is at a glimpse."""
    prompt = f"A photo of <{job.request.name}>."
    options = shared.engine.generation_options
    try:
        early = shared.previews.lend(caller.tenant, job, glimpse, fingerprint=shared.engine.fingerprint)
        request = shared.engine.door.generate(
            prompt,
            concepts=[job.request.name],
            options=replace(options, num_timesteps=min(_NUM_TIMESTEPS, options.num_timesteps)),
            replay="off",
            tenant=early,
        )
        with shared.admission.place(caller):
            picture = await shared.worker.run(request)
        assert isinstance(picture, Picture)
        data = await anyio.to_thread.run_sync(encode_picture, picture.image)
    except OmniFarmError as error:
        event(_LOG, "early_drawing_failed", level=logging.WARNING, error=error.message)
        return None
    values = {"step": glimpse.step, "prompt": prompt, "b64_json": base64.b64encode(data).decode()}
    return sse(values, name="drawing")
