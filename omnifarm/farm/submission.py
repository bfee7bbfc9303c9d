"""What a user asks for becomes job records: one per concept, the same one however often it is asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnifarm.backbone.checkpoint import fingerprint
from omnifarm.backbone.config import BackboneConfig
from omnifarm.backbone.weights import resolve_folder
from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.recipe import TrainingRecipe
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, ConfigError
from omnifarm.farm.job import JobIdentity, JobRecord, JobState, UnreadableRecordError
from omnifarm.farm.queue import JobQueue
from omnifarm.farm.records import as_unreadable
from omnifarm.farm.submitted import keep_submitted


@dataclass(frozen=True, kw_only=True, slots=True)
class Backbone:
    """A backbone as a submission knows it: by identity, without its weights in memory."""

    name: str
    """Name or absolute folder, as workers are to load it."""
    fingerprint: str
    """Identity of configuration and weights."""
    recipe: TrainingRecipe
    """How concepts are best learned on it."""


def inspect_backbone(name_or_folder: str, *, overrides: Mapping[str, Any]) -> Backbone:
    """Read a backbone's identity and its recipe.

    Args:
        name_or_folder: As in `load_backbone`.
        overrides: Recipe fields that the user sets; None leaves the backbone's own value.

    Raises:
        WeightsError: There is no such backbone.
        ConfigError: Its configuration or an override cannot be used.
    """
    folder = resolve_folder(name_or_folder)
    config = BackboneConfig.from_folder(folder)
    own = config.defaults.get("recipe", {})
    name = str(folder.resolve()) if Path(name_or_folder).expanduser().is_dir() else name_or_folder
    return Backbone(
        name=name,
        fingerprint=fingerprint(folder, config=config),
        recipe=TrainingRecipe.from_json(own).with_overrides(overrides),
    )


def submit_concepts(
    url: str,
    *,
    queue: JobQueue,
    backbone: Backbone,
    only: Sequence[str] = (),
    max_concepts: int | None = None,
    submission: str = "default",
    priority: int = 5,
) -> list[JobRecord]:
    """Write one job record for every concept at a place. Safe to repeat: committed jobs stay, others are queued again.

    A concept whose data cannot be used gets a record that is failed from the start, with the reason. One whose record
    cannot be read is returned as failed, with the reason, and nothing is written over it.

    Args:
        url: Where the concepts lie.
        queue: Where the records go.
        backbone: What the concepts are learned on, and how.
        only: Names of the concepts wanted; empty for all.
        max_concepts: At most so many that are not yet learned.
        submission: Which request this is, see `JobQueue.submit`.
        priority: From 0 to 9, higher first.

    Returns:
        The records, by name.

    Raises:
        ConceptError: Nothing at `url` looks like a concept.
        ConfigError: `only` names a concept that is not there.
    """
    found = dict(load_concepts(url))
    if missing := sorted(set(only) - set(found)):
        raise ConfigError(f"no concept named {', '.join(missing)} at {url}; there are: {', '.join(sorted(found))}")
    records: list[JobRecord] = []
    num_open = 0
    for name, spec in found.items():
        if only and name not in only:
            continue
        if max_concepts is not None and num_open >= max_concepts:
            break
        records.append(
            _submit(name, spec, url=url, queue=queue, backbone=backbone, submission=submission, priority=priority)
        )
        num_open += not records[-1].state.is_finished
    return records


def _submit(
    name: str,
    spec: ConceptSpec | ConceptError,
    *,
    url: str,
    queue: JobQueue,
    backbone: Backbone,
    submission: str,
    priority: int,
) -> JobRecord:
    # What cannot be read has no digest; its problems stand in, so that mended data are another job.
    digest = spec.digest() if isinstance(spec, ConceptSpec) else f"unusable {name}: {spec}"
    identity = JobIdentity(
        spec_digest=digest, recipe_digest=backbone.recipe.digest(), backbone_fingerprint=backbone.fingerprint
    )
    if isinstance(spec, ConceptSpec):
        # Before the record: whoever leases the job at once finds it.
        keep_submitted(spec, url=url, job_id=identity.job_id, store=queue.records.store)
    try:
        record = queue.submit(
            name=name,
            concept_url=url,
            identity=identity,
            num_steps=backbone.recipe.steps,
            submission=submission,
            priority=priority,
            # Negatives too: they are prepared as all others are, and show people as well.
            pictures=[image.digest for image in spec.all_images()] if isinstance(spec, ConceptSpec) else (),
            error=None if isinstance(spec, ConceptSpec) else str(spec),
        )
        if record.state in (JobState.FAILED, JobState.CANCELLED) and isinstance(spec, ConceptSpec):
            return queue.retry(record.job_id, concept_url=url)
    except UnreadableRecordError as error:
        # It must not keep those behind it from being submitted.
        now_s, steps = queue.records.clock.now_s(), backbone.recipe.steps
        wanted = JobRecord(
            name=name, concept_url=url, identity=identity, num_steps=steps, created_at_s=now_s, updated_at_s=now_s
        )
        return as_unreadable(wanted, reason=str(error))
    return record
