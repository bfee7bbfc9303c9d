"""Files, fine-tuning jobs and concepts: personalisation as a service."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from omnifarm.concept.artifact import ArtifactManifest
from serve.shelf import StoredFile
from serve.tuning import Job, JobStatus
from serve.wire.base import MODEL, Metadata, RequestBody

MAX_BATCH_SIZE = 64
"""Samples a step that a tenant may ask for: they lie in memory together, beside those of other tenants' jobs."""
Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class FileBody(RequestBody):
    """The fields beside a file."""

    purpose: Annotated[str, Field(max_length=32, description="`vision` for a picture, `fine-tune` for a document.")]


class FileObject(BaseModel):
    """An uploaded file."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["vision", "fine-tune"]
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, file: StoredFile) -> "FileObject":
        """The file as JSON."""
        return cls(
            id=file.file_id,
            bytes=file.size_bytes,
            created_at=int(file.created_at_s),
            filename=file.filename,
            purpose=file.purpose,
        )


class FilesReply(BaseModel):
    """Files, newest first."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool
    first_id: str | None
    last_id: str | None


class Deleted(BaseModel):
    """What was deleted."""

    id: str
    object: str
    deleted: Literal[True] = True


class Hyperparameters(RequestBody):
    """How to learn; what is left out is the backbone's own."""

    steps: Annotated[int | None, Field(ge=1, le=20_000, description="Optimizer steps.")] = None
    batch_size: Annotated[
        Annotated[int, Field(ge=1, le=MAX_BATCH_SIZE)] | Literal["auto"] | None, Field(description="Samples a step.")
    ] = None
    learning_rate: Annotated[float | None, Field(gt=0, le=1)] = None
    n_epochs: Annotated[Literal["auto"] | None, Field(description="Use `steps`.")] = None
    learning_rate_multiplier: Annotated[Literal["auto"] | None, Field(description="Use `learning_rate`.")] = None

    def overrides(self) -> dict[str, Any]:
        """Recipe settings that were given."""
        batch_size = None if self.batch_size == "auto" else self.batch_size
        given = {"steps": self.steps, "batch_size": batch_size, "learning_rate": self.learning_rate}
        return {name: value for name, value in given.items() if value is not None}


class JobBody(RequestBody):
    """A concept to be learned."""

    model: Annotated[str, Field(max_length=80, examples=[MODEL])]
    training_file: Annotated[str, Field(max_length=64, description="Id of a concept document.")]
    suffix: Annotated[str, Field(min_length=1, max_length=66, description="The concept's name.", examples=["maeve"])]
    hyperparameters: Hyperparameters = Field(default_factory=Hyperparameters)
    seed: Annotated[int | None, Field(ge=0, lt=2**31)] = None
    metadata: Metadata | None = None
    validation_file: None = None


class JobError(BaseModel):
    """Why a job failed."""

    code: str
    message: str
    param: str | None = None


class JobProgress(BaseModel):
    """How far a job is."""

    step: int
    num_steps: int
    attempts: int


class JobObject(BaseModel):
    """A fine-tuning job."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str = MODEL
    created_at: int
    finished_at: int | None
    status: Status
    fine_tuned_model: str | None
    organization_id: str
    training_file: str
    validation_file: None = None
    result_files: list[str] = Field(default_factory=list)
    hyperparameters: dict[str, Any]
    seed: int
    error: JobError | None
    trained_tokens: None = None
    metadata: dict[str, str] | None
    concept: str
    progress: JobProgress

    @classmethod
    def of(cls, job: Job, *, tenant: str) -> "JobObject":
        """The job as JSON."""
        record, recipe = job.record, job.request.recipe
        status = job.status
        error = None
        if status is JobStatus.FAILED:
            error = JobError(code="training_failed", message=job.reason or "the training failed")
        return cls(
            id=job.public_id,
            created_at=int(record.created_at_s),
            finished_at=int(record.updated_at_s) if status.is_final else None,
            status=status.value,
            fine_tuned_model=f"{MODEL}:<{job.request.name}>" if status is JobStatus.SUCCEEDED else None,
            organization_id=tenant,
            training_file=job.request.training_file,
            hyperparameters={name: recipe.get(name) for name in ("steps", "batch_size", "learning_rate")},
            seed=int(recipe.get("seed", 0)),
            error=error,
            metadata=job.request.metadata or None,
            concept=f"<{job.request.name}>",
            progress=JobProgress(step=record.step, num_steps=record.num_steps, attempts=record.attempts),
        )


class JobsReply(BaseModel):
    """Jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobObject]
    has_more: bool


