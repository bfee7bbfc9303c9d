"""`/studio`: the page, and what it asks beyond the public endpoints.

The page is static files from `serve/studio/`; it loads nothing from elsewhere, and its content security policy lets it
talk to nobody but this server. The endpoints below `/studio/api` are the page's own and not part of the public ones.
"""

from pathlib import Path
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import FileResponse, JSONResponse, RedirectResponse, Response

from omnifarm.concept.images import DEFAULT_LIMITS
from omnifarm.errors import RequestError, UnknownConceptError
from serve.bodies import read_form
from serve.copies import PREFIX as FOLDERS
from serve.errors import MissingError
from serve.inventions import WORLD, Group, any_seed, invent
from serve.previews import curve_of
from serve.reports import list_reports, report_page, report_tables
from serve.services import Learner, Services, Shared, User
from serve.sse import stream_reply
from serve.watching import watch
from serve.wire.base import MODEL, RequestBody, bare_name

router = APIRouter(prefix="/studio", include_in_schema=False)
FOLDER = Path(__file__).parents[1] / "studio"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Looked up again each time (and answered with 304), so that a new release needs no hard reload.
    "Cache-Control": "no-cache",
}
"""Sent with every file of the page."""
_KINDS = {".css": "text/css", ".html": "text/html", ".js": "text/javascript", ".svg": "image/svg+xml"}
# Looked up, never opened by the name that was asked for: whatever else somebody asks for is not there.
_FILES = frozenset(
    str(found.relative_to(FOLDER)) for found in FOLDER.rglob("*") if found.suffix in _KINDS and found.suffix != ".html"
)
_THUMBNAIL_SIDE = 240
_WHOLE_SIDE = 1024


@router.get("")
async def enter(request: Request) -> Response:
    """Send the browser to the page's folder, on which its relative addresses rest."""
    return RedirectResponse(f"{request.scope.get('root_path', '')}/studio/")


@router.get("/")
async def page() -> Response:
    """The page."""
    return _file("index.html")


@router.get("/api/about")
async def about(shared: Shared) -> dict[str, Any]:
    """Say what the page must know before anybody has logged in: nothing of any tenant."""
    settings, engine = shared.settings, shared.engine
    is_miniature = settings.backbone == "miniature"
    return {
        "backbone": Path(settings.backbone).name,
        "fingerprint": engine.fingerprint,
        "model": MODEL,
        "needs_key": settings.access == "keys",
        "world": WORLD if is_miniature else None,
        "limits": {
            "max_image_bytes": settings.max_image_bytes,
            "max_pixels": settings.max_pixels,
            "min_side": DEFAULT_LIMITS.min_side,
            "max_aspect": DEFAULT_LIMITS.max_aspect,
            "max_text_chars": settings.max_text_chars,
        },
        "drawing": {
            "num_timesteps": engine.generation_options.num_timesteps,
            "cfg_text_scale": engine.generation_options.cfg_text_scale,
            "height_width": engine.generation_size,
        },
        "editing": {
            "num_timesteps": engine.editing_options.num_timesteps,
            "cfg_text_scale": engine.editing_options.cfg_text_scale,
        },
    }


@router.get("/api/inventions")
async def invention(
    shared: Shared, caller: Learner, group: Group, seed: int | None = Query(default=None, ge=0, lt=2**31)
) -> dict[str, Any]:
    """Draw somebody to teach, where the backbone is the miniature."""
    if shared.settings.backbone != "miniature":
        raise MissingError("expected the miniature, found another backbone; teach it with photographs", field="group")
    chosen = any_seed() if seed is None else seed
    return await anyio.to_thread.run_sync(lambda: {"seed": chosen, **invent(group, seed=chosen)})


@router.get("/api/concepts/{name}")
async def concept(name: str, shared: Shared, caller: User) -> dict[str, Any]:
    """Say everything about a concept: its versions, what they were learned from, and what a deletion would erase."""
    return await anyio.to_thread.run_sync(_concept, shared, caller.tenant, bare_name(name, field="name"))


@router.get("/api/concepts/{name}/versions/{version}/photos/{number}")
async def photo(name: str, version: str, number: int, shared: Shared, caller: User, whole: bool = False) -> Response:
    """Return a photograph that a version was learned from."""
    side = _WHOLE_SIDE if whole else _THUMBNAIL_SIDE

    def read() -> bytes:
        space = shared.space(caller)
        return shared.origins.photo(
            space, name=bare_name(name, field="name"), version=version, number=number, side=side
        )

    data = await anyio.to_thread.run_sync(read)
    headers = {"X-Content-Type-Options": "nosniff", "Cache-Control": "private, no-store"}
    return Response(data, media_type="image/png", headers=headers)


