"""What jobs were submitted to learn: kept beside their records, so that a worker reads one concept and no set.

    submitted/<job id>.json     where the pictures lie, and the concept's spec: texts, and pictures by path and digest

What a concept takes from its set (shared and borrowed negatives, edit pairs) is part of its spec. A worker thus needs
one small object and the pictures themselves, however many concepts lie at the place; each picture is checked against
its digest when it is read, so what is learned is what was submitted or nothing.
"""

import json

from omnifarm.concept.datasets.load import split_layout
from omnifarm.concept.sources import FileSource, open_source
from omnifarm.concept.spec import ConceptSpec
from omnifarm.concept.spec_json import spec_from_json, spec_to_json
from omnifarm.errors import ConceptError, FarmError, NotFoundError
from omnifarm.farm.job import JobRecord
from omnifarm.farm.records import submitted_key
from omnifarm.store.base import Store


def keep_submitted(spec: ConceptSpec, *, url: str, job_id: str, store: Store) -> None:
    """Keep what a job learns from; safe to repeat, and to repeat with another place of the same data.

    Args:
        spec: The concept.
        url: Where it was loaded from, see `load_concepts`.
        job_id: The job that is about to be submitted.
        store: The farm's store.
    """
    values = {"url": url, "spec": spec_to_json(spec)}
    store.put(submitted_key(job_id), json.dumps(values, ensure_ascii=False).encode())


class SubmittedConcepts:
    """Concepts by job. Not safe for concurrent use.

    Args:
        store: The farm's store.
        recipe_digest: Of the recipe that the caller trains with.
        backbone_fingerprint: Of the backbone that the caller has loaded.
    """

    def __init__(self, store: Store, *, recipe_digest: str, backbone_fingerprint: str) -> None:
        self._store = store
        self._recipe_digest = recipe_digest
        self._fingerprint = backbone_fingerprint
        # Opened once each: a client of an S3 place takes a while to make.
        self._sources: dict[str, FileSource] = {}

    def spec(self, record: JobRecord) -> ConceptSpec:
        """Return a job's concept; one request, no picture is read yet.

        Raises:
            ConceptError: Nothing usable was submitted, or the place is gone.
            FarmError: The job asks for another recipe or backbone.
            StoreError: The store does not answer.
        """
        for what, expected, found in (
            ("recipe", record.identity.recipe_digest, self._recipe_digest),
            ("backbone", record.identity.backbone_fingerprint, self._fingerprint),
        ):
            if expected != found:
                raise FarmError(
                    f"job {record.name!r} asks for the {what} {expected[:12]}, this worker has {found[:12]}; "
                    "submit it to a run of its own"
                )
        key = submitted_key(record.job_id)
        try:
            data = self._store.get(key).data
        except NotFoundError as error:
            raise ConceptError(
                f"expected what {record.name!r} is learned from at {key}, found nothing: the concept could not be used "
                "when it was submitted, or an older release submitted it; submit it again"
            ) from error
        try:
            values = json.loads(data)
            url, stored = str(values["url"]), values["spec"]
        except (ValueError, KeyError, TypeError) as error:
            raise ConceptError(f"{key}: expected a submitted concept, found something else; submit it again") from error
        spec = spec_from_json(stored, source=self._source(url), where=key)
        if spec.digest() != record.identity.spec_digest:
            raise ConceptError(f"{key}: expected the concept of job {record.job_id}, found another; submit it again")
        return spec

    def _source(self, url: str) -> FileSource:
        if url not in self._sources:
            self._sources[url] = open_source(split_layout(url)[1])
        return self._sources[url]