class JobEvent(BaseModel):
    """Something that happened to a job."""

    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"]
    message: str
    type: Literal["message", "metrics"]
    data: dict[str, Any]


class EventsReply(BaseModel):
    """Events, newest first."""

    object: Literal["list"] = "list"
    data: list[JobEvent]
    has_more: bool = False


class ConceptObject(BaseModel):
    """A learned concept."""

    id: Annotated[str, Field(description="The model's name that chooses it.")]
    object: Literal["concept"] = "concept"
    name: str
    identifier: str
    class_noun: str
    version: str
    created_at: int
    num_soft_tokens: int
    steps: int | None
    train_s: float | None
    warnings: list[str]

    @classmethod
    def of(cls, manifest: ArtifactManifest) -> "ConceptObject":
        """The concept as JSON."""
        steps = manifest.recipe.get("steps")
        return cls(
            id=f"{MODEL}:{manifest.identifier}",
            name=manifest.name,
            identifier=manifest.identifier,
            class_noun=manifest.class_noun,
            version=manifest.version,
            created_at=int(manifest.created_at_s),
            num_soft_tokens=1 + manifest.num_und + manifest.num_gen,
            steps=steps if isinstance(steps, int) else None,
            train_s=manifest.train_s,
            warnings=list(manifest.warnings),
        )


class ConceptDetails(ConceptObject):
    """A learned concept with how it was learned."""

    recipe: dict[str, Any]
    losses: Annotated[dict[str, Any], Field(description="Mean loss of each task along the training.")]

    @classmethod
    def of(cls, manifest: ArtifactManifest) -> "ConceptDetails":
        """The concept as JSON."""
        plain = ConceptObject.of(manifest).model_dump()
        return cls(**plain, recipe=dict(manifest.recipe), losses=dict(manifest.losses))


class ConceptsReply(BaseModel):
    """Concepts the caller can use, by name."""

    object: Literal["list"] = "list"
    data: list[ConceptObject]
    has_more: bool = False


def events_of(job: Job) -> list[JobEvent]:
    """What happened to a job as far as its record tells, oldest first."""
    record = job.record
    events = [_event(job, 0, int(record.created_at_s), "info", f"<{job.request.name}> waits to be learned", "message")]
    now = int(record.updated_at_s)
    if record.step:
        told = f"step {record.step} of {record.num_steps}"
        events.append(_event(job, record.step, now, "info", told, "metrics"))
    status = job.status
    if status.is_final:
        told = {
            JobStatus.SUCCEEDED: f"<{job.request.name}> is learned and can be used",
            JobStatus.FAILED: job.reason or "the training failed",
            JobStatus.CANCELLED: "cancelled",
        }[status]
        level: Literal["info", "error"] = "error" if status is JobStatus.FAILED else "info"
        events.append(_event(job, record.num_steps + 1, now, level, told, "message"))
    return events


def _event(
    job: Job,
    number: int,
    created_at: int,
    level: Literal["info", "warn", "error"],
    message: str,
    type_: Literal["message", "metrics"],
) -> JobEvent:
    record = job.record
    return JobEvent(
        id=f"ftevent-{job.request.job_id}-{number}",
        created_at=created_at,
        level=level,
        message=message,
        type=type_,
        data={"status": job.status.value, "step": record.step, "num_steps": record.num_steps},
    )
