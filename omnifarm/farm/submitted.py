"""The concepts that leased jobs ask for: read from where they lie, and refused when they are not what was submitted."""

from omnifarm.concept.datasets.load import load_concepts
from omnifarm.concept.spec import ConceptSpec
from omnifarm.errors import ConceptError, FarmError
from omnifarm.farm.job import JobRecord


class SubmittedConcepts:
    """Concepts by job; every place is read once. Not safe for concurrent use.

    Args:
        recipe_digest: Of the recipe that the caller trains with.
        backbone_fingerprint: Of the backbone that the caller has loaded.
    """

    def __init__(self, *, recipe_digest: str, backbone_fingerprint: str) -> None:
        self._recipe_digest = recipe_digest
        self._fingerprint = backbone_fingerprint
        self._sets: dict[str, dict[str, ConceptSpec | ConceptError]] = {}

    def spec(self, record: JobRecord) -> ConceptSpec:
        """Read a job's concept and check that everything is what the job was submitted for.

        Raises:
            ConceptError: The concept is gone, cannot be used, or was changed since.
            FarmError: The job asks for another recipe or backbone.
            StoreError: The place does not answer.
        """
        if record.concept_url not in self._sets:
            self._sets[record.concept_url] = dict(load_concepts(record.concept_url))
        spec = self._sets[record.concept_url].get(record.name)
        if spec is None:
            raise ConceptError(f"concept {record.name!r} is gone from {record.concept_url}; submit what is there now")
        if isinstance(spec, ConceptError):
            raise spec
        if spec.digest() != record.identity.spec_digest:
            raise ConceptError(
                f"concept {record.name!r} was changed in {record.concept_url} after it was submitted; submit it again"
            )
        for what, expected, found in (
            ("recipe", record.identity.recipe_digest, self._recipe_digest),
            ("backbone", record.identity.backbone_fingerprint, self._fingerprint),
        ):
            if expected != found:
                raise FarmError(
                    f"job {record.name!r} asks for the {what} {expected[:12]}, this worker has {found[:12]}; "
                    "submit it to a run of its own"
                )
        return spec
