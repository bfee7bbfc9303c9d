"""`/v1/files`: photographs and concept documents, uploaded to be learned from."""

from functools import partial

import anyio.to_thread
from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from omnifarm.errors import RequestError
from serve.bodies import openapi_form, read_form
from serve.documents import MAX_DOCUMENT_BYTES, parse_document
from serve.errors import TooLargeError
from serve.pictures import decode_picture, kept_picture
from serve.services import Learner, Services, Shared
from serve.shelf import Purpose, purpose_of
from serve.wire.base import responses
from serve.wire.learning import Deleted, FileBody, FileObject, FilesReply

router = APIRouter(tags=["Learn"])


@router.post(
    "/v1/files",
    response_model=FileObject,
    responses=responses(413, 415, 422),
    openapi_extra=openapi_form(
        FileBody, files={"file": "A picture (PNG, JPEG, WebP) or a concept document (JSON)."}, required=("file",)
    ),
)
async def upload(request: Request, shared: Shared, caller: Learner) -> FileObject:
    """Keep a picture or a concept document; pictures are decoded, freed of metadata and written anew."""
    body, files = await read_form(
        request,
        FileBody,
        max_bytes=shared.settings.max_body_bytes,
        max_files=1,
        arrival=shared.admission.arrival(caller),
    )
    purpose = purpose_of(body.purpose)
    if purpose is None:
        raise RequestError(f"expected the purpose vision or fine-tune, found {body.purpose!r}", field="purpose")
    if set(files) != {"file"}:
        raise RequestError("expected one file under the name file", field="file")
    (file,) = files.pop("file")
    data, media_type = await _content(shared, purpose, file.data)
    add = partial(shared.space(caller).shelf.add, data, filename=file.name, purpose=purpose, media_type=media_type)
    return FileObject.of(await anyio.to_thread.run_sync(partial(add, limits=caller.limits)))


@router.get("/v1/files", response_model=FilesReply, responses=responses(422))
async def list_files(
    shared: Shared,
    caller: Learner,
    purpose: str | None = Query(default=None, max_length=32),
    limit: int = Query(default=1000, ge=1, le=10_000),
    after: str | None = Query(default=None, max_length=64),
    order: str = Query(default="desc", pattern="^(asc|desc)$"),
) -> FilesReply:
    """List uploaded files, newest first."""
    files = await anyio.to_thread.run_sync(shared.space(caller).shelf.list)
    files = [file for file in files if purpose in (None, file.purpose)]
    if order == "asc":
        files.reverse()
    ids = [file.file_id for file in files]
    start = ids.index(after) + 1 if after in ids else 0
    page = files[start : start + limit]
    return FilesReply(
        data=[FileObject.of(file) for file in page],
        has_more=len(files) > start + limit,
        first_id=page[0].file_id if page else None,
        last_id=page[-1].file_id if page else None,
    )


@router.get("/v1/files/{file_id}", response_model=FileObject, responses=responses(404, 422))
async def get_file(file_id: str, shared: Shared, caller: Learner) -> FileObject:
    """Describe an uploaded file."""
    return FileObject.of(await anyio.to_thread.run_sync(shared.space(caller).shelf.get, file_id))


@router.get(
    "/v1/files/{file_id}/content",
    response_class=Response,
    responses={200: {"content": {"image/png": {}, "application/json": {}}}, **responses(404, 422)},
)
async def get_content(file_id: str, shared: Shared, caller: Learner) -> Response:
    """Return a file as it is kept."""
    shelf = shared.space(caller).shelf
    file = await anyio.to_thread.run_sync(shelf.get, file_id)
    data = await anyio.to_thread.run_sync(shelf.content, file_id)
    return Response(data, media_type=file.media_type, headers={"X-Content-Type-Options": "nosniff"})


@router.delete("/v1/files/{file_id}", response_model=Deleted, responses=responses(404, 422))
async def delete_file(file_id: str, shared: Shared, caller: Learner) -> Deleted:
    """Delete a file; concepts that were learned from it stay."""
    await anyio.to_thread.run_sync(shared.space(caller).shelf.delete, file_id)
    return Deleted(id=file_id, object="file")


async def _content(shared: Services, purpose: Purpose, data: bytes) -> tuple[bytes, str]:
    """Return what is kept of an uploaded file, and its media type."""
    if purpose == "vision":
        settings = shared.settings
        return await shared.intake.run(
            lambda: kept_picture(decode_picture(data, settings=settings, field="file"))
        ), "image/png"
    if len(data) > MAX_DOCUMENT_BYTES:
        raise TooLargeError(
            f"expected a concept document of at most {MAX_DOCUMENT_BYTES} bytes, found {len(data)}", field="file"
        )
    parse_document(data)
    return data, "application/json"
