"""`/v1/models` and `/v1/concepts`: what the caller can use."""

import anyio.to_thread
from fastapi import APIRouter

from omnifarm.concept.artifact import ArtifactManifest
from omnifarm.errors import UnknownConceptError
from omnifarm.tenancy import Caller
from serve.services import Learner, Services, Shared, User
from serve.wire.base import MODEL, ModelEntry, ModelsReply, bare_name, concept_of, responses
from serve.wire.learning import ConceptDetails, ConceptObject, ConceptsReply, Deleted

router = APIRouter()


@router.get("/v1/models", response_model=ModelsReply, responses=responses(), tags=["Ask"])
async def models(shared: Shared, caller: User) -> ModelsReply:
    """List the backbone, and every concept on it as a model of its own."""
    manifests = await _manifests(shared, caller)
    return ModelsReply(
        data=[_backbone(), *(_model(manifest) for manifest in manifests)],
    )


@router.get("/v1/models/{model:path}", response_model=ModelEntry, responses=responses(404), tags=["Ask"])
async def model(model: str, shared: Shared, caller: User) -> ModelEntry:
    """Describe a model."""
    name = concept_of(model)
    return _backbone() if name is None else _model(await _manifest(shared, caller, name))


@router.get("/v1/concepts", response_model=ConceptsReply, responses=responses(), tags=["Learn"])
async def concepts(shared: Shared, caller: User) -> ConceptsReply:
    """List learned concepts; a new one appears without a restart."""
    return ConceptsReply(data=[ConceptObject.of(manifest) for manifest in await _manifests(shared, caller)])


@router.get("/v1/concepts/{name}", response_model=ConceptDetails, responses=responses(404, 422), tags=["Learn"])
async def concept(name: str, shared: Shared, caller: User) -> ConceptDetails:
    """Describe a concept and how it was learned."""
    return ConceptDetails.of(await _manifest(shared, caller, bare_name(name, field="name")))


@router.delete("/v1/concepts/{name}", response_model=Deleted, responses=responses(404, 422), tags=["Learn"])
async def delete_concept(name: str, shared: Shared, caller: Learner) -> Deleted:
    """Delete a concept: every version, its jobs and the copies of its photographs; uploaded files stay.

    Replicas use a concept they know for at most two more seconds.
    """
    bare = bare_name(name, field="name")
    await anyio.to_thread.run_sync(shared.space(caller).tuning.forget, bare)
    return Deleted(id=bare, object="concept")


async def _manifests(shared: Services, caller: Caller) -> list[ArtifactManifest]:
    return await anyio.to_thread.run_sync(lambda: shared.engine.list_concepts(tenant=caller.tenant))


async def _manifest(shared: Services, caller: Caller, name: str) -> ArtifactManifest:
    for manifest in await _manifests(shared, caller):
        if manifest.name == name:
            return manifest
    raise UnknownConceptError(
        f"expected a learned concept, found none named <{name}>; train it first or correct the name",
        concept=f"<{name}>",
    )


def _backbone() -> ModelEntry:
    return ModelEntry(id=MODEL, created=0)


def _model(manifest: ArtifactManifest) -> ModelEntry:
    return ModelEntry(id=f"{MODEL}:{manifest.identifier}", created=int(manifest.created_at_s))
