"""`/v1/models` and `/v1/concepts`: what the caller can use."""

from typing import Annotated

import anyio.to_thread
from fastapi import APIRouter, Query

from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.tenancy import Caller
from serve.services import Learner, Services, Shared, User
from serve.wire.base import MODEL, ModelEntry, ModelsReply, bare_name, concept_of, responses
from serve.wire.learning import ConceptDetails, ConceptObject, ConceptsReply, Deleted

router = APIRouter()


@router.get("/v1/models", response_model=ModelsReply, responses=responses(), tags=["Ask"])
async def models(shared: Shared, caller: User) -> ModelsReply:
    """List the backbone, and every concept on it as a model of its own."""
    manifests = await anyio.to_thread.run_sync(lambda: shared.engine.list_concepts(tenant=caller.tenant))
    return ModelsReply(
        data=[_backbone(), *(_model(manifest) for manifest in manifests)],
    )


@router.get("/v1/models/{model:path}", response_model=ModelEntry, responses=responses(404, 409), tags=["Ask"])
async def model(model: str, shared: Shared, caller: User) -> ModelEntry:
    """Describe a model."""
    name = concept_of(model)
    return _backbone() if name is None else _model(await _manifest(shared, caller, name))


@router.get("/v1/concepts", response_model=ConceptsReply, responses=responses(422), tags=["Learn"])
async def concepts(
    shared: Shared,
    caller: User,
    limit: Annotated[int | None, Query(ge=1, le=10_000, description="Left out: all of them.")] = None,
    after: Annotated[str | None, Query(max_length=80, description="Name or id of the concept before.")] = None,
) -> ConceptsReply:
    """List learned concepts by name; a new one appears without a restart."""
    name = "" if after is None else bare_name(after.removeprefix(f"{MODEL}:"), field="after")
    wanted = None if limit is None else limit + 1
    found = await anyio.to_thread.run_sync(
        lambda: shared.engine.list_concepts(tenant=caller.tenant, after=name, limit=wanted)
    )
    page = found[:limit]
    return ConceptsReply(data=[ConceptObject.of(manifest) for manifest in page], has_more=len(found) > len(page))


@router.get("/v1/concepts/{name}", response_model=ConceptDetails, responses=responses(404, 409, 422), tags=["Learn"])
async def concept(name: str, shared: Shared, caller: User) -> ConceptDetails:
    """Describe a concept and how it was learned."""
    return ConceptDetails.of(await _manifest(shared, caller, bare_name(name, field="name")))


@router.delete("/v1/concepts/{name}", response_model=Deleted, responses=responses(404, 422), tags=["Learn"])
async def delete_concept(name: str, shared: Shared, caller: Learner) -> Deleted:
    """Delete a concept: every version, its jobs and the copies of its photographs; uploaded files stay.

    This replica forgets it at once; others use it for at most two more seconds, and forget it in their next round.
    """
    bare = bare_name(name, field="name")
    await anyio.to_thread.run_sync(_forget, shared, caller, bare)
    return Deleted(id=bare, object="concept")


def _forget(shared: Services, caller: Caller, name: str) -> None:
    try:
        shared.space(caller).tuning.forget(name)
    finally:
        # Also when the store failed midway: what is still there is read again when it is asked for.
        shared.engine.forget(name, tenant=caller.tenant)
        shared.origins.let_go()


async def _manifest(shared: Services, caller: Caller, name: str) -> ArtifactManifest:
    return await anyio.to_thread.run_sync(lambda: shared.engine.concept(name, tenant=caller.tenant))


def _backbone() -> ModelEntry:
    return ModelEntry(id=MODEL, created=0)


def _model(manifest: ArtifactManifest) -> ModelEntry:
    return ModelEntry(id=f"{MODEL}:{manifest.identifier}", created=int(manifest.created_at_s))