@router.post("/api/concepts/{name}/looking")
async def looking(name: str, request: Request, shared: Shared, caller: User) -> dict[str, Any]:
    """Say how the identifier's attention to a photo is shared out over its patches, mean over layers."""
    _, files = await read_form(
        request,
        RequestBody,
        max_bytes=shared.settings.max_body_bytes,
        max_files=1,
        arrival=shared.admission.arrival(caller),
    )
    (upload,) = files.get("image", [None])
    if upload is None:
        raise RequestError("expected a picture under the name image, found none", field="image")

    with shared.admission.place(caller):
        image = await shared.intake.picture(upload.data)

        def look() -> list[list[float]]:
            weights = shared.engine.looking(image, concept=bare_name(name, field="name"), tenant=caller.tenant)
            # What goes elsewhere than to the photo differs from layer to layer; each layer has the same say.
            shares = (weights / weights.sum(dim=(1, 2), keepdim=True)).mean(dim=0)
            return [[round(value, 6) for value in row] for row in shares.tolist()]

        return {"shares": await anyio.to_thread.run_sync(look)}


@router.get("/api/reports")
async def reports(shared: Shared, caller: User) -> dict[str, Any]:
    """List the benchmark runs in the caller's store."""
    space = shared.space(caller)
    found = await anyio.to_thread.run_sync(list_reports, space.store)
    # Where the store is concerns nobody but its owner.
    return {"reports": found, "store": space.store.url if shared.settings.access == "owner" else None}


@router.get("/api/reports/{run}")
async def report(run: str, shared: Shared, caller: User) -> dict[str, Any]:
    """What a benchmark run measured."""
    return await anyio.to_thread.run_sync(report_tables, shared.space(caller).store, run)


@router.get("/api/reports/{run}/page")
async def whole_report(run: str, shared: Shared, caller: User) -> Response:
    """A benchmark run's own page, to be saved."""
    data = await anyio.to_thread.run_sync(report_page, shared.space(caller).store, run)
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; sandbox",
        "Content-Disposition": f'attachment; filename="{run}.html"',
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "private, no-store",
    }
    return Response(data, media_type="text/html", headers=headers)


@router.get("/api/jobs/{job_id}/watch")
async def watch_job(job_id: str, shared: Shared, caller: Learner) -> Response:
    """Send a job's progress, losses and early drawings as they come, until it is over."""
    job = await anyio.to_thread.run_sync(shared.space(caller).tuning.get, job_id)
    return await stream_reply(watch(shared, caller, job), place=shared.admission.watch(caller))


# Last, so that it takes only what nobody above has taken.
@router.get("/{path:path}")
async def file(path: str) -> Response:
    """A file of the page."""
    if path not in _FILES:
        error = {
            "message": "the studio has no such file",
            "type": "not_found_error",
            "param": None,
            "code": "not_found",
        }
        return JSONResponse({"error": error}, status_code=404, headers=HEADERS)
    return _file(path)


def _file(path: str) -> Response:
    return FileResponse(FOLDER / path, media_type=_KINDS[Path(path).suffix], headers=HEADERS)


def _concept(shared: Services, tenant: str, name: str) -> dict[str, Any]:
    space = shared.spaces.of(tenant)
    manifests = space.repository.versions(name)
    if not manifests:
        raise UnknownConceptError(f"expected a learned concept, found none named <{name}>", concept=f"<{name}>")
    jobs = space.tuning.of(name)
    files = {job.request.job_id: job.request.training_file for job in jobs}
    versions = []
    for manifest in manifests:
        spec = shared.origins.of(space, name=name, version=manifest.version)
        versions.append(
            {
                "version": manifest.version,
                "created_at": int(manifest.created_at_s),
                "is_usable": manifest.fingerprint == shared.engine.fingerprint,
                "steps": manifest.recipe.get("steps"),
                "train_s": manifest.train_s,
                "losses": curve_of(dict(manifest.losses)),
                "warnings": list(manifest.warnings),
                "training_file": files.get(manifest.version),
                "num_photos": len(spec.images) if spec else 0,
                "info": spec.info if spec else "",
                "facts": list(spec.extra_info) if spec else [],
                "questions": [
                    {"question": qa.question, "answer": qa.answer}
                    for qa in (spec.qa if spec else ())
                    if qa.image is None
                ],
            }
        )
    return {
        "name": name,
        "identifier": manifests[0].identifier,
        "class_noun": manifests[0].class_noun,
        "versions": versions,
        "erases": {
            "versions": len(manifests),
            "jobs": len(jobs),
            "pictures": sum(key.endswith(".png") for key in space.store.list(f"{FOLDERS}{name}/")),
        },
    }
